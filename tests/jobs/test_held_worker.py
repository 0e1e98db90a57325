"""A worker that is started held: what stands between its start and the writing down of its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.waiting import until
from tunesmith.jobs.launcher import exit_code, is_running, process_started_at, release, start_logged

TOUCH = [sys.executable, "-c", "import pathlib, sys; pathlib.Path('ran').write_text(repr(sys.stdin.read()))"]


def wait_until_gone(pid: int) -> None:
    until(lambda: not is_running(pid, started_at=None), f"process {pid} ends")


def test_a_held_worker_runs_once_it_is_released_under_the_pid_that_was_written_down(tmp_path: Path) -> None:
    pid = start_logged(TOUCH, folder=tmp_path, log=tmp_path / "log", environment=os.environ, is_held=True)
    started_at = process_started_at(pid)
    time.sleep(0.1)
    assert is_running(pid, started_at=started_at) and not (tmp_path / "ran").exists()
    release(pid)
    wait_until_gone(pid)
    assert exit_code(pid) == 0
    assert (tmp_path / "ran").read_text() == "''", "its own input is empty"


def test_a_held_worker_ends_when_its_starter_is_killed_before_the_release(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, pathlib\n"
            "from tunesmith.jobs.launcher import start_logged\n"
            "here = pathlib.Path.cwd()\n"
            f"print(start_logged({TOUCH!r}, folder=here, log=here / 'log', environment=os.environ, is_held=True),"
            " flush=True)\n"
            "sys.stdin.read()\n",
        ],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    wait_until_gone(pid)
    assert not (tmp_path / "ran").exists(), "it must never have begun"


def test_releasing_a_worker_that_was_killed_is_no_fault(tmp_path: Path) -> None:
    pid = start_logged(TOUCH, folder=tmp_path, log=tmp_path / "log", environment=os.environ, is_held=True)
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    release(pid)
    assert exit_code(pid) == -signal.SIGKILL
