"""Pages of model versions and version sets, asked without a browser: what they show, do, and refuse."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from starlette.testclient import TestClient

from tests.catalog import make
from tests.server.test_console import OWN, add_job, browser, csrf_of, sign_in
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.versions import final_columns
from tunesmith.jobs.state import State
from tunesmith.server.pages.pictures import Series, line_chart
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import Lineage, VersionState
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import EpochEvent, SplitMetrics, StepEvent
from tunesmith.storage.tables import MODEL_VERSIONS

__all__ = ["browser"]
EVIL = "<script>alert(1)</script>"
FILES = [ManifestFile(path="adapter_model.safetensors", size=2048, sha256="a" * 64)]


@pytest.fixture
def user(browser: TestClient, token: str) -> TestClient:
    """Somebody who has signed in."""
    browser.headers["X-CSRF-Token"] = sign_in(browser, token)
    return browser


def press(user: TestClient, path: str, **fields: str) -> httpx2.Response:
    """A form of a page, sent by its button; the header of `user` stands for the form's hidden field."""
    return user.post(path, data={"pressed": "yes", **fields}, headers=OWN)


def version(state: State, *, set_name: str = "bot", lineage: Lineage | None = None, name: str = "") -> str:
    manifest = Manifest(job_id="job-1", model_version="bot:1", files=FILES)
    columns = final_columns(
        lineage=lineage or make.lineage(), metrics=make.metrics(3.0, 2.0), verdict=make.verdict(),
        artifact_uri="file:///results", manifest=manifest,
    )  # fmt: skip
    with state.database.write() as connection:
        made = add_version(
            connection, project="default", version_set=set_name, above=0, created_at=make.TIME, name=name,
            base_name="base", results_uri="",
        )  # fmt: skip
        move_version(
            connection, project="default", model_version=made, state=VersionState.ACTIVE, now=make.TIME, **columns
        )
    return made


def test_an_empty_catalog_says_what_to_do(user: TestClient) -> None:
    assert "No model versions yet" in user.get("/versions").text
    assert "No version sets yet" in user.get("/version-sets").text
    assert "Choose two versions" in user.get("/versions/compare").text


def test_a_version_shows_its_metrics_verdict_lineage_and_files(user: TestClient, state: State) -> None:
    version(state, name=EVIL)
    text = user.get("/versions/bot:1").text
    assert EVIL not in text and "&lt;script&gt;" in text
    for words in ("improved", "2.0000", "rows.jsonl", "adapter_model.safetensors", "/api/versions/bot:1/export"):
        assert words in text
    assert text.count('class="chart"') == 2 and 'class="lineage"' in text and 'class="interval"' in text
    assert "style=" not in text, "the policy forbids it"
    listed = user.get("/versions").text
    assert "/versions/bot:1" in listed and "50.0%" in listed
    assert user.get("/versions/bot:9").status_code == 404


def test_lists_filter_and_page(user: TestClient, state: State) -> None:
    for number in range(55):
        version(state, set_name=f"set-{number}")
    first = user.get("/versions").text
    assert "set-54:1" in first and "set-2:1" not in first and "after=" in first
    found = user.get("/versions?search=set-2:1").text
    assert "/versions/set-2:1" in found and "set-54:1" not in found
    part = user.get("/versions?search=nothing", headers={"HX-Request": "true"}).text
    assert "No version fits" in part and "<html" not in part


def test_an_alias_is_promoted_from_the_version_and_the_set(user: TestClient, state: State) -> None:
    for _ in range(2):
        version(state)
    answer = press(user, "/version-sets/bot/aliases", alias="prod", number="1", back="version")
    assert (answer.status_code, answer.headers["location"]) == (303, "/versions/bot:1")
    answer = press(user, "/version-sets/bot/aliases", alias="prod", number="2")
    assert answer.headers["location"] == "/version-sets/bot"
    text = user.get("/version-sets/bot").text
    assert "@prod" in text and "Validation loss by version" in text
    assert "Version" in user.get("/versions/bot@prod").text
    refused = press(user, "/version-sets/bot/aliases", alias="1", number="x")
    assert refused.status_code == 422 and "number" in refused.text
    press(user, "/version-sets/bot/aliases/prod/remove")
    assert "None yet." in user.get("/version-sets/bot").text


def test_an_action_without_the_token_of_the_session_is_refused(user: TestClient, state: State) -> None:
    version(state)
    del user.headers["X-CSRF-Token"]
    answer = press(user, "/versions/bot:1/delete")
    assert answer.status_code == 403
    assert "bot:1" in user.get("/versions").text


def test_htmx_is_sent_on_in_its_own_way(user: TestClient, state: State) -> None:
    version(state)
    answer = user.post(
        "/versions/bot:1/edit", data={"name": "Better", "description": ""}, headers=OWN | {"HX-Request": "true"}
    )
    assert (answer.status_code, answer.headers["hx-redirect"]) == (200, "/versions/bot:1")
    assert "Better" in user.get("/versions/bot:1").text


def test_deleting_asks_and_says_what_will_go(user: TestClient, state: State) -> None:
    version(state)
    press(user, "/version-sets/bot/aliases", alias="prod", number="1")
    asked = user.get("/versions/bot:1/delete").text
    assert "1 alias points at it: prod" in asked and "2.05 kB" in asked
    assert press(user, "/versions/bot:1/delete").status_code == 409
    press(user, "/version-sets/bot/aliases/prod/remove")
    assert press(user, "/versions/bot:1/delete").headers["location"] == "/versions"
    assert "No model versions yet" in user.get("/versions").text


def test_a_version_in_progress_follows_its_job_until_it_is_over(user: TestClient, state: State) -> None:
    job = add_job(state)
    lease, _ = state.jobs.acquire(job.job_id, owner="test/1/None")
    state.jobs.move(job.job_id, JobState.IN_PROGRESS, lease=lease)
    scores = SplitMetrics(loss=0.5, token_accuracy=0.75, completion_accuracy=0.25)
    step = {"time": make.TIME, "step": 3, "steps": 12, "epoch": 1, "loss": 1.25, "learning_rate": 1e-3}
    rest = {"gradient_norm": 1.0, "tokens": 9, "learned_tokens": 3, "tokens_per_second": 10.0, "memory_bytes": 10**6}
    state.jobs.say(
        lease,
        EpochEvent(time=make.TIME, epoch=0, training=scores, validation=scores),
        StepEvent(**step, **rest, eta_seconds=65.0),
    )
    text = user.get("/versions/demo-rows:1").text
    assert "In progress" in text and "/try" not in text and "js/job.js" in text
    assert f'data-job="{job.job_id}"' in text and 'hx-get="/versions/demo-rows:1/live"' in text
    assert f'action="/jobs/{job.job_id}/cancel"' in text
    assert "<dd>/data/rows.jsonl</dd>" in text
    assert "1 min 05 s" in text and "75.0%" in text and "1.2500" in text
    live = user.get("/versions/demo-rows:1/live")
    assert "HX-Refresh" not in live.headers and "<main" not in live.text
    assert 'id="metrics"' in live.text and 'id="job-progress"' in live.text and "hx-swap-oob" in live.text
    assert user.get("/versions/demo-rows:1/try").status_code == 200
    state.jobs.move(job.job_id, JobState.CANCELING, lease=lease)
    state.jobs.move(job.job_id, JobState.CANCELED, lease=lease)
    assert user.get("/versions/demo-rows:1/live").headers["HX-Refresh"] == "true"
    over = user.get("/versions/demo-rows:1").text
    assert "js/job.js" not in over and "75.0%" in over


def test_two_versions_are_compared(user: TestClient, state: State) -> None:
    version(state)
    version(state, lineage=make.lineage(epochs=7, content_hash="e" * 64))
    text = user.get("/versions/compare?left=bot:1&right=bot:2").text
    assert "SCORES_NOT_COMPARABLE" in text and "epochs" in text and "Only what differs" in text
    assert 'data-models=\'["base", "bot:1", "bot:2"]\'' in text
    assert user.get("/versions/compare?left=bot:1&right=bot:9").status_code == 404


def test_a_comparison_of_long_runs_comes_before_their_steps_are_read(
    user: TestClient, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.catalog.curves.QUICK_EVENTS", 5)
    jobs = [add_job(state), add_job(state)]
    for job in jobs:
        lease, _ = state.jobs.acquire(job.job_id, owner="host/1/None")
        state.jobs.say(
            lease,
            *[
                StepEvent(
                    time=make.TIME, step=number, steps=9, epoch=1, loss=9.0 - number, learning_rate=1e-4,
                    gradient_norm=1.0, tokens=10, learned_tokens=5, tokens_per_second=9.0, memory_bytes=1,
                    eta_seconds=1.5,
                )
                for number in range(1, 10)
            ],
        )  # fmt: skip
    left, right = (job.model_version for job in jobs)
    address = f"/versions/compare?left={left}&right={right}"
    drawn = 'aria-label="Running loss of'
    first = user.get(address).text
    assert drawn not in first and f'hx-get="/versions/compare?left={left.replace(":", "%3A")}' in first
    assert drawn in user.get(address + "&whole=yes").text, "without a script"
    part = user.get(address, headers={"HX-Request": "true"}).text
    assert drawn in part and "<html" not in part
    assert drawn in user.get(address).text, "their steps are kept now"


def test_a_plain_version_offers_to_go_on_with_a_text(user: TestClient, state: State) -> None:
    version(state, lineage=make.lineage(render="plain"))
    text = user.get("/versions/bot:1/try").text
    assert 'data-kind="text"' in text and "does not chat" in text and "client.completions.create" in text
    version(state)
    assert 'data-kind="chat"' in user.get("/versions/bot:2/try").text


def test_a_thousand_versions_cost_a_page_no_more(user: TestClient, state: State) -> None:
    version(state)
    with state.database.write() as connection:
        row = connection.execute(sa.select(MODEL_VERSIONS)).one()._asdict()
        rows = [{**row, "sequence": None, "number": n, "model_version": f"bot:{n}"} for n in range(2, 1002)]
        connection.execute(MODEL_VERSIONS.insert(), rows)
    counted: list[str] = []
    with state.database.read() as connection:
        engine = connection.engine

    @event.listens_for(engine, "before_cursor_execute")
    def count(*given: Any) -> None:  # pyright: ignore[reportUnusedFunction]  # the engine calls it
        counted.append(given[2])

    for path in ("/versions", "/version-sets/bot", "/versions/bot:500"):
        counted.clear()
        assert user.get(path).status_code == 200
        assert len(counted) < 25, "no query for each row"
    assert csrf_of(user.get("/versions").text)


def test_a_curve_is_marked_where_a_run_begins_to_overfit() -> None:
    points = [(0, 3.0), (1, 1.0), (2, 1.5)]
    series = [Series(name="validation", tone="validation", points=points)]
    drawn = line_chart(series, label="Loss", x_label="epoch", told=str, warned=(2, "overfitting <b>"))
    assert "overfitting &lt;b&gt;" in drawn and 'class="warned left"' in drawn
    assert "warned" not in line_chart(series, label="Loss", x_label="epoch", told=str)


def test_a_version_and_its_job_are_tabs_of_each_other(user: TestClient, state: State) -> None:
    job = add_job(state)
    for path in (f"/versions/{job.model_version}", f"/jobs/{job.job_id}", f"/jobs/{job.job_id}/log"):
        text = user.get(path).text
        assert text.count('aria-current="page"') == 2  # in the navigation and among the tabs
        for target in (f"/versions/{job.model_version}", f"/jobs/{job.job_id}", f"/jobs/{job.job_id}/settings"):
            assert f'href="{target}"' in text.replace("%3A", ":"), (path, target)
