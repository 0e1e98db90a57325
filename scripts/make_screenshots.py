"""Pictures of the console's pages for the documentation: `make screenshots`. Needs Debian's chromium; two minutes.

A server of its own state folder trains the bundled model twice, once to overfit; then each page is taken in light or in
dark. Out: `docs/images/<name>.webp`. A new page is a line of `PAGES`.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.server.browser.conftest import FLAGS, Served, sign_in
from tests.servers.processes import free_port
from tunesmith.bundled import TRAINING_ROWS

OUT = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
# name, path (with the names of `prepare`), theme, height (0: the screen's)
PAGES = (
    ("home", "/", "light", 0),
    ("models", "/models", "light", 0),
    ("model", "/models/tunesmith/demo", "dark", 1000),
    ("datasets", "/datasets", "dark", 0),
    ("dataset", "/datasets/{dataset}", "light", 1150),
    ("dataset-add", "/datasets/add", "light", 0),
    ("jobs", "/jobs", "light", 0),
    ("fine-tune", "/fine-tune?dataset={dataset}", "light", 1500),
    ("job", "/jobs/{job}", "light", 1250),
    ("job-running", "/jobs/{running}", "dark", 1000),
    ("job-settings", "/jobs/{job}/settings", "dark", 0),
    ("job-log", "/jobs/{job}/log", "light", 0),
    ("versions", "/versions", "light", 0),
    ("version", "/versions/{version}", "light", 1100),
    ("compare", "/versions/compare?left={version}&right={other}", "dark", 1100),
    ("version-sets", "/version-sets", "light", 0),
    ("try-it", "/versions/{version}/try", "dark", 0),
    ("version-running", "/versions/{next}", "dark", 0),
    ("search", "/search?q=dialog", "light", 0),
    ("admin", "/admin", "light", 1180),
    ("admin-tokens", "/admin/tokens", "dark", 0),
    ("admin-permissions", "/admin/permissions", "light", 0),
    ("admin-projects", "/admin/projects", "light", 0),
    ("admin-policies", "/admin/policies", "dark", 0),
    ("admin-locations", "/admin/locations", "light", 0),
    ("admin-location", "/admin/locations/team-data?new=yes", "light", 0),
    ("admin-location-add", "/admin/location-add", "dark", 0),
    ("admin-logs", "/admin/logs", "dark", 0),
    ("admin-network", "/admin/networks/fabric", "light", 0),
    ("admin-shapes", "/admin/shapes", "dark", 0),
    ("admin-quotas", "/admin/quotas", "light", 0),
    ("admin-audit", "/admin/audit", "dark", 0),
)
PHONES = (("phone", "/jobs/{job}"), ("phone-admin", "/admin"))


def main() -> None:
    wanted = set(sys.argv[1:])
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        served = Served(home=Path(folder) / "home", port=free_port())
        served.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            page = browser.new_page(viewport=SIZE)
            page.goto(served.url + "/sign-in")
            write(page, "sign-in")
            sign_in(page, served)
            page.wait_for_timeout(1000)  # the change of pages is drawn
            write(page, "first-run")
            names = prepare(served)
            for name, path, theme, height in PAGES:
                if not wanted or name in wanted:
                    take(page, served.url + path.format(**names), name=name, theme=theme, height=height)
            page.set_viewport_size(PHONE)
            for name, path in PHONES:
                if not wanted or name in wanted:
                    take(page, served.url + path.format(**names), name=name, theme="light", height=PHONE["height"])
        finally:
            browser.close()
            served.stop()


def prepare(served: Served) -> dict[str, str]:
    """Two finished jobs, of which one overfits, one that runs, and what an administrator looks after."""
    furnish(served)
    rows = [json.loads(line) for line in TRAINING_ROWS.read_text().splitlines()]
    dataset = served.upload(rows[:240], name="support dialogues")
    small = served.upload(rows[240:320], name="late tickets")
    common = {"model": "tunesmith/demo", "version_set": "dialog-summaries"}
    jobs = [
        submit(served, common | {"dataset": dataset, "epochs": 4, "learning_rate": 4e-3, "name": "Dialog summaries",
                                 "description": "The first try, with the rates of the demo."}),
        submit(served, common | {"dataset": small, "epochs": 8, "learning_rate": 2e-2, "name": "Late tickets alone"}),
    ]  # fmt: skip
    for job in jobs:
        until(served, job, "SUCCEEDED")
    versions = [served.ask("GET", f"/api/jobs/{job}")["model_version"] for job in jobs]
    number = int(versions[0].rpartition(":")[2])
    served.ask("PUT", "/api/version-sets/dialog-summaries/aliases/prod", json={"number": number})
    running = submit(
        served, common | {"dataset": dataset, "epochs": 12, "learning_rate": 2e-3, "name": "A slower rate"}
    )
    submit(served, common | {"dataset": small, "epochs": 3, "name": "Waits for its turn"})
    while len(served.ask("GET", f"/api/jobs/{running}/curves")["epochs"]) < 3:
        time.sleep(1)
    return {
        "dataset": dataset, "job": jobs[1], "running": running, "version": versions[0], "other": versions[1],
        "next": served.ask("GET", f"/api/jobs/{running}")["model_version"],
    }  # fmt: skip


def furnish(served: Served) -> None:
    place = served.home.parent / "team-data"
    (place / "support").mkdir(parents=True)
    (place / "support" / "tickets.jsonl").write_bytes(TRAINING_ROWS.read_bytes())
    (place / "results").mkdir()
    for path, body in (
        ("locations", {"name": "team-data", "uri": place.as_uri(), "description": "What the support team shares"}),
        ("logs", {"name": "support", "retention_days": 90, "description": "Jobs of the support team"}),
        ("networks", {"name": "fabric", "cidr": "10.0.0.0/24", "interface": "eth0"}),
        ("tokens", {"name": "nightly training", "days": 9}),
        ("tokens", {"name": "maria"}),
        ("projects", {"name": "help-desk", "description": "Answers to tickets"}),
        ("policies", {"name": "help-desk", "who": ["maria"], "may": ["use", "location.add"], "projects": ["help-desk"],
                      "description": "Maria trains for the help desk, and brings its data"}),
        ("policies", {"name": "nights", "who": ["nightly training"], "may": ["job.*", "dataset.*"],
                      "projects": ["default", "help-desk"], "description": "What runs while nobody looks"}),
    ):  # fmt: skip
        served.ask("POST", f"/api/{path}", json=body)
    served.ask("PATCH", "/api/quotas/maria", json={"queued_jobs": 20, "datasets": 50})


def submit(served: Served, body: dict[str, object]) -> str:
    return served.ask("POST", "/api/jobs", json=body)["job_id"]


def until(served: Served, job_id: str, state: str) -> None:
    while (found := served.ask("GET", f"/api/jobs/{job_id}"))["state"] not in (state, "FAILED", "CANCELED"):
        time.sleep(1)
    assert found["state"] == state, found["failure"]


def take(page: Page, url: str, *, name: str, theme: str, height: int) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]  # one of its two words
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height or SIZE["height"]})  # type: ignore[index]
    page.goto(url)
    page.wait_for_timeout(2500)  # curves and the plan
    write(page, name)


def write(page: Page, name: str) -> None:
    """As WebP, a third of a PNG, which playwright has no word for."""
    session = page.context.new_cdp_session(page)
    answer = session.send("Page.captureScreenshot", {"format": "webp", "quality": 88})
    session.detach()
    path = OUT / f"{name}.webp"
    path.write_bytes(base64.b64decode(answer["data"]))
    print(f"{path.name} {path.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()
