from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tunesmith.errors import MachineCannot, TunesmithError, Unknown
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import new_job_id, now
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import JobStore, Lease, LeaseLost, NewJob, owner_may_live, this_process
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.jobs import FINAL_STATES, MOVES, JobRecord, JobState
from tunesmith.spec.metrics import NoticeEvent, PhaseEvent, StateEvent
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.tables import JOBS, MODEL_VERSIONS

WAYS: dict[JobState, list[JobState]] = {
    JobState.ACCEPTED: [],
    JobState.IN_PROGRESS: [JobState.IN_PROGRESS],
    JobState.CANCELING: [JobState.IN_PROGRESS, JobState.CANCELING],
    JobState.SUCCEEDED: [JobState.IN_PROGRESS, JobState.SUCCEEDED],
    JobState.FAILED: [JobState.IN_PROGRESS, JobState.FAILED],
    JobState.CANCELED: [JobState.CANCELED],
}


@pytest.fixture
def store(state: State) -> JobStore:
    return state.jobs


def new_job(state: State, **changes: Any) -> NewJob:
    fields = {
        "job_id": new_job_id(), "request": FinetuneRequest(model="tiny", dataset="rows.jsonl"),
        "settings": TrainingSettings(), "version_set": "tiny-rows", "results_uri": None,
        "results_root": state.home.results, "base_name": "tiny",
    }  # fmt: skip
    return NewJob(**(fields | changes))


def insert(state: State, *, above: int = 0, **changes: Any) -> JobRecord:
    with state.database.write() as connection:
        return state.jobs.insert(connection, new_job(state, **changes), above=above)


def version_of(state: State, record: JobRecord) -> sa.Row[Any]:
    with state.database.read() as connection:
        return connection.execute(
            sa.select(MODEL_VERSIONS).where(MODEL_VERSIONS.c.model_version == record.model_version)
        ).one()


def dead_owner() -> str:
    """A process of this host that is gone."""
    done = subprocess.run(
        [sys.executable, "-c", "from tunesmith.jobs.store import this_process; print(this_process())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


# ---- submission


def test_a_submission_is_a_job_and_a_version_that_is_being_made(state: State) -> None:
    record = insert(state, command=["tunesmith", "finetune"])
    assert (record.state, record.model_version, record.num_events) == (JobState.ACCEPTED, "tiny-rows:1", 1)
    assert record.results_uri == (state.home.results / "tiny-rows" / "1").as_uri()
    assert record.name == "tiny-rows:1" and record.command == ["tunesmith", "finetune"]
    assert version_of(state, record).state == VersionState.CREATING
    assert [each.event for each in state.jobs.events(record.job_id)] == [
        StateEvent(time=record.created_at, state="ACCEPTED", previous=None)
    ]
    request, settings = state.jobs.asked(record.job_id)
    assert (request.model, settings) == ("tiny", TrainingSettings())


def test_a_submission_that_is_undone_leaves_no_job_and_no_number(state: State) -> None:
    def refused(connection: sa.Connection) -> None:
        state.jobs.insert(connection, new_job(state))
        raise RuntimeError("the folder could not be written")

    with pytest.raises(RuntimeError):
        state.database.write_grouped(refused)
    assert state.jobs.records() == []
    assert insert(state).model_version == "tiny-rows:1"


def test_version_numbers_are_never_given_twice(state: State) -> None:
    given: list[str] = []

    def submit() -> None:
        record = state.database.write_grouped(lambda connection: state.jobs.insert(connection, new_job(state)))
        given.append(record.model_version)

    threads = [threading.Thread(target=submit) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given, key=lambda name: int(name[10:])) == [f"tiny-rows:{number}" for number in range(1, 17)]
    assert insert(state, version_set="other").model_version == "other:1"


def test_a_lost_database_goes_on_behind_the_results_that_are_there(state: State) -> None:
    (state.home.results / "tiny-rows" / "7").mkdir(parents=True)
    assert insert(state, above=state.highest_result("tiny-rows")).model_version == "tiny-rows:8"
    assert insert(state, above=state.highest_result("tiny-rows")).model_version == "tiny-rows:9"


def test_one_fault_in_a_group_of_submissions_undoes_its_own_part_alone(state: State) -> None:
    outcomes: list[str] = []
    holding, waiting = threading.Event(), threading.Event()

    def first(connection: sa.Connection) -> None:
        holding.set()
        waiting.wait(10)
        state.jobs.insert(connection, new_job(state))

    def submit(work: Callable[[sa.Connection], Any]) -> None:
        try:
            state.database.write_grouped(work)
            outcomes.append("done")
        except RuntimeError:
            outcomes.append("undone")

    def faulty(connection: sa.Connection) -> None:
        state.jobs.insert(connection, new_job(state))
        raise RuntimeError("refused")

    leader = threading.Thread(target=submit, args=(first,))
    leader.start()
    assert holding.wait(10)
    works = [faulty, lambda connection: state.jobs.insert(connection, new_job(state)), faulty]
    others = [threading.Thread(target=submit, args=(work,)) for work in works]
    for thread in others:
        thread.start()
    waiting.set()
    for thread in (leader, *others):
        thread.join()
    assert sorted(outcomes) == ["done", "done", "undone", "undone"]
    assert [record.model_version for record in state.jobs.records()] == ["tiny-rows:2", "tiny-rows:1"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["write_grouped", "write_soon"])
def test_a_submission_that_was_answered_survives_a_kill(home: Home, way: str) -> None:
    script = """
import asyncio, inspect, os, signal, sys
from pathlib import Path
from tunesmith.jobs.home import Home
from tunesmith.jobs.state import open_state
from tests.jobs.test_store import new_job
state = open_state(Home(root=Path(sys.argv[1])))
write = getattr(state.database, sys.argv[2])
for _ in range(20):
    record = write(lambda connection: state.jobs.insert(connection, new_job(state)))
    if inspect.iscoroutine(record):
        record = asyncio.run(record)
    os.write(1, (record.job_id + "\\n").encode())
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.root), way], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    answered = done.stdout.split()
    assert len(answered) == 20, done.stderr
    assert [record.job_id for record in open_state(home).jobs.records()] == answered[::-1]


@pytest.mark.slow
def test_processes_that_make_the_database_together_share_it(home: Home) -> None:
    script = """
import sys
from pathlib import Path
from tunesmith.jobs.home import Home
from tunesmith.jobs.state import open_state
from tests.jobs.test_store import insert
for _ in range(5):
    print(insert(open_state(Home(root=Path(sys.argv[1])))).model_version)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(home.root)], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(4)
    ]  # fmt: skip
    given = [line for process in processes for line in process.communicate()[0].split()]
    assert sorted(given) == sorted(f"tiny-rows:{number}" for number in range(1, 21))


def test_jobs_are_listed_newest_first_by_state_and_page_by_page(state: State) -> None:
    jobs = [insert(state).job_id for _ in range(5)]
    state.jobs.move(jobs[1], JobState.CANCELED, lease=None)
    assert [record.job_id for record in state.jobs.records()] == jobs[::-1]
    assert [record.job_id for record in state.jobs.records(states=[JobState.CANCELED])] == [jobs[1]]
    assert [record.job_id for record in state.jobs.records(before=jobs[3], limit=2)] == [jobs[2], jobs[1]]
    assert state.jobs.records(project="other") == []


# ---- moves


@pytest.mark.parametrize(("before", "after"), list(itertools.product(JobState, JobState)))
def test_every_pair_of_states_is_a_move_of_the_table_or_refused(
    state: State, before: JobState, after: JobState
) -> None:
    record = insert(state)
    lease, _ = state.jobs.acquire(record.job_id, owner=this_process())
    for step in WAYS[before]:
        record = state.jobs.move(record.job_id, step, lease=lease)
    assert record.state is before
    told = state.jobs.events(record.job_id)
    version = version_of(state, record)
    if after in MOVES[before]:
        moved = state.jobs.move(record.job_id, after, lease=lease)
        assert moved == state.jobs.read(record.job_id) and moved.state is after
        event = state.jobs.events(record.job_id)[-1].event
        assert isinstance(event, StateEvent) and (event.previous, event.state) == (before, after)
        assert (moved.finished_at is not None) == (after in FINAL_STATES)
        expected = {JobState.SUCCEEDED: "ACTIVE", JobState.FAILED: "FAILED", JobState.CANCELED: "CANCELED"}
        assert version_of(state, record).state == expected.get(after, "CREATING")
    else:
        with pytest.raises(TunesmithError) as caught:
            state.jobs.move(record.job_id, after, lease=lease)
        assert caught.value.code == "FORBIDDEN_MOVE"
        assert state.jobs.read(record.job_id) == record
        assert state.jobs.events(record.job_id) == told and version_of(state, record) == version


def test_the_table_of_ways_reaches_every_state() -> None:
    assert WAYS.keys() == set(JobState)


def test_a_move_that_fails_half_way_changes_nothing(state: State) -> None:
    record = insert(state)
    lease, _ = state.jobs.acquire(record.job_id, owner=this_process())
    before = state.jobs.move(record.job_id, JobState.IN_PROGRESS, lease=lease)
    with state.database.write() as connection:  # somebody broke the version behind our back
        connection.execute(MODEL_VERSIONS.update().values(state=VersionState.DELETED))
    with pytest.raises(TunesmithError):
        state.jobs.move(record.job_id, JobState.SUCCEEDED, lease=lease, artifact_uri="file:///x")
    assert state.jobs.read(record.job_id) == before


def test_a_final_state_leaves_no_worker_no_phase_and_no_reason(state: State) -> None:
    record = insert(state)
    lease, _ = state.jobs.acquire(record.job_id, owner=this_process())
    state.jobs.move(record.job_id, JobState.IN_PROGRESS, lease=lease, phase="training")
    state.jobs.update(lease, worker_pid=5, worker_started_at=1.0, waiting_reason="x", retry_at=1.0)
    done = state.jobs.move(record.job_id, JobState.SUCCEEDED, lease=lease, version={"artifact_uri": "file:///a"})
    assert (done.phase, done.worker_pid, done.waiting_reason, done.retry_at) == (None, None, None, None)
    assert version_of(state, record).artifact_uri == "file:///a"


# ---- the lease


def expire(state: State, job_id: str) -> None:
    with state.database.write() as connection:
        connection.execute(JOBS.update().where(JOBS.c.job_id == job_id).values(lease_until=time.time() - 1))


WRITES: dict[str, Callable[[JobStore, Lease, Path], object]] = {
    "renew": lambda store, lease, _: store.renew(lease),
    "update": lambda store, lease, _: store.update(lease, phase="training"),
    "move": lambda store, lease, _: store.move(lease.job_id, JobState.IN_PROGRESS, lease=lease),
    "say": lambda store, lease, _: store.say(lease, PhaseEvent(time=now(), phase="training")),
    "take_over": lambda store, lease, file: store.take_over(lease, file),
    "describe_version": lambda store, lease, _: store.describe_version(lease, metrics=TrainingSettings()),
}


@pytest.mark.parametrize("write", WRITES)
def test_an_old_fence_writes_nothing(state: State, tmp_path: Path, write: str) -> None:
    record = insert(state)
    old, _ = state.jobs.acquire(record.job_id, owner=this_process())
    expire(state, record.job_id)
    state.jobs.acquire(record.job_id, owner="elsewhere/1/1.0")
    before = state.jobs.read(record.job_id), state.jobs.events(record.job_id), version_of(state, record)
    file = tmp_path / "events.jsonl"
    file.write_text(PhaseEvent(time=now(), phase="training").model_dump_json() + "\n")
    with pytest.raises(LeaseLost):
        WRITES[write](state.jobs, old, file)
    after = state.jobs.read(record.job_id), state.jobs.events(record.job_id), version_of(state, record)
    assert after == before


@pytest.mark.parametrize("write", WRITES)
def test_the_holder_of_the_lease_writes(state: State, tmp_path: Path, write: str) -> None:
    record = insert(state)
    lease, _ = state.jobs.acquire(record.job_id, owner=this_process())
    file = tmp_path / "events.jsonl"
    file.write_text(PhaseEvent(time=now(), phase="training").model_dump_json() + "\n")
    WRITES[write](state.jobs, lease, file)


def test_an_old_lease_gives_nothing_back(state: State) -> None:
    job_id = insert(state).job_id
    old, _ = state.jobs.acquire(job_id, owner=this_process())
    expire(state, job_id)
    state.jobs.acquire(job_id, owner=this_process())
    state.jobs.release(old)
    with pytest.raises(MachineCannot) as caught:
        state.jobs.acquire(job_id, owner=this_process())
    assert caught.value.code == "JOB_BUSY"


def test_a_live_lease_is_busy_until_it_is_given_back(state: State) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    with pytest.raises(MachineCannot) as caught:
        state.jobs.acquire(job_id, owner="elsewhere/1/1.0")
    assert caught.value.code == "JOB_BUSY" and job_id in caught.value.message
    state.jobs.release(lease)
    again, _ = state.jobs.acquire(job_id, owner="elsewhere/1/1.0")
    assert again.fence == lease.fence + 1


@pytest.mark.slow
def test_the_lease_of_a_dead_process_is_free_at_once(state: State) -> None:
    job_id = insert(state).job_id
    owner = dead_owner()
    assert not owner_may_live(owner) and owner_may_live(this_process())
    state.jobs.acquire(job_id, owner=owner)
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    assert lease.fence == 2


def test_an_owner_on_another_machine_may_live_until_its_lease_lapses(state: State) -> None:
    assert owner_may_live("elsewhere/1/1.0")
    host, pid, started_at = this_process().rsplit("/", 2)
    assert not owner_may_live(f"{host}/{pid}/{float(started_at) - 60}"), "a pid that is used again"


def test_of_many_that_want_a_lease_one_gets_it(state: State) -> None:
    job_id = insert(state).job_id
    got: list[str] = []

    def want() -> None:
        try:
            state.jobs.acquire(job_id, owner=this_process())
            got.append("lease")
        except MachineCannot as error:
            got.append(error.code)

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["JOB_BUSY"] * 7 + ["lease"]


def test_the_lease_of_an_unknown_job_cannot_be_taken(store: JobStore) -> None:
    with pytest.raises(Unknown):
        store.acquire("job-000000000000", owner=this_process())


def test_a_record_keeps_what_is_not_changed(state: State) -> None:
    job_id = insert(state).job_id
    lease, before = state.jobs.acquire(job_id, owner=this_process())
    failure = {"code": "X", "message": "m", "field": None, "hint": None}
    after = state.jobs.update(lease, phase="training", failure=failure)
    assert after == state.jobs.read(job_id)
    assert after.model_dump() == before.model_dump() | {"phase": "training", "failure": failure}


# ---- events


def step_line(number: int) -> bytes:
    return json.dumps(
        {
            "time": "2026-01-01T00:00:00Z", "kind": "step", "step": number, "steps": 9, "epoch": 1, "loss": 2.0,
            "learning_rate": 1e-4, "gradient_norm": 1.0, "tokens": 1, "learned_tokens": 1, "tokens_per_second": 1.0,
            "memory_bytes": 1, "eta_seconds": 1.0,
        }
    ).encode() + b"\n"  # fmt: skip


def steps_of(state: State, job_id: str) -> list[int]:
    return [each.event.step for each in state.jobs.events(job_id) if each.event.kind == "step"]


def test_each_line_of_the_worker_is_taken_over_once(state: State, tmp_path: Path) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    file = tmp_path / "events.jsonl"
    assert state.jobs.take_over(lease, file) == []
    file.write_bytes(step_line(1) + step_line(2) + step_line(3)[:20])
    assert [each.number for each in state.jobs.take_over(lease, file)] == [2, 3]
    assert state.jobs.take_over(lease, file) == [], "a line without its end is not yet an event"
    state.jobs.say(lease, NoticeEvent(time=now(), code="OURS", message="between"))
    file.write_bytes(step_line(1) + step_line(2) + step_line(3) + step_line(4))
    state.jobs.take_over(lease, file)
    expire(state, job_id)
    other, _ = state.jobs.acquire(job_id, owner=this_process())
    assert state.jobs.take_over(other, file) == []
    assert steps_of(state, job_id) == [1, 2, 3, 4]
    assert [each.number for each in state.jobs.events(job_id)] == [1, 2, 3, 4, 5, 6]
    assert state.jobs.read(job_id).num_events == 6


def test_a_line_that_a_dying_worker_cut_is_told_and_skipped(state: State, tmp_path: Path) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    file = tmp_path / "events.jsonl"
    file.write_bytes(step_line(1) + step_line(2)[:30])
    state.jobs.take_over(lease, file)
    with file.open("ab") as handle:  # the next worker closes the torn line
        handle.write(b"\n\xff\xfe\n\n" + step_line(2))
    kinds = [each.event.kind for each in state.jobs.take_over(lease, file)]
    assert kinds == ["notice", "notice", "step"]
    assert [each.event.code for each in state.jobs.events(job_id, kinds=["notice"]) if each.event.kind == "notice"] == [
        "EVENT_CUT", "EVENT_CUT",
    ]  # fmt: skip


def test_a_long_log_is_taken_over_in_blocks_whatever_the_length_of_a_line(state: State, tmp_path: Path) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(step_line(number) for number in range(1, 51)))
    blocks = 0
    while state.jobs.take_over(lease, file, limit_bytes=300):
        blocks += 1
    assert blocks > 10
    assert steps_of(state, job_id) == list(range(1, 51))
    file.write_bytes(file.read_bytes() + step_line(51))
    assert len(state.jobs.take_over(lease, file, limit_bytes=10)) == 1, "a line longer than a block"


def test_the_place_in_the_workers_file_moves_with_its_events_or_not_at_all(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    file = tmp_path / "events.jsonl"
    file.write_bytes(step_line(1) + step_line(2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.jobs.store._insert_events", killed)
        with pytest.raises(KeyboardInterrupt):
            state.jobs.take_over(lease, file)
    assert steps_of(state, job_id) == []
    state.jobs.take_over(lease, file)
    assert steps_of(state, job_id) == [1, 2]


def test_events_are_read_from_a_place_by_kind_and_from_the_end(state: State, tmp_path: Path) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(step_line(number) for number in range(1, 11)))
    state.jobs.take_over(lease, file)
    state.jobs.say(lease, PhaseEvent(time=now(), phase="evaluating"))
    numbers = [each.number for each in state.jobs.events(job_id, after=5, limit=3)]
    assert numbers == [6, 7, 8]
    assert [each.number for each in state.jobs.events(job_id, kinds=["phase", "state"])] == [1, 12]
    assert [each.number for each in state.jobs.events(job_id, kinds=["step"], newest=True, limit=2)] == [10, 11]
    assert state.jobs.events(job_id, after=12) == []


def test_a_full_disk_is_an_os_error_and_nothing_is_half_written(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = insert(state).job_id
    lease, _ = state.jobs.acquire(job_id, owner=this_process())
    with state.database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    long = [NoticeEvent(time=now(), code="LONG", message="x" * 5000)] * 200
    with pytest.raises(OSError) as caught:
        state.jobs.say(lease, *long)
    assert caught.value.errno == 28
    record = state.jobs.read(job_id)
    assert record.num_events == len(state.jobs.events(job_id)) == 1


def test_an_unknown_job_is_named_in_short(state: State) -> None:
    with pytest.raises(Unknown) as caught:
        state.jobs.read("job-" + "x" * 5000)
    assert caught.value.code == "UNKNOWN_JOB" and len(caught.value.message) < 120
