"""One box for everything: a group a noun, hostile names as text, nothing of what the caller may not see."""

from __future__ import annotations

import html

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import URL
from tests.server.test_console import add_job, browser
from tests.server.test_dataset_pages import dataset
from tests.server.test_version_pages import EVIL, user, version
from tunesmith.jobs.state import State
from tunesmith.server.pages import search

__all__ = ["browser", "dataset", "user"]


def test_every_noun_that_holds_the_words_is_found(user: TestClient, state: State, dataset: str) -> None:
    version(state, set_name="demo-bot")
    job = add_job(state, name="Demo run")
    user.post("/api/locations", json={"name": "demos", "uri": "s3://demos/x"}, headers={"Origin": URL})
    page = user.get("/search?q=demo").text
    assert "<html" in page and 'value="demo"' in page
    for link in (
        "/models/tunesmith/demo",
        f"/jobs/{job.job_id}",
        "/versions/demo-bot:1",
        "/version-sets/demo-bot",
        "/admin/locations/demos",
    ):
        assert f'href="{link}"' in page, link
    found = user.get("/search", params={"q": "alert"}, headers={"HX-Request": "true"}).text
    assert "<html" not in found and f"/datasets/{dataset}" in found
    assert EVIL not in found and html.escape(EVIL) in found


def test_many_lead_to_the_filtered_list(user: TestClient, state: State) -> None:
    for number in range(search.SHOWN + 2):
        add_job(state, name=f"late {number}")
    page = user.get("/search?q=late").text
    assert page.count('href="/jobs/job-') == search.SHOWN and 'href="/jobs?search=late"' in page


def test_nothing_and_no_words_teach(user: TestClient) -> None:
    nothing = user.get("/search", params={"q": f"zzz{EVIL}"}).text
    assert "Nothing fits" in nothing and EVIL not in nothing and "/model-hub?asked=yes" in nothing
    assert "Type in the box" in user.get("/search").text and "Type in the box" in user.get("/search?q=+").text


def test_what_the_caller_may_not_see_is_left_out(user: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "may", lambda _, action: action != "model.read")
    assert "/models/tunesmith/demo" not in user.get("/search?q=demo").text
