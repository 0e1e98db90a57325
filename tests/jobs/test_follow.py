from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.test_supervisor import in_the_background, read_record, state_of, supervise_in_a_process, wait_for
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.errors import MachineCannot
from tunesmith.jobs.follow import run_or_follow
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.supervisor import Ended, Ending, StopWish, run_job
from tunesmith.jobs.wishes import cancel, pause
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import AnyEvent, NoticeEvent

pytestmark = pytest.mark.slow  # starts processes

Worker = Callable[[str], Callable[[Path], list[str]]]


class Follower:
    """`job resume` in a thread: what it hears, and how it ends."""

    def __init__(self, job: JobFolder, command: Callable[[Path], list[str]]) -> None:
        self.job, self.command = job, command
        self.heard: list[AnyEvent] = []
        self.wish = StopWish()
        self.ended: list[Ended] = []
        self.thread: threading.Thread = in_the_background(self.run)

    def run(self) -> None:
        state = state_of(self.job)

        def run(told: int) -> Ended:
            return run_job(
                self.job, state=state, environment=os.environ, on_event=self.heard.append, wish=self.wish,
                command=self.command, told=told,
            )  # fmt: skip

        self.ended.append(run_or_follow(self.job, state=state, on_event=self.heard.append, wish=self.wish, run=run))

    def is_following(self) -> bool:
        return "FOLLOWING" in self.notices() and any(event.kind == "step" for event in self.heard)

    def notices(self) -> list[str]:
        return [event.code for event in self.heard if isinstance(event, NoticeEvent)]

    def wait_until_following(self) -> None:
        until(self.is_following, "it follows", told=lambda: self.heard)

    def end(self) -> Ended:
        self.thread.join(PATIENCE_SECONDS)
        assert self.ended, "it never ended"
        return self.ended[0]


@pytest.fixture
def refuses(worker: Worker) -> Callable[[Path], list[str]]:
    """The follower's own worker, should it start one: its ending is none that a test here expects."""
    return worker("refuses")


def test_a_live_supervisor_is_followed_to_the_same_end(
    job: JobFolder, worker: Worker, refuses: Callable[[Path], list[str]]
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    follower = Follower(job, refuses)
    follower.wait_until_following()
    (job.path / "go").touch()
    ended = follower.end()
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0
    assert ended.ending is Ending.SUCCEEDED and ended.error is None
    assert ended.result.artifact_uri is not None and [epoch.epoch for epoch in ended.result.epochs] == [1]
    assert (job.path / "starts").read_text() == "x"
    kinds = Counter(event.kind for event in follower.heard)
    assert (kinds["step"], kinds["epoch"], kinds["attempt"], kinds["verdict"]) == (2, 2, 1, 1)
    [said] = [event.message for event in follower.heard if isinstance(event, NoticeEvent)]
    assert str(supervisor.pid) in said
    kept = [each.event.kind for each in state_of(job).jobs.events(job.job_id)]
    assert "notice" not in kept, "that it is followed is no part of the job's story"


def test_a_follower_takes_the_place_of_a_killed_supervisor_and_tells_nothing_twice(
    job: JobFolder, worker: Worker, refuses: Callable[[Path], list[str]]
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    follower = Follower(job, refuses)
    follower.wait_until_following()
    supervisor.kill()
    supervisor.wait()
    (job.path / "go").touch()
    assert follower.end().ending is Ending.SUCCEEDED
    assert (job.path / "starts").read_text() == "x", "the living worker goes on"
    kinds = Counter(event.kind for event in follower.heard)
    assert (kinds["step"], kinds["epoch"], kinds["attempt"], kinds["verdict"]) == (2, 2, 1, 1)


def test_a_wish_to_stop_ends_the_following_and_not_the_job(
    job: JobFolder, worker: Worker, refuses: Callable[[Path], list[str]]
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    follower = Follower(job, refuses)
    follower.wait_until_following()
    follower.wish.times = 1
    ended = follower.end()
    assert ended.ending is Ending.LEFT and ended.error is not None and ended.error.code == "FOLLOWING_ENDED"
    assert ended.result.state is JobState.IN_PROGRESS and ended.result.failure is None
    (job.path / "go").touch()
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0
    assert read_record(job).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("how", "ending", "code"),
    [
        ("stopped", Ending.STOPPED, "INTERRUPTED"),
        ("paused", Ending.STOPPED, "PAUSED"),
        ("canceled", Ending.CANCELED, "CANCELED"),
    ],
)
def test_a_job_that_another_stops_ends_the_same_for_its_follower(
    job: JobFolder, worker: Worker, refuses: Callable[[Path], list[str]], how: str, ending: Ending, code: str
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    follower = Follower(job, refuses)
    follower.wait_until_following()
    if how == "stopped":
        supervisor.terminate()
    else:
        {"paused": pause, "canceled": cancel}[how](state_of(job).jobs, job.job_id)
    ended = follower.end()
    assert ended.ending is ending and ended.error is not None and ended.error.code == code
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0
    assert (job.path / "starts").read_text() == "x"


def test_other_faults_than_a_busy_job_are_not_followed(job: JobFolder) -> None:
    def run(_: int) -> Ended:
        raise MachineCannot("DISK_FULL", "The disk is full.")

    with pytest.raises(MachineCannot, match="disk is full"):
        run_or_follow(job, state=state_of(job), on_event=lambda event: None, wish=StopWish(), run=run)
