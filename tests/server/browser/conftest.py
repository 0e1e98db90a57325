"""Debian's chromium before a real `tunesmith serve`: what the browser tests of every page share.

`served` is a server of its own state folder, for all tests of a file; `page` is a signed-in page whose test fails where
the browser's console tells an error. `violations(page)` is axe's word on accessibility, in both themes. A test that
fails tells where the pictures of its pages lie, and the ends of its server's logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from playwright.sync_api import Error as BrowserError

AXE = Path(__file__).parent / "axe" / "axe.min.js"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP hub.example.org 127.0.0.1",
]  # fmt: skip
END_SECONDS = 120
WAIT_MILLISECONDS = 60_000  # of whatever a page is to show: it takes so long only where it never comes
expect.set_options(timeout=WAIT_MILLISECONDS)
PAGES = pytest.StashKey[tuple[Path, list[Page]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a browser and a server of its own."""
    missing = shutil.which("chromium") is None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.servers)
            if missing:
                item.add_marker(pytest.mark.skip(reason="chromium is not installed (Debian: apt install chromium)"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failure leaves to be understood by."""
    report = yield
    if not report.failed or PAGES not in item.stash:
        return report
    folder, pages = item.stash[PAGES]
    for number, page in enumerate(pages, start=1):
        try:
            page.screenshot(path=(picture := folder / f"page-{number}.png"), timeout=10_000)
            report.sections.append((f"page {number}: {page.url}, seen in {picture}", page.inner_text("body")[-3000:]))
        except BrowserError as error:  # it is closed, or hangs
            report.sections.append((f"page {number}", str(error)))
    for server in item.funcargs.values():  # type: ignore[attr-defined]  # every item here is a function
        if isinstance(server, Served):
            report.sections.append(("server", server.told()))
    return report


@dataclass
class Served:
    """`tunesmith serve` over one state folder; it may be killed and started again on the same port."""

    home: Path
    port: int = 0  # any at the first start, and the same one from then on
    environment: dict[str, str] = field(default_factory=dict[str, str])
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    sign_in_url: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.home / "token").read_text().strip()

    def start(self) -> None:
        command = [sys.executable, "-m", "tunesmith", "serve", "--port", str(self.port), "--json", *self.arguments]
        environment = {**os.environ, **self.environment, "TUNESMITH_HOME": str(self.home)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # told once it serves
        assert line, f"the server ended before it served\n{self.told()}"
        self.sign_in_url = json.loads(line)["sign_in_url"]
        self.port = urlsplit(self.sign_in_url).port or 0

    @property
    def log(self) -> Path:
        """Of its own words, beside its folder."""
        return self.home.with_name(f"{self.home.name}-server.log")

    def told(self) -> str:
        """The ends of its logs."""
        logs = [self.log, *sorted((self.home / "logs").glob("*.log"))]
        return "\n".join(f"---- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=END_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self) -> None:
        """The server, and the workers that would run on after it."""
        self.stop()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink().is_relative_to(self.home):
                    os.kill(int(process.name), signal.SIGKILL)

    def ask(self, method: str, path: str, **kwargs: Any) -> Any:
        """The REST interface, for what a test needs around its page."""
        headers = {"Authorization": f"Bearer {self.token}", **kwargs.pop("headers", {})}
        answer = httpx2.request(method, self.url + path, headers=headers, timeout=60, **kwargs)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def upload(self, rows: list[dict[str, Any]], *, name: str) -> str:
        """The id of a new dataset."""
        body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        headers = {"Content-Type": "application/octet-stream"}
        return self.ask("POST", "/api/datasets", params={"name": name}, content=body, headers=headers)["dataset_id"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(home=tmp_path_factory.mktemp("home"))
    server.start()
    yield server
    server.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # for one file only: while it is open, nothing else of this process may run an event loop
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield opened
        opened.close()


def told(message: ConsoleMessage) -> str:
    return f"{message.text} ({message.location['url']})"


@pytest.fixture
def new_page(
    browser: Browser, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Page]]:
    """Pages, each in a browser of its own (no shared cookies); an error in a console fails the test."""
    opened: list[Any] = []
    faults: list[str] = []
    pages: list[Page] = []
    request.node.stash[PAGES] = (tmp_path_factory.mktemp("pictures"), pages)

    def make(**options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1360, "height": 900}} | options))
        context.set_default_timeout(WAIT_MILLISECONDS)
        opened.append(context)
        context.on("page", lambda opened: pages.append(opened))
        page = context.new_page()
        page.on("console", lambda message: faults.append(told(message)) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.faults = faults  # type: ignore[attr-defined]  # a test that means an error empties it
        return page

    yield make
    for context in opened:
        context.close()
    pages.clear()
    assert faults == []


@pytest.fixture
def page(new_page: Callable[..., Page], served: Served) -> Page:
    """Signed in, at the home page."""
    return sign_in(new_page(), served)


def sign_in(page: Page, served: Served) -> Page:
    page.goto(served.url + "/sign-in")
    page.get_by_label("Token").fill(served.token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(served.url + "/")
    return page


def violations(page: Page) -> list[str]:
    """What axe finds, in light and in dark, one line each."""
    found: list[str] = []
    page.emulate_media(reduced_motion="reduce")  # a colour on its way to another is neither
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        page.evaluate(AXE.read_text())
        report = page.evaluate("async () => await axe.run({resultTypes: ['violations']})")
        for fault in report["violations"]:
            places = "; ".join(str(node["target"][0]) for node in fault["nodes"][:4])
            found.append(f"{theme}: {fault['id']}: {fault['help']} ({places})")
    return found
