"""One death each: what the service and its successor promise, with the time they take."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Killed, broken_promises
from tunesmith.spec.jobs import JobState

pytestmark = pytest.mark.servers

Ask = Callable[..., dict[str, Any]]
RUNNING_AGAIN_SECONDS = 15
CANCELED_SECONDS = 10
IMPORT_SECONDS = 0.9  # of the server's modules, on two idle cores
LONG = {"epochs": 500}  # it ends only by what the test does to it


def is_in(home: Killed, job_id: str, state: JobState) -> Callable[[], bool]:
    return lambda: home.state.jobs.read(job_id).state is state


def trains(home: Killed, job_id: str, *, more_than: int = 0) -> Callable[[], bool]:
    """Whether so many steps stand in its log."""
    return lambda: len(home.state.jobs.events(job_id, kinds=["step"])) > more_than


def attempts(home: Killed, job_id: str) -> int:
    return len(home.state.jobs.events(job_id, kinds=["attempt"]))


def test_a_submission_survives_a_kill_right_after_its_answer(home: Killed, ask: Ask) -> None:
    home.start()
    job_id = home.submit(**ask())
    home.kill_server()
    assert home.state.jobs.read(job_id).state in (JobState.ACCEPTED, JobState.IN_PROGRESS)
    assert broken_promises(home) == []
    home.start()
    home.wait(is_in(home, job_id, JobState.SUCCEEDED), "the next service runs it")
    assert broken_promises(home) == []


def test_the_next_service_follows_the_worker_of_a_killed_one_to_its_end(home: Killed, ask: Ask) -> None:
    home.start()
    job_id = home.submit(**ask(epochs=40))
    home.wait(trains(home, job_id), "it trains")
    pid = home.state.jobs.read(job_id).worker_pid
    home.kill_server()
    assert [worker.pid for worker in home.workers()] == [pid], "the worker runs on"
    home.start()
    home.wait(is_in(home, job_id, JobState.SUCCEEDED), "the same worker brings it to its end")
    assert attempts(home, job_id) == 1 and home.state.jobs.read(job_id).attempts == 1
    assert broken_promises(home) == []


def test_a_service_that_is_stopped_leaves_its_workers_running(home: Killed, ask: Ask) -> None:
    home.start()
    job_id = home.submit(**ask(**LONG))
    home.wait(trains(home, job_id), "it trains")
    home.stop_server()
    record = home.state.jobs.read(job_id)
    assert record.state is JobState.IN_PROGRESS and record.phase in ("training", "evaluating")
    assert [worker.pid for worker in home.workers()] == [record.worker_pid]
    home.start()
    seen = len(home.state.jobs.events(job_id, kinds=["step"]))
    home.wait(trains(home, job_id, more_than=seen), "its events come on")
    assert attempts(home, job_id) == 1


@pytest.mark.parametrize("with_server", [False, True], ids=["worker", "worker and service"])
def test_a_dead_workers_job_runs_again_within_fifteen_seconds(home: Killed, ask: Ask, with_server: bool) -> None:
    home.start()
    job_id = home.submit(**ask(**LONG))
    home.wait(trains(home, job_id), "it trains")
    pid = home.state.jobs.read(job_id).worker_pid
    assert pid is not None
    limit = RUNNING_AGAIN_SECONDS * slowness()
    os.kill(pid, signal.SIGKILL)
    if with_server:
        home.kill_server()
        home.start()
    home.wait(lambda: attempts(home, job_id) == 2, "it runs again", seconds=limit)
    assert broken_promises(home) == []


def test_a_running_job_is_cancelled_within_ten_seconds_and_leaves_no_process(home: Killed, ask: Ask) -> None:
    home.start()
    job_id = home.submit(**ask(**LONG))
    home.wait(trains(home, job_id), "it trains")
    limit = CANCELED_SECONDS * slowness()
    home.wish(job_id, "cancel")
    home.wait(is_in(home, job_id, JobState.CANCELED), "it is cancelled", seconds=limit)
    assert home.processes() == []
    assert broken_promises(home) == []


def test_a_cancel_whose_service_was_killed_is_finished_by_the_next(home: Killed, ask: Ask) -> None:
    home.start()
    job_id = home.submit(**ask(**LONG))
    home.wait(trains(home, job_id), "it trains")
    limit = CANCELED_SECONDS * slowness()
    assert home.ask("POST", f"/api/jobs/{job_id}/cancel").json()["state"] == "CANCELING"
    home.kill_server()
    home.start()
    home.wait(is_in(home, job_id, JobState.CANCELED), "it is cancelled", seconds=limit)
    assert home.processes() == []


def test_a_paused_job_frees_its_device_and_goes_on_from_its_checkpoint(home: Killed, ask: Ask) -> None:
    home.cpu_jobs = 1
    home.start()
    first = home.submit(**ask(**LONG))
    second = home.submit(**ask())
    home.wait(trains(home, first, more_than=5), "the first trains")
    assert home.state.jobs.read(second).state is JobState.ACCEPTED, "the CPU holds one"
    home.wish(first, "pause")
    home.wait(is_in(home, second, JobState.SUCCEEDED), "the second runs while the first is paused")
    record = home.state.jobs.read(first)
    assert (record.state, record.phase, record.worker_pid) == (JobState.IN_PROGRESS, "waiting", None)
    home.wish(first, "resume")
    home.wait(lambda: attempts(home, first) == 2, "it goes on")
    last = home.state.jobs.events(first, kinds=["attempt"], newest=True, limit=1)[0].event
    assert last.kind == "attempt" and last.resumed_at > 0


def test_a_job_over_its_limit_of_time_fails_and_says_so(home: Killed, ask: Ask) -> None:
    home.start()
    job_id = home.submit(**ask(**LONG), run_limit_seconds=6)
    home.wait(is_in(home, job_id, JobState.FAILED), "it fails")
    failure = home.state.jobs.read(job_id).failure
    assert failure is not None and failure["code"] == "RUN_LIMIT"
    assert home.processes() == []


def test_what_the_preparation_refuses_fails_the_job_with_that_reason(home: Killed, ask: Ask, tmp_path: Path) -> None:
    rows = tmp_path / "bad.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    home.start()
    job_id = home.submit(**ask(dataset=str(rows)))
    home.wait(is_in(home, job_id, JobState.FAILED), "it fails")
    record = home.state.jobs.read(job_id)
    assert record.failure is not None and "line 2" in record.failure["message"]
    assert record.attempts == 0
    assert broken_promises(home) == []


def test_two_jobs_train_at_a_time_where_the_cpu_may_hold_two(home: Killed, ask: Ask) -> None:
    home.start()
    jobs = [home.submit(**ask(**LONG)) for _ in range(3)]
    home.wait(lambda: trains(home, jobs[0])() and trains(home, jobs[1])(), "two train")
    home.wait(lambda: {worker.job_id for worker in home.workers()} == set(jobs[:2]), "each has its worker")
    assert home.state.jobs.read(jobs[2]).state is JobState.ACCEPTED, "the third waits"


def test_the_server_serves_within_two_seconds_of_its_start(home: Killed) -> None:
    home.start()
    home.kill_server()
    limit = 2 * slowness()
    begin = time.monotonic()
    home.start()
    took = time.monotonic() - begin
    limit = max(limit, 2 * slowness())  # it is busy by turns
    assert took < limit, "started on an idle machine this takes 1.4 seconds"


def slowness() -> float:
    """How many times longer than on the idle machine of the promises a process takes to start, with room for turns."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tunesmith.server.run"], check=True)
    return 2 * max(1.0, (time.monotonic() - begin) / IMPORT_SECONDS)
