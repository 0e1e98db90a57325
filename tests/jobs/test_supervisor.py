from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.jobs.conftest import submit_job
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.catalog import logs
from tunesmith.catalog.quotas import change_quotas
from tunesmith.errors import InputRefused, JobFailed, MachineCannot, TunesmithError
from tunesmith.jobs import supervisor
from tunesmith.jobs.events import read_history
from tunesmith.jobs.home import Home
from tunesmith.jobs.launcher import is_running, process_clock, process_started_at
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import JobStore, Lease, LeaseLost, this_process
from tunesmith.jobs.supervisor import Ended, Ending, StopWish, run_job
from tunesmith.jobs.wishes import cancel, pause, resume
from tunesmith.spec.artifacts import Manifest
from tunesmith.spec.catalog import NewLog, VersionMetrics
from tunesmith.spec.jobs import JobRecord, JobState
from tunesmith.spec.metrics import AnyEvent
from tunesmith.spec.quotas import QuotaChange
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.verdict import Verdict
from tunesmith.storage.publish import publish
from tunesmith.storage.tables import JOBS, LOGS, MODEL_VERSIONS

pytestmark = pytest.mark.slow  # starts processes, or waits for wishes to be seen

Worker = Callable[[str], Callable[[Path], list[str]]]


def state_of(job: JobFolder) -> State:
    """As another process opens it."""
    return open_state(Home(root=job.path.parents[1]))


def run(
    job: JobFolder,
    command: Callable[[Path], list[str]],
    wish: StopWish | None = None,
    prepare: Callable[[Lease, JobRecord], JobRecord] | None = None,
) -> tuple[Ended, list[AnyEvent]]:
    heard: list[AnyEvent] = []
    ended = run_job(
        job,
        state=state_of(job),
        environment=os.environ,
        on_event=heard.append,
        wish=wish or StopWish(),
        command=command,
        prepare=prepare,
    )
    return ended, heard


def read_record(job: JobFolder) -> JobRecord:
    return state_of(job).jobs.read(job.job_id)


def wait_for(path: Path) -> None:
    until(path.exists, str(path))


def test_a_run_ends_with_a_published_artifact_and_its_figures(job: JobFolder, worker: Worker, tmp_path: Path) -> None:
    ended, heard = run(job, worker("works"))
    assert ended.ending is Ending.SUCCEEDED and ended.error is None
    result = ended.result
    assert result.state is JobState.SUCCEEDED
    assert result.artifact_uri == (tmp_path / "results").as_uri()
    assert (tmp_path / "results" / "curves" / "loss.svg").read_text() == "<svg/>"
    assert result.base is not None and result.base.training.loss == 2.0
    assert [epoch.epoch for epoch in result.epochs] == [1]
    assert (result.best_epoch, result.tokens_per_second, result.peak_memory_bytes) == (1, 100.0, 12345)
    assert result.rows is not None and result.rows.training == 90
    assert [event.kind for event in heard].count("step") == 2
    assert read_record(job).state is JobState.SUCCEEDED


def test_a_finished_job_tells_the_same_result_again_and_starts_nothing(job: JobFolder, worker: Worker) -> None:
    first, _ = run(job, worker("works"))
    again, heard = run(job, worker("refuses"))
    assert again.result == first.result
    assert heard == []
    assert (job.path / "starts").read_text() == "x"


def test_a_killed_worker_is_started_again_and_said(job: JobFolder, worker: Worker) -> None:
    ended, heard = run(job, worker("dies once"))
    assert ended.ending is Ending.SUCCEEDED
    notices = {event.code: event.message for event in heard if event.kind == "notice"}
    assert "SIGKILL" in notices["WORKER_RESTARTED"] and "Attempt 2 of 3" in notices["WORKER_RESTARTED"]
    assert "EVENT_CUT" in notices, "the torn line must be said, and skipped"
    assert read_record(job).attempts == 2


def test_a_worker_that_always_dies_fails_the_job_after_three_attempts(job: JobFolder, worker: Worker) -> None:
    ended, _ = run(job, worker("dies always"))
    assert ended.ending is Ending.FAILED
    assert type(ended.error) is JobFailed and ended.error.code == "WORKER_DIED"
    assert (job.path / "starts").read_text() == "xxx"
    assert read_record(job).state is JobState.FAILED
    assert ended.result.artifact_uri is None


def test_the_log_of_a_worker_that_ended_without_a_word_is_quoted(job: JobFolder, worker: Worker) -> None:
    ended, _ = run(job, worker("exits without a word"))
    assert ended.error is not None
    assert "exit code 7" in ended.error.message and "the last words of the log" in ended.error.message


def test_a_log_that_outgrows_its_quota_keeps_its_end_and_says_so(job: JobFolder, worker: Worker) -> None:
    with state_of(job).database.write() as connection:
        change_quotas(connection, "*", QuotaChange(log_bytes=1 << 16), actor="ada")
    ended, heard = run(job, worker("floods its log"))
    assert ended.ending is Ending.SUCCEEDED
    assert [event.kind for event in heard if event.kind == "notice" and event.code == "LOG_CUT"] == ["notice"]
    log = job.worker_log.read_bytes()
    assert len(log) < 2 * (1 << 16), "440,000 bytes were written"
    lines = log.decode().splitlines()
    assert lines[0].startswith("[tunesmith: ") and lines[0].endswith("older bytes of this log were dropped]")
    assert lines[-1].startswith("line 3999 "), "the newest are kept"


def test_a_log_that_outgrows_the_named_log_it_belongs_to_keeps_its_end(state: State, worker: Worker) -> None:
    with state.database.write() as connection:
        logs.add_log(connection, NewLog(name="small"), actor="ada")
        connection.execute(LOGS.update().values(maximum_bytes=1 << 16))  # less than one may ask for
    request = FinetuneRequest(model="tiny", dataset="rows.jsonl", log="small")
    job = submit_job(state, results=None, request=request)
    ended, heard = run(job, worker("floods its log"))
    assert ended.ending is Ending.SUCCEEDED
    assert [event.kind for event in heard if event.kind == "notice" and event.code == "LOG_CUT"] == ["notice"]
    assert job.worker_log.read_bytes().startswith(b"[tunesmith: ")


def test_a_worker_that_asks_for_another_attempt_gets_it(job: JobFolder, worker: Worker) -> None:
    ended, heard = run(job, worker("asks for another attempt"))
    assert ended.ending is Ending.SUCCEEDED
    assert any(event.kind == "notice" and "FLAKY" in event.message for event in heard)


def test_a_fault_of_the_users_is_not_tried_again(job: JobFolder, worker: Worker) -> None:
    ended, _ = run(job, worker("refuses"))
    assert ended.ending is Ending.FAILED
    assert type(ended.error) is InputRefused and ended.error.code == "BAD_ROWS"
    assert (job.path / "starts").read_text() == "x"
    assert ended.result.failure is not None and ended.result.failure["code"] == "BAD_ROWS"


def test_a_full_disk_leaves_the_job_waiting_and_resume_finishes_it(job: JobFolder, worker: Worker) -> None:
    ended, _ = run(job, worker("disk full once"))
    assert ended.ending is Ending.WAITING
    assert type(ended.error) is MachineCannot and f"job resume {job.job_id}" in (ended.error.hint or "")
    record = read_record(job)
    assert (record.state, record.phase) == (JobState.IN_PROGRESS, "waiting")
    again, _ = run(job, worker("disk full once"))
    assert again.ending is Ending.SUCCEEDED and again.result.failure is None


@pytest.mark.parametrize("unwritten", ["worker_pid", "phase"])
def test_a_disk_too_full_for_our_own_record_leaves_the_job_resumable_and_no_worker(
    job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch, unwritten: str
) -> None:
    started: list[int] = []

    update = JobStore.update

    def written_until_full(store: JobStore, lease: Lease, **changes: Any) -> JobRecord:
        started.extend([changes["worker_pid"]] if changes.get("worker_pid") else [])
        if changes.get(unwritten):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return update(store, lease, **changes)

    monkeypatch.setattr(JobStore, "update", written_until_full)
    ended, _ = run(job, worker("waits"))
    monkeypatch.undo()
    assert ended.ending is Ending.WAITING and ended.result.state is JobState.IN_PROGRESS
    assert type(ended.error) is MachineCannot and ended.error.code == "DISK_FULL"
    assert f"job resume {job.job_id}" in (ended.error.hint or "")
    assert ended.result.failure == ended.error.form()
    until_gone(started[0])
    again, _ = run(job, worker("works"))
    assert again.ending is Ending.SUCCEEDED and again.result.failure is None


def test_a_model_that_is_not_usable_fails_the_job_and_keeps_its_artifact(job: JobFolder, worker: Worker) -> None:
    ended, _ = run(job, worker("not usable"))
    assert ended.ending is Ending.FAILED
    assert type(ended.error) is JobFailed and ended.error.code == "NOT_USABLE"
    assert ended.result.state is JobState.FAILED
    assert ended.result.artifact_uri is not None and ended.result.verdict is not None


def test_a_worker_killed_between_manifest_and_last_event_writes_both_again(job: JobFolder, worker: Worker) -> None:
    ended, _ = run(job, worker("dies before its last event"))
    assert ended.ending is Ending.SUCCEEDED and ended.result.best_epoch == 1
    assert (job.path / "starts").read_text() == "xx"


def stop_when_ready(job: JobFolder, wish: StopWish, *, times: int) -> threading.Thread:
    def stop() -> None:
        wait_for(job.path / "ready")
        for _ in range(times):
            wish.times += 1
            time.sleep(0.3)

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_a_wish_to_stop_checkpoints_and_leaves_the_job_waiting(job: JobFolder, worker: Worker) -> None:
    wish = StopWish()
    thread = stop_when_ready(job, wish, times=1)
    ended, heard = run(job, worker("waits"), wish)
    thread.join()
    assert ended.ending is Ending.STOPPED
    assert [event.code for event in heard if event.kind == "notice"] == ["STOPPING"]
    assert ended.error is not None and ended.error.code == "INTERRUPTED"
    assert f"tunesmith job resume {job.job_id}" in (ended.error.hint or "")
    record = read_record(job)
    assert (record.state, record.phase, record.worker_pid) == (JobState.IN_PROGRESS, "waiting", None)
    assert "after step 1" in (record.waiting_reason or "")
    (job.path / "go").touch()
    assert run(job, worker("waits"))[0].ending is Ending.SUCCEEDED


def test_a_second_wish_to_stop_kills_a_worker_that_ignores_the_first(job: JobFolder, worker: Worker) -> None:
    wish = StopWish()
    thread = stop_when_ready(job, wish, times=2)
    ended, _ = run(job, worker("waits and ignores"), wish)
    thread.join()
    assert ended.ending is Ending.STOPPED
    assert read_record(job).state is JobState.IN_PROGRESS


SUPERVISOR = """
import json, os, sys
from pathlib import Path
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import open_state
from tunesmith.jobs.supervisor import StopWish, listening_for_stop, run_job
wish = StopWish()
folder = JobFolder(path=Path(sys.argv[1]))
with listening_for_stop(wish):
    run_job(folder, state=open_state(Home(root=folder.path.parents[1])), environment=os.environ,
            on_event=lambda event: None, wish=wish, command=lambda job_file: json.loads(sys.argv[2]))
"""


def supervise_in_a_process(job: JobFolder, command: list[str]) -> subprocess.Popen[bytes]:
    import json

    return subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(job.path), json.dumps(command)])


def test_a_killed_supervisor_leaves_its_worker_and_resume_follows_it(job: JobFolder, worker: Worker) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    supervisor.kill()
    supervisor.wait()
    record = read_record(job)
    assert record.worker_pid is not None
    assert is_running(record.worker_pid, started_at=record.worker_started_at)
    (job.path / "go").touch()
    ended, heard = run(job, worker("refuses"))  # a new worker would refuse: the living one is followed
    assert ended.ending is Ending.SUCCEEDED
    assert (job.path / "starts").read_text() == "x"
    assert heard, "the events that were missed are heard"


def test_a_worker_that_died_with_its_supervisor_is_started_again(job: JobFolder, worker: Worker) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    supervisor.kill()
    supervisor.wait()
    pid = read_record(job).worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    (job.path / "go").touch()
    ended, _ = run(job, worker("waits"))
    assert ended.ending is Ending.SUCCEEDED
    assert (job.path / "starts").read_text() == "xx"


def test_a_signal_to_the_supervisor_reaches_the_worker(job: JobFolder, worker: Worker) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0
    assert read_record(job).phase == "waiting"


def test_a_pid_of_another_process_is_not_taken_for_the_worker() -> None:
    started = process_started_at(os.getpid())
    assert started is not None and 0 <= process_clock() - started < 3600 * 24
    assert is_running(os.getpid(), started_at=started)
    assert not is_running(os.getpid(), started_at=started - 60)


def test_two_supervisors_cannot_run_one_job(job: JobFolder, worker: Worker) -> None:
    state_of(job).jobs.acquire(job.job_id, owner=this_process())
    with pytest.raises(MachineCannot) as caught:
        run(job, worker("works"))
    assert caught.value.code == "JOB_BUSY"


def test_a_full_disk_while_publishing_leaves_nothing_and_resume_publishes(
    job: JobFolder, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from tunesmith.storage import publish as publishing

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(publishing.shutil, "copyfileobj", full)
        ended, _ = run(job, worker("works"))
    assert ended.ending is Ending.WAITING and ended.error is not None and ended.error.code == "DISK_FULL"
    assert not (tmp_path / "results").exists()
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    again, _ = run(job, worker("refuses"))  # trained already: only the publishing is left
    assert again.ending is Ending.SUCCEEDED
    assert (tmp_path / "results" / "manifest.json").exists()


def test_history_counts_the_last_report_of_an_epoch(job: JobFolder, worker: Worker) -> None:
    run(job, worker("dies before its last event"))
    history = read_history(state_of(job).jobs, job.job_id)
    assert sorted(history.epochs) == [0, 1]
    assert history.attempts == 2


def version_of(job: JobFolder) -> sa.Row[Any]:
    with state_of(job).database.read() as connection:
        return connection.execute(sa.select(MODEL_VERSIONS).where(MODEL_VERSIONS.c.job_id == job.job_id)).one()


def in_the_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until_gone(pid: int) -> None:
    until(lambda: not is_running(pid, started_at=None), f"process {pid} ends")


def test_success_makes_the_model_version_active_with_its_evidence(
    job: JobFolder, worker: Worker, tmp_path: Path
) -> None:
    assert version_of(job).state == "CREATING"
    run(job, worker("works"))
    version = version_of(job)
    assert (version.state, version.artifact_uri) == ("ACTIVE", (tmp_path / "results").as_uri())
    metrics = VersionMetrics.model_validate_json(version.metrics)
    assert [epoch.epoch for epoch in metrics.epochs] == [0, 1] and metrics.best_epoch == 1
    assert metrics.rows is not None and metrics.rows.training == 90
    assert Manifest.model_validate_json(version.manifest).job_id == job.job_id
    assert Verdict.model_validate_json(version.verdict).outcome == "improved"


def test_the_version_of_a_failed_job_is_failed_and_never_active(job: JobFolder, worker: Worker) -> None:
    run(job, worker("not usable"))
    version = version_of(job)
    assert version.state == "FAILED" and version.artifact_uri is not None


def test_the_metrics_of_an_epoch_stand_at_the_version_before_the_job_ends(job: JobFolder, worker: Worker) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tunesmith.jobs.supervisor.publish", fail)
        run(job, worker("works"))
    version = version_of(job)
    assert version.state == "CREATING"
    assert [epoch.epoch for epoch in VersionMetrics.model_validate_json(version.metrics).epochs] == [0, 1]


def test_the_log_tells_every_state_and_what_control_did(job: JobFolder, worker: Worker) -> None:
    run(job, worker("dies once"))
    events = [each.event for each in state_of(job).jobs.events(job.job_id)]
    assert [event.state for event in events if event.kind == "state"] == ["ACCEPTED", "IN_PROGRESS", "SUCCEEDED"]
    assert events[-1].kind == "state"
    assert "publishing" in [event.phase for event in events if event.kind == "phase"]
    own = job.events.read_text()
    assert "WORKER_RESTARTED" not in own and "publishing" not in own, "the worker's file is the worker's alone"


@pytest.mark.parametrize(("behaviour", "grace"), [("waits", 3600.0), ("waits and ignores", 0.1)])
def test_a_canceled_job_ends_by_itself_or_is_killed_after_its_grace_and_leaves_no_process(
    job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch, behaviour: str, grace: float
) -> None:
    assert supervisor.GRACE_SECONDS <= 5, "a cancel ends within 10 seconds; tests/faults times it"
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", grace)

    def cancel_it() -> None:
        wait_for(job.path / "ready")
        cancel(state_of(job).jobs, job.job_id)

    thread = in_the_background(cancel_it)
    pids: list[int] = []
    ended = run_job(
        job, state=state_of(job), environment=os.environ, wish=StopWish(), command=worker(behaviour),
        on_event=lambda event: pids.append(event.pid) if event.kind == "attempt" else None,
    )  # fmt: skip
    thread.join()
    assert ended.ending is Ending.CANCELED and ended.error is not None and ended.error.code == "CANCELED"
    until_gone(pids[0])
    assert read_record(job).state is JobState.CANCELED and version_of(job).state == "CANCELED"
    again, _ = run(job, worker("works"))
    assert again.ending is Ending.CANCELED and again.result.state is JobState.CANCELED


def test_a_job_that_was_canceled_while_nobody_watched_it_loses_its_worker(job: JobFolder, worker: Worker) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    supervisor.kill()
    supervisor.wait()
    assert cancel(state_of(job).jobs, job.job_id).state is JobState.CANCELING
    pid = read_record(job).worker_pid
    ended, _ = run(job, worker("works"))
    assert ended.ending is Ending.CANCELED
    assert pid is not None
    until_gone(pid)


def test_a_paused_job_checkpoints_and_waits_until_it_is_resumed(job: JobFolder, worker: Worker) -> None:
    def pause_it() -> None:
        wait_for(job.path / "ready")
        pause(state_of(job).jobs, job.job_id)

    thread = in_the_background(pause_it)
    ended, _ = run(job, worker("waits"))
    thread.join()
    assert ended.ending is Ending.STOPPED and ended.error is not None and ended.error.code == "PAUSED"
    record = read_record(job)
    assert (record.phase, record.is_paused, record.worker_pid, record.retry_at) == ("waiting", True, None, None)
    still, _ = run(job, worker("refuses"))
    assert still.ending is Ending.STOPPED, "it waits for who paused it"
    (job.path / "go").touch()
    resume(state_of(job).jobs, job.job_id)
    assert run(job, worker("waits"))[0].ending is Ending.SUCCEEDED


def test_a_job_paused_before_its_start_starts_no_worker(job: JobFolder, worker: Worker) -> None:
    pause(state_of(job).jobs, job.job_id)
    ended, _ = run(job, worker("works"))
    assert ended.ending is Ending.STOPPED and read_record(job).state is JobState.ACCEPTED
    assert not (job.path / "starts").exists()


def test_the_run_limit_counts_the_workers_of_all_attempts(job: JobFolder, worker: Worker) -> None:
    state = state_of(job)
    with state.database.write() as connection:
        connection.execute(JOBS.update().values(run_limit_seconds=100, run_seconds=99.7))
    ended, _ = run(job, worker("waits"))
    assert ended.ending is Ending.FAILED
    assert type(ended.error) is JobFailed and ended.error.code == "RUN_LIMIT"
    assert read_record(job).run_seconds >= 100


def test_the_time_of_each_attempt_is_added_up(job: JobFolder, worker: Worker) -> None:
    run(job, worker("dies once"))
    assert 0 < read_record(job).run_seconds < PATIENCE_SECONDS


def test_a_supervisor_that_is_told_to_go_leaves_the_worker_to_the_next(job: JobFolder, worker: Worker) -> None:
    wish = StopWish()

    def go() -> None:
        wait_for(job.path / "ready")
        wish.is_leaving = True

    thread = in_the_background(go)
    ended, _ = run(job, worker("waits"), wish)
    thread.join()
    assert ended.ending is Ending.LEFT and ended.error is None
    record = read_record(job)
    assert record.worker_pid is not None and is_running(record.worker_pid, started_at=record.worker_started_at)
    (job.path / "go").touch()
    assert run(job, worker("refuses"))[0].ending is Ending.SUCCEEDED
    assert (job.path / "starts").read_text() == "x"


@pytest.mark.slow
def test_a_supervisor_that_lost_its_lease_leaves_the_worker_alone(job: JobFolder, worker: Worker) -> None:
    def take_it() -> None:
        wait_for(job.path / "ready")
        with state_of(job).database.write() as connection:  # at once: a heartbeat in between would keep the lease
            taken = {"fence": JOBS.c.fence + 1, "lease_owner": "elsewhere/1/1.0", "lease_until": time.time() + 1000}
            connection.execute(JOBS.update().values(taken))

    thread = in_the_background(take_it)
    with pytest.raises(LeaseLost):
        run(job, worker("waits"))
    thread.join()
    record = read_record(job)
    assert record.worker_pid is not None and is_running(record.worker_pid, started_at=record.worker_started_at)
    (job.path / "go").touch()
    until_gone(record.worker_pid)


@pytest.mark.slow
def test_the_heartbeat_keeps_the_lease_while_a_publishing_takes_long(
    job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.jobs.supervisor.BEAT_SECONDS", 0.05)
    busy: list[str] = []

    def lease_until() -> float:
        with state_of(job).database.read() as connection:
            return connection.execute(sa.select(JOBS.c.lease_until)).scalar_one()

    def slowly(artifact: Path, target: Path, **_: object) -> Manifest:
        for _beat in range(3):
            last = lease_until()
            until(lambda: lease_until() > last, "the heartbeat renews the lease")  # noqa: B023  # awaited here
        with pytest.raises(MachineCannot) as caught:
            state_of(job).jobs.acquire(job.job_id, owner="elsewhere/1/1.0")
        busy.append(caught.value.code)
        return publish(artifact, target)

    monkeypatch.setattr("tunesmith.jobs.supervisor.publish", slowly)
    assert run(job, worker("works"))[0].ending is Ending.SUCCEEDED
    assert busy == ["JOB_BUSY"]


@pytest.fixture
def queued(state: State, tmp_path: Path) -> JobFolder:
    return submit_job(state, results=tmp_path / "results", is_foreground=False)


def test_a_job_of_the_queue_tries_again_later_and_later(queued: JobFolder, worker: Worker) -> None:
    failed_at = 0.0

    def full(*_: object, **__: object) -> None:
        nonlocal failed_at
        failed_at = time.time()
        raise MachineCannot("DISK_FULL", "The disk is full.", hint="Free some space.")

    waits: list[tuple[float, float]] = []  # at least, at most: the moment was chosen between the two
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tunesmith.jobs.supervisor.publish", full)
        for _ in range(8):
            ended, _ = run(queued, worker("works"))
            assert ended.ending is Ending.WAITING
            retry_at = read_record(queued).retry_at or 0
            waits.append((retry_at - time.time(), retry_at - failed_at))
    for seconds, (least, most) in zip([5, 10, 20, 40, 80, 160, 300, 300], waits, strict=True):
        assert least <= seconds * 1.2 and most >= seconds * 0.8
    assert run(queued, worker("works"))[0].ending is Ending.SUCCEEDED
    assert read_record(queued).retry_at is None


def test_what_only_a_person_can_mend_is_not_tried_again(queued: JobFolder, worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "other").touch()
    ended, _ = run(queued, worker("works"))
    assert ended.ending is Ending.WAITING and ended.error is not None and ended.error.code == "RESULTS_NOT_EMPTY"
    record = read_record(queued)
    assert (record.phase, record.retry_at) == ("waiting", None) and "not empty" in (record.waiting_reason or "")


def unprepared(job: JobFolder) -> Path:
    """Take the job's folder away, as it is before a job of the queue was prepared."""
    return job.path.rename(job.path.parents[2] / "folder")


def test_a_job_that_was_submitted_before_it_was_inspected_is_prepared_first(queued: JobFolder, worker: Worker) -> None:
    kept = unprepared(queued)

    def prepare(lease: Lease, record: JobRecord) -> JobRecord:
        assert (lease.job_id, record.phase) == (queued.job_id, "preparing")
        kept.rename(queued.path)
        return record

    ended, heard = run(queued, worker("works"), prepare=prepare)
    assert ended.ending is Ending.SUCCEEDED
    assert next(event.phase for event in heard if event.kind == "phase") == "preparing"
    again, _ = run(queued, worker("works"), prepare=prepare)
    assert again.result == ended.result


def test_a_refusal_while_preparing_is_the_jobs_failure(queued: JobFolder, worker: Worker) -> None:
    unprepared(queued)

    def prepare(lease: Lease, record: JobRecord) -> JobRecord:
        raise InputRefused("NOT_FINITE", "rows.jsonl line 3: NaN.", field="line 3")

    ended, heard = run(queued, worker("works"), prepare=prepare)
    assert ended.ending is Ending.FAILED and type(ended.error) is InputRefused
    assert ended.result.rows is None and ended.result.failure is not None
    assert [event.error["code"] for event in heard if event.kind == "failure"] == ["NOT_FINITE"]
    assert version_of(queued).state == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize("heeds", [True, False])
def test_a_job_can_be_canceled_while_it_is_prepared(queued: JobFolder, worker: Worker, heeds: bool) -> None:
    unprepared(queued)
    wish, over = StopWish(), threading.Event()

    def prepare(lease: Lease, record: JobRecord) -> JobRecord:
        cancel(state_of(queued).jobs, record.job_id)
        while not over.is_set() and not (heeds and wish.is_wanted):
            time.sleep(0.01)
        raise TunesmithError("INTERRUPTED", "Stopped.")

    ended, _ = run(queued, worker("works"), wish, prepare=prepare)
    over.set()
    assert ended.ending is Ending.CANCELED


def test_a_full_disk_for_the_database_leaves_the_job_resumable(
    job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's own fault, as SQLite raises it when a page cannot be added."""
    real = JobStore.take_over

    def full(store: JobStore, lease: Lease, file: Path) -> Any:
        real(store, lease, file)
        with store.database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            connection.exec_driver_sql("CREATE TABLE filler (x)")
            connection.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(10000000))")

    with monkeypatch.context() as patched:
        patched.setattr(JobStore, "take_over", full)
        ended, _ = run(job, worker("waits"))
    assert ended.ending is Ending.WAITING and ended.error is not None and ended.error.code == "DISK_FULL"
    (job.path / "go").touch()
    again, _ = run(job, worker("waits"))
    assert again.ending is Ending.SUCCEEDED and again.result.failure is None
