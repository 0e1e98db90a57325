"""The queue's own decisions, with a supervisor that waits until it is told how its job ends.

What the real one does with real workers is in `tests/faults`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.test_slots import machine
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.jobs import service as service_module
from tunesmith.jobs.home import open_home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.service import JobService
from tunesmith.jobs.slots import Devices
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import NewJob, this_process
from tunesmith.jobs.supervisor import Ended, Ending, StopWish
from tunesmith.spec.jobs import JobState
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.tables import JOBS

pytestmark = pytest.mark.slow  # the queue looks every tenth of a second
GONE = "/1/12.5"  # an owner of this host that is no process: pid 1 started at another time


@dataclass(slots=True)
class Supervisor:
    """Stands in for `run_job`: takes the lease, starts the job, and ends it as the test says."""

    state: State
    started: list[str] = field(default_factory=list[str])
    environments: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    endings: dict[str, Ending | Exception] = field(default_factory=dict[str, Ending | Exception])
    left: list[str] = field(default_factory=list[str])

    def __call__(self, folder: JobFolder, *, environment: Any, wish: StopWish, **_: Any) -> Ended:
        job_id = folder.job_id
        lease, record = self.state.jobs.acquire(job_id, owner=this_process())
        try:
            self.started.append(job_id)
            self.environments[job_id] = dict(environment)
            if record.state is JobState.ACCEPTED:
                self.state.jobs.move(job_id, JobState.IN_PROGRESS, lease=lease, phase="training")
            while job_id not in self.endings and not wish.is_leaving:
                time.sleep(0.005)
            ending = self.endings.get(job_id, Ending.LEFT)
            if isinstance(ending, Exception):
                raise ending
            if ending is Ending.LEFT:
                self.left.append(job_id)
            if ending is Ending.STOPPED:
                self.state.jobs.update(lease, phase="waiting", waiting_reason="It was stopped.")
            final = {Ending.SUCCEEDED: JobState.SUCCEEDED, Ending.CANCELED: JobState.CANCELED}.get(ending)
            if final is not None:
                self.state.jobs.move(job_id, final, lease=lease)
            return Ended(ending=ending, result=None, error=None)  # type: ignore[arg-type]  # the queue reads the ending
        finally:
            self.state.jobs.release(lease)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))


@pytest.fixture
def supervisor(state: State) -> Supervisor:
    return Supervisor(state)


Make = Callable[..., JobService]


@pytest.fixture
def make(state: State, supervisor: Supervisor) -> Iterator[Make]:
    """A started service on a machine without a GPU; stopped at the end."""
    made: list[JobService] = []

    def start(found: Any = None, *, cpu_jobs: int = 1, **options: Any) -> JobService:
        devices = Devices({}, cpu_jobs=cpu_jobs, read_machine=lambda _: found or machine())
        service = JobService(state, {}, devices=devices, supervise=supervisor, **options)
        made.append(service)
        service.start()
        return service

    yield start
    for service in made:
        service.stop()


def add(at: State, job_id: str, *, is_foreground: bool = False, project: str = "default", priority: int = 0,
        **columns: Any) -> str:  # fmt: skip
    new = NewJob(
        job_id=job_id, request=FinetuneRequest(model="m", dataset="d.jsonl"), settings=TrainingSettings(),
        version_set="m-d", results_uri=None, results_root=at.home.results, base_name="m", project=project,
        priority=priority, is_foreground=is_foreground,
    )  # fmt: skip
    at.database.write_grouped(lambda connection: at.jobs.insert(connection, new))
    if columns:
        with at.database.write() as connection:
            connection.execute(JOBS.update().where(JOBS.c.job_id == job_id).values(columns))
    return job_id


def wait_for(condition: Callable[[], bool]) -> None:
    until(condition, "what the queue is to do")


def looked_twice(service: JobService, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Wait until the loop has had two whole looks since now."""
    looks = threading.Semaphore(0)
    look = service._look

    def counted() -> None:
        look()
        looks.release()

    service._look = counted  # type: ignore[method-assign]
    for _ in range(3):  # the first may have begun before
        service.wake()
        assert looks.acquire(timeout=PATIENCE_SECONDS)
    service._look = look  # type: ignore[method-assign]


def test_jobs_run_one_by_one_and_projects_take_turns(state: State, supervisor: Supervisor, make: Make) -> None:
    for number, project in enumerate(["a", "a", "a", "b"]):
        supervisor.endings[add(state, f"job-{number}", project=project)] = Ending.SUCCEEDED
    make()
    wait_for(lambda: all(record.state is JobState.SUCCEEDED for record in state.jobs.records()))
    assert supervisor.started == ["job-0", "job-3", "job-1", "job-2"]


def test_two_cpu_jobs_run_at_once_where_two_are_allowed_and_share_the_cores(
    state: State, supervisor: Supervisor, make: Make
) -> None:
    for number in range(3):
        add(state, f"job-{number}")
    service = make(cpu_jobs=2)
    wait_for(lambda: len(supervisor.started) == 2)
    looked_twice(service)
    assert service.running() == {"job-0": "CPU", "job-1": "CPU"}
    assert supervisor.environments["job-0"]["OMP_NUM_THREADS"] == "4"


def test_each_gpu_gets_one_job_and_its_worker_sees_that_gpu(state: State, supervisor: Supervisor, make: Make) -> None:
    for number in range(3):
        add(state, f"job-{number}")
    service = make(machine((0, 50e9), (1, 90e9)))
    wait_for(lambda: len(supervisor.started) == 2)
    looked_twice(service)
    assert service.running() == {"job-0": "GPU 1", "job-1": "GPU 0"}
    assert {job_id: seen["CUDA_VISIBLE_DEVICES"] for job_id, seen in supervisor.environments.items()} == {
        "job-0": "1",
        "job-1": "0",
    }
    [(job_id, place)] = service.positions().items()
    assert job_id == "job-2" and place.position == 1
    assert place.reason == "GPU 0 is used by job-1, GPU 1 is used by job-0"


def test_queued_jobs_are_told_their_place(state: State, supervisor: Supervisor, make: Make) -> None:
    for number in range(4):
        add(state, f"job-{number}")
    add(state, "job-paused", is_paused=True)
    service = make()
    wait_for(lambda: supervisor.started == ["job-0"])
    service.wake()
    told = service.positions()
    assert {job_id: place.position for job_id, place in told.items()} == {"job-1": 1, "job-2": 2, "job-3": 3}
    assert told["job-3"].reason == "2 jobs before it; the CPU is used by job-0"


def host() -> str:
    return this_process().partition("/")[0]


LATER, LONG_AGO = time.time() + 10_000, time.time() - 10_000


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"phase": "training"}, id="its service was stopped"),
        pytest.param({"phase": "training", "lease_until": LONG_AGO, "lease_owner": "elsewhere/1/2.0"}, id="lapsed"),
        pytest.param({"phase": "training", "lease_until": LATER, "lease_owner": host() + GONE}, id="dead owner"),
        pytest.param({"phase": "waiting", "retry_at": LONG_AGO}, id="its back-off is over"),
        pytest.param({"phase": "waiting", "retry_at": LATER}, id="no back-off is that long: the clock was turned"),
        pytest.param({"phase": "training", "is_foreground": True}, id="its command died"),
        pytest.param({"state": JobState.CANCELING, "is_paused": True}, id="to be cancelled"),
    ],
)
def test_a_started_job_that_nobody_looks_after_is_taken_up(
    state: State, supervisor: Supervisor, make: Make, columns: dict[str, Any]
) -> None:
    add(state, "job-1", **{"state": JobState.IN_PROGRESS, **columns})
    make()
    wait_for(lambda: supervisor.started == ["job-1"])


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"phase": "training", "is_paused": True}, id="paused"),
        pytest.param({"phase": "waiting"}, id="waits for a person"),
        pytest.param({"phase": "waiting", "retry_at": lambda: time.time() + 200}, id="its back-off runs"),
        pytest.param({"phase": "training", "lease_until": LATER, "lease_owner": this_process()}, id="held"),
        pytest.param({"phase": "training", "lease_until": LATER, "lease_owner": "elsewhere/1/2.0"}, id="held there"),
        pytest.param({"state": JobState.ACCEPTED, "is_paused": True}, id="paused in the queue"),
        pytest.param({"state": JobState.ACCEPTED, "is_foreground": True}, id="a command is about to start it"),
    ],
)
def test_a_job_that_is_not_ours_to_take_is_left_alone(
    state: State, supervisor: Supervisor, make: Make, columns: dict[str, Any]
) -> None:
    now = {name: value() if callable(value) else value for name, value in columns.items()}
    add(state, "job-1", **{"state": JobState.IN_PROGRESS, **now})
    looked_twice(make())
    assert supervisor.started == []


def test_a_foreground_job_whose_command_died_before_its_start_is_taken_up_after_a_while(
    state: State, supervisor: Supervisor, make: Make
) -> None:
    add(state, "job-1", is_foreground=True)
    looked_twice(make(clock=lambda: time.time() + 5))
    assert supervisor.started == []
    make(clock=lambda: time.time() + 70)
    wait_for(lambda: supervisor.started == ["job-1"])


def test_an_interrupted_job_goes_on_before_a_queued_one_and_a_cancel_waits_for_no_device(
    state: State, supervisor: Supervisor, make: Make
) -> None:
    add(state, "job-queued", priority=100)
    add(state, "job-interrupted", state=JobState.IN_PROGRESS, phase="training")
    add(state, "job-canceling", state=JobState.CANCELING)
    service = make()
    wait_for(lambda: len(supervisor.started) == 2)
    looked_twice(service)
    assert sorted(supervisor.started) == ["job-canceling", "job-interrupted"]


def test_stopping_lets_go_of_every_job_and_the_next_service_takes_them_up(
    state: State, supervisor: Supervisor, make: Make
) -> None:
    add(state, "job-1")
    add(state, "job-2")
    service = make(cpu_jobs=2)
    wait_for(lambda: len(supervisor.started) == 2)
    service.stop()
    assert sorted(supervisor.left) == ["job-1", "job-2"]
    assert service.running() == {}
    make(cpu_jobs=2)
    wait_for(lambda: len(supervisor.started) == 4)


def test_a_worker_that_was_told_to_stop_by_the_system_goes_on_and_a_paused_one_does_not(
    state: State, supervisor: Supervisor, make: Make
) -> None:
    supervisor.endings |= {"job-1": Ending.STOPPED, "job-2": Ending.STOPPED}
    add(state, "job-2", is_paused=True, state=JobState.CANCELING, phase="training")  # taken up although paused
    add(state, "job-1")
    with state.database.write() as connection:
        connection.execute(JOBS.update().where(JOBS.c.job_id == "job-2").values(state=JobState.IN_PROGRESS))
    make()
    wait_for(lambda: supervisor.started.count("job-1") >= 2)
    assert "job-2" not in supervisor.started
    supervisor.endings["job-1"] = Ending.SUCCEEDED


def test_a_fault_of_ours_is_tried_again_and_then_fails_the_job_with_its_reason(
    state: State, supervisor: Supervisor, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "FIRST_FAULT_SECONDS", 0.01)
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    supervisor.endings["job-1"] = ZeroDivisionError("division by zero")
    add(state, "job-1")
    make()
    wait_for(lambda: state.jobs.read("job-1").state is JobState.FAILED)
    assert supervisor.started.count("job-1") == 3
    failure = state.jobs.read("job-1").failure
    assert failure is not None and failure["code"] == "INTERNAL" and "ZeroDivisionError" in failure["message"]
    assert "ZeroDivisionError: division by zero" in caplog.text, "the traceback stands in the log"
    add(state, "job-2")
    wait_for(lambda: "job-2" in supervisor.started)


def test_a_full_disk_never_fails_a_job(
    state: State, supervisor: Supervisor, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "FIRST_FAULT_SECONDS", 0.001)
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    supervisor.endings["job-1"] = OSError(28, "No space left on device")
    add(state, "job-1")
    make()
    wait_for(lambda: len(supervisor.started) > 5)
    supervisor.endings["job-1"] = Ending.SUCCEEDED
    wait_for(lambda: state.jobs.read("job-1").state is JobState.SUCCEEDED)


def test_a_database_that_cannot_be_read_is_told_once_and_does_not_end_the_queue(
    state: State, supervisor: Supervisor, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = make()
    looked_twice(service)
    real, faults = service._look, []

    def fails() -> None:
        faults.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service, "_look", fails)
    for _ in range(3):
        seen = len(faults)
        service.wake()
        wait_for(lambda seen=seen: len(faults) > seen)  # type: ignore[misc]
    monkeypatch.setattr(service, "_look", real)
    add(state, "job-1")
    wait_for(lambda: supervisor.started == ["job-1"])
    assert caplog.text.count("could not look at its jobs") == 1
