"""A disk that is full and a clock that jumps: neither ends a job."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Killed, broken_promises, fill, small_file_system
from tunesmith.jobs import store as store_module
from tunesmith.jobs.service import JobService
from tunesmith.spec.jobs import JobState

pytestmark = pytest.mark.servers

Ask = Callable[..., dict[str, Any]]
DISK_MEGABYTES = 120  # the plan asks for 67


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", megabytes=DISK_MEGABYTES) as folder:
        if folder is None:
            pytest.skip("mounting a tmpfs is not permitted here: no disk that may be filled")
        yield folder


def test_a_full_disk_lets_the_job_wait_and_it_goes_on_by_itself_once_there_is_room(small_disk: Path, ask: Ask) -> None:
    home = Killed(root=small_disk / "home")
    try:
        home.start()
        job_id = home.submit(**ask(epochs=20))
        home.wait(lambda: bool(home.state.jobs.events(job_id, kinds=["checkpoint"])), "it has a checkpoint")
        filler = fill(small_disk)
        # nothing can be written, the reason for waiting neither: its worker ends, and the service lives
        home.wait(lambda: not home.workers(), "the worker stops")
        assert home.server is not None and home.server.poll() is None
        assert home.state.jobs.read(job_id).state is JobState.IN_PROGRESS
        assert broken_promises(home) == []
        filler.unlink()
        home.wait(lambda: home.state.jobs.read(job_id).state is JobState.SUCCEEDED, "it goes on and succeeds")
        assert broken_promises(home) == []
    finally:
        home.end()


class _Clock:
    """Stands in for the module `time` of the store: the wall clock alone can be moved."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.mark.parametrize("jump", [-7200.0, 7200.0], ids=["back", "forward"])
def test_a_clock_that_jumps_two_hours_disturbs_no_job(
    home: Killed, ask: Ask, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    clock = _Clock()
    monkeypatch.setattr(store_module, "time", clock)
    home.start()
    running, queued = home.submit(**ask(epochs=20)), home.submit(**ask())
    home.wait(lambda: bool(home.state.jobs.events(running, kinds=["step"])), "it trains")
    home.kill_server()  # its leases were taken before the jump, by a process that is gone
    clock.ahead = jump
    environment = {**os.environ, "TUNESMITH_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    first = JobService(home.state, environment, cpu_jobs=2, clock=clock.time)
    other = JobService(home.state, environment, cpu_jobs=2, clock=lambda: clock.time() + 7200)  # thinks leases lapsed
    first.start()
    try:
        home.wait(lambda: running in first.running(), "the next service follows it", seconds=5)
        other.start()
        home.wait(
            lambda: all(home.state.jobs.read(job_id).state is JobState.SUCCEEDED for job_id in (running, queued)),
            "both succeed",
        )
    finally:
        first.stop()
        other.stop()
    assert len(home.state.jobs.events(running, kinds=["attempt"])) == 1, "its worker was never disturbed"
    assert broken_promises(home) == []
    assert threading.active_count() < 10
