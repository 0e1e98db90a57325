"""A page of a job's events costs what the page holds, wherever it lies and however many events there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from tests.jobs.test_wishes import insert
from tunesmith.catalog.versions import describe_version
from tunesmith.jobs.detail import progress_of
from tunesmith.jobs.home import open_home
from tunesmith.jobs.state import State, open_state

NUM_EVENTS = 100_000
MOST_TICKS = 100  # of 100 operations: a page of 100 takes 20 to 45, a walk over all events 5,000
STEP = (
    '{"time":"2026-01-01T00:00:00Z","kind":"step","step":1,"steps":9,"epoch":1,"loss":2.0,"learning_rate":0.1,'
    '"gradient_norm":1.0,"tokens":1,"learned_tokens":1,"tokens_per_second":1.0,"memory_bytes":1,"eta_seconds":1.0}'
)
NOTICE = '{"time":"2026-01-01T00:00:00Z","kind":"notice","code":"N","message":"m"}'


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, str]:
    """A job with 100,000 events, every thousandth of them a notice."""
    state = open_state(open_home({"TUNESMITH_HOME": str(tmp_path_factory.mktemp("state"))}))
    job_id = insert(state)
    with state.database.write() as connection:
        connection.execute(
            sa.text(
                "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < :most) "
                "INSERT INTO events (job_id, number, kind, body) SELECT :job, i, "
                "CASE WHEN i % 1000 = 0 THEN 'notice' ELSE 'step' END, "
                "CASE WHEN i % 1000 = 0 THEN :notice ELSE :step END FROM n"
            ),
            {"most": NUM_EVENTS, "job": job_id, "step": STEP, "notice": NOTICE},
        )
    return state, job_id


def work_of(state: State, look: Callable[[], object]) -> int:
    """How many hundreds of operations SQLite needs for it."""
    ticks = 0

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        return 0

    def listen(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(tick, 100)

    engine = state.database._engine
    sa.event.listen(engine, "checkout", listen)
    try:
        look()
    finally:
        sa.event.remove(engine, "checkout", listen)
    return ticks


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"limit": 100}, id="first"),
        pytest.param({"after": 50_000, "limit": 100}, id="middle"),
        pytest.param({"after": NUM_EVENTS - 100, "limit": 100}, id="last"),
        pytest.param({"newest": True, "limit": 100}, id="newest"),
        pytest.param({"kinds": ["notice"], "limit": 100}, id="rare kind"),
        pytest.param({"kinds": ["step", "notice"], "after": 50_000, "limit": 100}, id="kinds, middle"),
        pytest.param({"kinds": ["step", "state"], "newest": True, "limit": 100}, id="kinds, newest"),
    ],
)
def test_a_page_reads_its_own_rows_wherever_it_lies(job: tuple[State, str], query: dict[str, Any]) -> None:
    state, job_id = job
    found = state.jobs.events(job_id, **query)
    assert len(found) == 100
    assert [each.number for each in found] == sorted(each.number for each in found)
    assert work_of(state, lambda: state.jobs.events(job_id, **query)) <= MOST_TICKS, (
        "it walks over rows that it does not give"
    )


@pytest.mark.slow
def test_the_measure_sees_a_walk_over_all_events(job: tuple[State, str]) -> None:
    state, job_id = job

    def read(**query: Any) -> int:
        return work_of(state, lambda: state.jobs.events(job_id, **query))

    assert read(kinds=["epoch", "attempt"], after=1, limit=1) <= MOST_TICKS, "the index knows of none"
    assert read(after=NUM_EVENTS - 5_000) > MOST_TICKS, "five thousand rows are more than a page"


def test_pages_join_without_a_gap(job: tuple[State, str]) -> None:
    state, job_id = job
    after = NUM_EVENTS - 3_500
    while found := state.jobs.events(job_id, after=after, limit=1_000):
        assert [each.number for each in found] == list(range(after + 1, after + len(found) + 1))
        after = found[-1].number
    assert after == NUM_EVENTS


def test_a_version_and_a_job_s_progress_are_found_without_a_walk(job: tuple[State, str]) -> None:
    state, job_id = job
    name = state.jobs.read(job_id).model_version

    def describe() -> None:
        with state.database.read() as connection:
            assert describe_version(connection, name, project="default").metrics.epochs == []

    def progress() -> None:
        with state.database.read() as connection:
            assert progress_of(connection, [job_id])[job_id].step == 1

    assert work_of(state, describe) <= MOST_TICKS
    assert work_of(state, progress) <= MOST_TICKS
