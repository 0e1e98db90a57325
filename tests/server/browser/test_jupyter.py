"""The console behind a real Jupyter server: opened from its launcher's entry, without a token, below `/user/ada/`; and
behind a hub before it, whose path for a user's server is longer, and whose name and TLS are not ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.server.browser import hub
from tests.server.browser.conftest import Served, violations
from tests.server.browser.test_job import moving
from tests.servers.processes import end, free_port, wait_for_port
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.bundled import TRAINING_ROWS
from tunesmith.jobs.home import Home

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyter_server_proxy") is None, reason="jupyter-server-proxy is not installed (.[dev])"
)
BASE = "/lab/user/ada@example.org/gpu-box/"  # a hub below a path, a user with an address, a named server
TOKEN = "a-token-of-jupyter-s-own"


@dataclass
class Jupyter:
    home: Home
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{BASE}"

    @property
    def console(self) -> str:
        return self.url + "tunesmith"

    def ask(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers={"Authorization": f"token {TOKEN}", **headers}, timeout=60)


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    folder = tmp_path_factory.mktemp("j")
    home, port, log = Home(root=folder / "home"), free_port(), folder / "jupyter.log"
    command = [
        sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser", f"--ServerApp.port={port}",
        f"--ServerApp.base_url={BASE}", f"--IdentityProvider.token={TOKEN}", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.allow_remote_access=True", "--ServerApp.trust_xheaders=True",  # as a hub starts it
    ]  # fmt: skip
    environment = os.environ | {
        "TUNESMITH_HOME": str(home.root), "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "run"), "JUPYTER_DATA_DIR": str(folder / "data"),
        "IPYTHONDIR": str(folder / "ipython"),
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for_port(port, process, log=log)
        yield Jupyter(home=home, port=port)
    finally:
        end(process)


@pytest.fixture
def lab(new_page: Callable[..., Page], jupyter: Jupyter) -> Page:
    """Signed in to Jupyter; Tunesmith was told nothing."""
    page = new_page()
    page.goto(f"{jupyter.url}api/status?token={TOKEN}")
    return page


def test_the_launcher_has_an_entry_with_our_icon(jupyter: Jupyter) -> None:
    listed = jupyter.ask("server-proxy/servers-info").json()["server_processes"]
    [entry] = [each for each in listed if each["name"] == "tunesmith"]
    assert entry["launcher_entry"]["title"] == "Tunesmith" and entry["new_browser_tab"]
    assert entry["launcher_entry"]["category"] == "Notebook"  # of others JupyterLab 4 draws no icon
    icon = jupyter.ask("server-proxy/icon/tunesmith")
    assert icon.headers["content-type"] == "image/svg+xml" and icon.text.startswith("<svg")


def test_the_console_opens_without_a_token_and_a_job_is_started_and_followed_in_it(
    lab: Page, jupyter: Jupyter, tmp_path: Path
) -> None:
    page = lab
    page.goto(jupyter.console + "/", timeout=120_000)
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)  # one signs out of Jupyter
    use(page, jupyter.console, tmp_path)
    page.goto(jupyter.console + "/versions")
    assert violations(page) == []


def use(page: Page, console: str, folder: Path) -> None:
    """Links, styles, an upload, forms and redirects, a stream of events, a button: all below `console`."""
    menu = page.get_by_role("navigation", name="Main")
    assert page.evaluate("document.fonts.check('16px Inter') && document.styleSheets.length") >= 1
    for link in ("Models", "Datasets", "Jobs", "Model versions"):
        menu.get_by_role("link", name=link, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.url.startswith(console + "/"), page.url
    rows = folder / "rows.jsonl"
    rows.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:60]))
    page.goto(console + "/datasets")
    page.get_by_role("link", name="Add a dataset").first.click()
    page.wait_for_url(f"{console}/datasets/add")  # loaded: its script listens
    page.locator("input[type=file]").set_input_files(rows)
    page.wait_for_url(f"{console}/datasets/ds-*")
    page.get_by_role("link", name="Fine Tune", exact=True).last.click()
    page.get_by_label("Epochs").fill("1000")  # it ends by its cancelling alone
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(lambda url: url.startswith(console) and "/fine-tune" not in url)
    page.get_by_role("link", name="Job", exact=True).click()
    moving(page)  # its events come through the proxy one by one
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-head .badge").first).to_have_text("Canceled")
    assert page.url.startswith(console + "/jobs/"), page.url


@pytest.fixture
def on_hub(new_page: Callable[..., Page], jupyter: Jupyter, tmp_path: Path) -> Iterator[tuple[Page, str]]:
    """A page that signed in to Jupyter through the hub, and the address of that user's server there."""
    page = new_page(ignore_https_errors=True)
    with hub.serving(tmp_path, base=BASE, port=jupyter.port) as (port, strayed):
        address = f"https://{hub.NAME}:{port}{BASE}"
        page.goto(f"{address}api/status?token={TOKEN}")
        yield page, address
        page.context.close()  # nothing is under way when the hub ends
    assert strayed == [], "nothing was asked for outside the user's own path"


def test_on_a_hub_the_launcher_s_entry_works_below_the_user_s_path(
    on_hub: tuple[Page, str], jupyter: Jupyter, tmp_path: Path
) -> None:
    page, address = on_hub
    page.goto(address + "tunesmith/", timeout=120_000)
    use(page, address + "tunesmith", tmp_path)


def test_on_a_hub_a_server_of_one_s_own_is_reached_by_its_port(
    on_hub: tuple[Page, str], jupyter: Jupyter, tmp_path: Path
) -> None:
    page, address = on_hub
    served = Served(home=tmp_path / "own", port=free_port(), arguments=("--allowed-host", hub.NAME))
    served.start()
    try:
        console = f"{address}proxy/{served.port}"
        page.goto(console + "/jobs?state=FAILED")
        page.wait_for_url(lambda url: url.startswith(console + "/sign-in?next="))
        page.get_by_label("Token").fill(served.token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(console + "/jobs?state=FAILED")
        [cookie] = [each for each in page.context.cookies() if each.get("name", "").startswith("tunesmith_session")]
        assert cookie.get("path") == f"{BASE}proxy/{served.port}/" and cookie.get("secure") and cookie.get("httpOnly")
        use(page, console, tmp_path)
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(console + "/sign-in")
        page.goto("about:blank")  # nothing of that page is under way when its server ends
    finally:
        served.stop()


def test_an_answer_comes_in_pieces(lab: Page, jupyter: Jupyter) -> None:
    lab.goto(jupyter.console + "/models/tunesmith/demo")
    asked = lab.evaluate(
        """async () => {
          const root = document.documentElement.dataset.prefix;
          const csrf = document.querySelector("meta[name=csrf]").content;
          const kinds = {"Content-Type": "application/json", Accept: "text/event-stream"};
          const answer = await fetch(`${root}/v1/completions`, {
            method: "POST", headers: {"X-CSRF-Token": csrf, ...kinds},
            body: JSON.stringify({  // of 152 tokens: a short one may come in one read
              model: "tunesmith/demo", prompt: "Hello", max_tokens: 400, temperature: 2, seed: 2, stream: true,
            }),
          });
          const reader = answer.body.getReader();
          let pieces = 0;
          while (!(await reader.read()).done) pieces += 1;
          return [answer.status, pieces];
        }"""
    )
    assert asked[0] == 200 and asked[1] > 1


def test_who_is_not_in_jupyter_gets_nothing_and_another_site_changes_nothing(jupyter: Jupyter) -> None:
    stranger = httpx2.get(jupyter.console + "/jobs", timeout=60)
    assert stranger.status_code == 302 and "/login" in stranger.headers["location"]
    page = jupyter.ask("tunesmith/jobs")
    assert page.status_code == 200 and f"{BASE}tunesmith/static/" in page.text
    csrf = re.search(r'name="csrf" content="([0-9a-f]{64})"', page.text)
    assert csrf is not None
    own = f"http://127.0.0.1:{jupyter.port}"
    for headers, statuses in (
        ({"Origin": own, "X-CSRF-Token": csrf[1]}, (201,)),
        ({"Origin": "http://evil.example", "X-CSRF-Token": csrf[1]}, (403, 500)),  # Jupyter itself stops both: 500
        ({"Origin": own, "Sec-Fetch-Site": "cross-site", "X-CSRF-Token": csrf[1]}, (403, 500)),
        ({"Origin": own}, (403,)),
        ({"X-CSRF-Token": csrf[1]}, (403,)),
    ):
        answer = httpx2.post(
            jupyter.console + "/api/logs", json={"name": "l"}, headers={"Authorization": f"token {TOKEN}", **headers},
            timeout=60,
        )  # fmt: skip
        assert answer.status_code in statuses, (headers, answer.text)


def test_by_its_port_it_asks_for_a_token_and_stays_below_the_proxy_s_path(lab: Page, jupyter: Jupyter) -> None:
    address = json.loads((jupyter.home.root / "server.json").read_text())["url"]
    below = f"{jupyter.url}proxy/{address.rpartition(':')[2]}"
    lab.goto(below + "/jobs")
    assert lab.url == f"{below}/sign-in?next=/jobs"
    lab.get_by_label("Token").fill((jupyter.home.root / "token").read_text().strip())
    lab.get_by_role("button", name="Sign in").click()
    lab.wait_for_url(below + "/jobs")
    [cookie] = [each for each in lab.context.cookies() if each.get("name", "").startswith("tunesmith_session")]
    assert cookie.get("path") == f"{BASE}proxy/{address.rpartition(':')[2]}/" and cookie.get("httpOnly")
    lab.get_by_role("button", name="Sign out").click()
    lab.wait_for_url(below + "/sign-in")


def test_a_server_that_runs_is_used_and_its_place_is_taken(jupyter: Jupyter) -> None:
    """What was started by Jupyter ends; another server takes over; Jupyter's proxy finds each at the same socket."""
    first = json.loads((jupyter.home.root / "server.json").read_text())
    served = Served(home=jupyter.home.root, arguments=("--stand-by",))
    command = threading.Thread(target=served.start)
    command.start()
    time.sleep(2)  # it stands by
    assert jupyter.ask("tunesmith/api/version").json() and served.sign_in_url == ""
    os.kill(first["pid"], signal.SIGTERM)
    command.join(PATIENCE_SECONDS)
    try:
        assert json.loads((jupyter.home.root / "server.json").read_text())["pid"] == served.process.pid  # type: ignore[union-attr]
        until(
            lambda: jupyter.ask("tunesmith/jobs").status_code == 200, "Jupyter finds the other server", told=served.told
        )
    finally:
        served.stop()
