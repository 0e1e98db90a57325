"""Each page that has an address: no fault that axe can find, in both themes, and nothing wider than a phone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page

from tests.server.browser.conftest import Served, sign_in, violations
from tests.servers.hub import FakeHub
from tests.servers.processes import free_port
from tunesmith.bundled import MODEL_FOLDER, TRAINING_ROWS
from tunesmith.server.pages import page_routes

SMALL = "team/small"
LONG = "a-name-of-sixty-characters-without-any-place-to-break-a-line"
# What fills in the addresses; `furnished` makes them.
QUERIES = {
    "/search": "q=demo",
    "/model-browse": "location=shelf",
    "/model-scan": "location=shelf",
    "/model-look": f"hub_id={SMALL}&name=looked-at",
    "/model-hub": "asked=yes",
    "/datasets/{dataset_id}/preview": "model=tunesmith/demo",
    "/fine-tune": "dataset={dataset_id}",
    "/fine-tune/browse": "location=shelf",
    "/versions/compare": "left={version}&right={version}",
}
# Answers to htmx alone, which stand in the page whose parts they are.
PARTS = {
    "/jobs/{job_id}/parts",
    "/versions/{version}/live",
    "/fine-tune/datasets",
    "/fine-tune/browse",
    "/admin/health",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add(SMALL, MODEL_FOLDER)
        yield fake


@pytest.fixture(scope="module")
def furnished(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, str]]]:
    """One of each noun, with long names; and what they are called."""
    folder = tmp_path_factory.mktemp("every")
    (folder / "shelf" / "support").mkdir(parents=True)
    served = Served(home=folder / "home", port=free_port(), environment={"HF_ENDPOINT": hub.url})
    served.start()
    try:
        shelf = {"name": "shelf", "uri": (folder / "shelf").as_uri(), "description": "What lies on the shelf"}
        served.ask("POST", "/api/locations", json=shelf)
        served.ask("POST", "/api/logs", json={"name": "support", "retention_days": 30})
        served.ask("POST", "/api/projects", json={"name": LONG, "description": "A project with a long name"})
        policy = {"name": "night", "who": ["nobody yet"], "may": ["use", "location.add"], "projects": [LONG, "default"]}
        served.ask("POST", "/api/policies", json=policy)
        served.ask("POST", "/api/networks", json={"name": "fabric", "cidr": "10.0.0.0/24", "interface": "eth0"})
        rows = [json.loads(line) for line in TRAINING_ROWS.read_text().splitlines()[:30]]
        dataset = served.upload(rows, name=LONG)
        wanted = {"model": "tunesmith/demo", "dataset": dataset, "epochs": 1, "name": LONG, "version_set": LONG}
        job = served.ask("POST", "/api/jobs", json=wanted)
        download = served.ask("POST", "/api/downloads", json={"hub_id": SMALL, "name": "of-the-hub"})
        while (found := served.ask("GET", f"/api/jobs/{job['job_id']}"))["state"] not in ("SUCCEEDED", "FAILED"):
            time.sleep(0.3)
        assert found["state"] == "SUCCEEDED", found["failure"]
        yield served, {
            "dataset_id": dataset, "job_id": job["job_id"], "version": job["model_version"], "version_set": LONG,
            "download_id": download["download_id"],
        }  # fmt: skip
    finally:
        served.stop()


def addresses(names: dict[str, str]) -> list[str]:
    """Of every page that the server has: a new one is among them by itself, or fails here for want of a name."""
    found: list[str] = []
    for route in page_routes():
        if route.method != "GET" or route.path in PARTS:
            continue
        of_noun = {
            "/admin/locations": "shelf", "/admin/logs": "support", "/admin/networks": "fabric",
            "/admin/projects": LONG, "/admin/policies": "night",
            "/models": "tunesmith/demo", "/model-template": "tunesmith/demo",
        }  # fmt: skip
        noun = next((name for path, name in of_noun.items() if route.path.startswith(path + "/{")), "")
        path = re.sub(r"\{name(:path)?\}", noun, route.path).format(**names)
        query = QUERIES.get(route.path, "").format(**names)
        found.append(path + (f"?{query}" if query else ""))
    return found


def test_every_page_is_accessible_and_fits_a_phone(
    new_page: Callable[..., Page], furnished: tuple[Served, dict[str, str]]
) -> None:
    served, names = furnished
    page, phone = (
        sign_in(new_page(**options), served) for options in ({}, {"viewport": {"width": 390, "height": 844}})
    )
    faults: list[str] = []
    for address in addresses(names):
        answer = page.goto(served.url + address)
        assert answer is not None and answer.status == 200, address
        faults += [f"{address}: {fault}" for fault in violations(page)]
        phone.goto(served.url + address)
        wider = phone.evaluate("document.documentElement.scrollWidth - innerWidth")
        faults += [f"{address}: {wider} px wider than a phone"] * (wider > 0)
    assert not faults, "\n".join(faults)
