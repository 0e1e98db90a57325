"""Kill -9 of the service and of its workers, at moments that a printed seed gives."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.harness import Killed, broken_promises
from tunesmith.jobs.store import JobStore
from tunesmith.jobs.wishes import cancel, pause, resume
from tunesmith.spec.jobs import JobRecord, JobState

pytestmark = pytest.mark.servers

Ask = Callable[..., dict[str, Any]]
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "50"))
SEED = int(os.environ.get("FAULTS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
KILLED_CODES = {"WORKER_DIED", "OUT_OF_MEMORY"}  # of the trainer, of the inspector
UNFINISHED = 2  # jobs that are kept going while others are killed


def test_nothing_is_lost_broken_or_left_running_by_kills(
    home: Killed, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    survived = tried = 0
    home.start()
    try:
        while tried < ROUNDS:
            while len(home.unfinished()) < UNFINISHED:
                home.submit(**ask(key=f"key-{len(home.accepted)}"))
            time.sleep(chance.uniform(0, 1.5))
            tried += _kill(home, chance)
            told = broken_promises(home)
            assert not told, f"seed {SEED}, kill {tried}: {told}\n{home.told()}"
            survived = tried
            if home.server is None:
                home.start()
            _wish(home, chance)
        _resume_all(home)
        home.wait(lambda: not home.unfinished(), f"seed {SEED}: every job ends")
        home.wait(lambda: not home.processes(), f"seed {SEED}: no process is left", seconds=15)
        told = broken_promises(home)
        assert not told, f"seed {SEED}, at the end: {told}\n{home.told()}"
    finally:
        endings = [f"{record.state}" for record in home.records()]
        counts = ", ".join(f"{endings.count(ending)} {ending}" for ending in sorted(set(endings)))
        with capfd.disabled():
            print(f"\nfaults: survived {survived} of {tried} kills, seed {SEED}; {len(endings)} jobs: {counts}")
    for record in home.records():
        if record.state is JobState.FAILED:  # three attempts in a row were killed: said, and no other reason is right
            assert record.failure is not None and record.failure["code"] in KILLED_CODES, record


def _kill(home: Killed, chance: random.Random) -> int:
    """How many processes were killed, one after the other without a breath: the service, a worker, or both."""
    whom = chance.choice(["service", "service", "worker", "both"])
    killed = 0
    if whom in ("worker", "both") and (processes := home.processes()):
        os.kill(chance.choice(processes).pid, signal.SIGKILL)
        killed += 1
    if whom in ("service", "both"):
        home.kill_server()
        killed += 1
    return killed


def _wish(home: Killed, chance: random.Random) -> None:
    """Now and then somebody asks something of a job; a job that ended meanwhile refuses, which is no fault."""
    wish: Callable[[JobStore, str], JobRecord] | None = chance.choice([*[None] * 7, pause, resume, cancel])
    unfinished = home.unfinished()
    if wish is not None and unfinished:
        record = chance.choice(unfinished)
        if record.state is not JobState.CANCELING:
            wish(home.state.jobs, record.job_id)
    for record in unfinished:
        if record.is_paused and chance.random() < 0.5 and record.state is not JobState.CANCELING:
            _resume_all(home)


def _resume_all(home: Killed) -> None:
    for record in home.unfinished():
        if record.is_paused and record.state is not JobState.CANCELING:
            resume(home.state.jobs, record.job_id)
