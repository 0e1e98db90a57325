from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tunesmith.errors import Conflict, Unknown
from tunesmith.jobs.home import open_home
from tunesmith.jobs.launcher import process_started_at
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import LeaseLost, NewJob, this_process
from tunesmith.jobs.wishes import cancel, pause, resume
from tunesmith.spec.jobs import FINAL_STATES, JobRecord, JobState
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.tables import JOBS


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))


def insert(at: State, **changes: Any) -> str:
    new = NewJob(
        job_id="job-0123456789ab", request=FinetuneRequest(model="m", dataset="d.jsonl"), settings=TrainingSettings(),
        version_set="m-d", results_uri=None, results_root=at.home.results, base_name="m",
    )  # fmt: skip
    job_id = at.database.write_grouped(lambda connection: at.jobs.insert(connection, new)).job_id
    if changes:
        with at.database.write() as connection:
            connection.execute(JOBS.update().where(JOBS.c.job_id == job_id).values(changes))
    return job_id


def waiting(state: State, **changes: Any) -> str:
    """A started job that waits for a person, with nobody looking after it."""
    job_id = insert(state)
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=lease, phase="waiting", waiting_reason="The disk is full.")
    state.jobs.release(lease)
    if changes:
        with state.database.write() as connection:
            connection.execute(JOBS.update().where(JOBS.c.job_id == job_id).values(changes))
    return job_id


def states_of(state: State, job_id: str) -> list[str]:
    return [each.event.state for each in state.jobs.events(job_id, kinds=["state"]) if each.event.kind == "state"]


def test_a_queued_job_is_cancelled_at_once(state: State) -> None:
    job_id = insert(state)
    assert cancel(state.jobs, job_id).state is JobState.CANCELED
    assert states_of(state, job_id) == ["ACCEPTED", "CANCELED"]


def test_a_waiting_job_that_nobody_looks_after_is_cancelled_at_once(state: State) -> None:
    job_id = waiting(state)
    assert cancel(state.jobs, job_id).state is JobState.CANCELED
    assert states_of(state, job_id) == ["ACCEPTED", "IN_PROGRESS", "CANCELING", "CANCELED"]


def test_why_a_job_waited_is_not_why_it_was_cancelled(state: State) -> None:
    failure = {"code": "INTERRUPTED", "message": "The job was stopped.", "field": None, "hint": "Resume it."}
    job_id = waiting(state, failure=json.dumps(failure), failure_family="TunesmithError")
    assert state.jobs.read(job_id).failure == failure
    record = cancel(state.jobs, job_id)
    assert (record.failure, record.failure_family, record.waiting_reason) == (None, None, None)


def test_a_job_that_somebody_looks_after_is_only_asked_to_stop(state: State) -> None:
    job_id = insert(state)
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=lease, phase="training")
    assert cancel(state.jobs, job_id).state is JobState.CANCELING
    assert cancel(state.jobs, job_id).state is JobState.CANCELING, "asking twice changes nothing"
    assert states_of(state, job_id) == ["ACCEPTED", "IN_PROGRESS", "CANCELING"]


def test_a_lapsed_lease_does_not_hide_a_worker_that_lives(state: State) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        job_id = waiting(state, worker_pid=child.pid, worker_started_at=process_started_at(child.pid))
        assert cancel(state.jobs, job_id).state is JobState.CANCELING, "its worker must be ended first"
    finally:
        child.communicate()


def test_a_cancel_at_once_takes_the_lease_that_a_jump_of_the_clock_made_seem_lapsed(state: State) -> None:
    job_id = insert(state)
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=lease, phase="preparing")
    with state.database.write() as connection:
        connection.execute(JOBS.update().values(lease_until=time.time() - 7000))
    assert cancel(state.jobs, job_id).state is JobState.CANCELED
    with pytest.raises(LeaseLost):  # so the worker that it was about to let go is ended
        state.jobs.update(lease, worker_pid=1)


@pytest.mark.parametrize("final", sorted(FINAL_STATES))
@pytest.mark.parametrize("ask", [cancel, pause, resume])
def test_a_finished_job_refuses_every_wish_but_a_second_cancel(
    state: State, final: JobState, ask: Callable[..., JobRecord]
) -> None:
    job_id = insert(state, state=final)
    if ask is cancel and final is JobState.CANCELED:
        assert cancel(state.jobs, job_id).state is final
        return
    with pytest.raises(Conflict) as refusal:
        ask(state.jobs, job_id)
    assert refusal.value.code == "JOB_FINISHED" and final in refusal.value.message


@pytest.mark.parametrize("ask", [pause, resume])
def test_a_job_that_is_being_cancelled_cannot_be_paused_or_resumed(state: State, ask: Callable[..., JobRecord]) -> None:
    with pytest.raises(Conflict) as refusal:
        ask(state.jobs, insert(state, state=JobState.CANCELING))
    assert refusal.value.code == "JOB_CANCELING"


@pytest.mark.parametrize("ask", [cancel, pause, resume])
def test_an_unknown_job_is_said(state: State, ask: Callable[..., JobRecord]) -> None:
    with pytest.raises(Unknown) as refusal:
        ask(state.jobs, "job-0")
    assert refusal.value.code == "UNKNOWN_JOB"


def test_a_queued_job_can_be_paused_and_resumed(state: State) -> None:
    job_id = insert(state)
    paused = pause(state.jobs, job_id)
    assert (paused.is_paused, paused.waiting_reason, paused.phase) == (True, "Somebody paused it.", None)
    resumed = resume(state.jobs, job_id)
    assert (resumed.is_paused, resumed.waiting_reason, resumed.retry_at) == (False, None, None)


def test_a_waiting_job_goes_on_when_it_is_resumed(state: State) -> None:
    job_id = waiting(state)
    assert pause(state.jobs, job_id).is_paused
    resumed = resume(state.jobs, job_id)
    assert not resumed.is_paused and resumed.retry_at is not None and resumed.retry_at <= time.time()


def test_pausing_a_job_that_waits_for_its_next_attempt_takes_the_attempt_away(state: State) -> None:
    job_id = waiting(state, retry_at=time.time() + 60)
    assert pause(state.jobs, job_id).retry_at is None


def test_a_wish_joins_the_transaction_of_its_caller(state: State) -> None:
    job_id = insert(state)

    def fail_after(connection: sa.Connection) -> None:
        cancel(state.jobs, job_id, connection=connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        state.database.write_grouped(fail_after)
    assert state.jobs.read(job_id).state is JobState.ACCEPTED
