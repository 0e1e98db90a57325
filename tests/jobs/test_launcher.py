from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tunesmith.jobs import launcher
from tunesmith.jobs.launcher import (
    exit_code,
    is_running,
    machine_is_idle,
    start_logged,
    train_command,
    worker_environment,
)


def test_credentials_and_hijacking_variables_do_not_reach_a_worker() -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "x", "TUNESMITH_TOKEN": "x", "PYTHONPATH": "/evil", "LD_PRELOAD": "x",
        "PYTHONSTARTUP": "x", "PYTHONHOME": "x", "HTTPS_PROXY": "x", "LD_LIBRARY_PATH": "/evil", "GITHUB_TOKEN": "x",
    }  # fmt: skip
    assert not set(secrets) & set(worker_environment(secrets, needs_cuda=False))


def test_what_a_worker_needs_is_kept() -> None:
    needed = {
        "PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "TMPDIR": "/t", "TUNESMITH_HOME": "/s", "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "1", "TRITON_CACHE_DIR": "/c",
    }  # fmt: skip
    environment = worker_environment(needed | {"LD_LIBRARY_PATH": "/cuda"}, needs_cuda=True)
    assert needed.items() <= environment.items()
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["LD_LIBRARY_PATH"] == "/cuda"


def test_waiting_threads_sleep_on_a_busy_machine_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "machine_is_idle", lambda: True)
    assert "OMP_WAIT_POLICY" not in worker_environment({}, needs_cuda=False)
    monkeypatch.setattr(launcher, "machine_is_idle", lambda: False)
    assert worker_environment({}, needs_cuda=False)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert worker_environment({"OMP_WAIT_POLICY": "ACTIVE"}, needs_cuda=False)["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "OMP_WAIT_POLICY" not in worker_environment({"GOMP_SPINCOUNT": "9"}, needs_cuda=False)


@pytest.mark.parametrize(("idle", "busy", "is_idle"), [(90, 10, True), (30, 70, False), (0, 0, False)])
def test_the_processors_counters_tell_whether_the_machine_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: int, busy: int, is_idle: bool
) -> None:
    counters = tmp_path / "stat"
    counters.write_text("cpu  100 0 50 1000 5 0 0 0 0 0\ncpu0 1\n")
    later = f"cpu  {100 + busy} 0 50 {1000 + idle} 5 0 0 0 0 0\n"
    monkeypatch.setattr(launcher.time, "sleep", lambda _seconds: counters.write_text(later))
    assert machine_is_idle(counters=counters) is is_idle
    assert not machine_is_idle(counters=tmp_path / "nothing")


def test_a_command_line_names_the_worker_and_keeps_its_folder_off_the_import_path(tmp_path: Path) -> None:
    command = train_command(tmp_path / "job.json")
    assert command[1] == "-P" and "tunesmith.train" in command


def test_a_module_in_the_jobs_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(99)")
    pid = start_logged(
        [sys.executable, "-P", "-c", "import json, os; print(os.getcwd())"],
        folder=tmp_path,
        log=tmp_path / "logs" / "worker.log",
        environment=worker_environment(os.environ, needs_cuda=False),
    )
    end = time.monotonic() + 20
    while is_running(pid, started_at=None) and time.monotonic() < end:
        time.sleep(0.01)
    assert exit_code(pid) == 0
    assert (tmp_path / "logs" / "worker.log").read_text().strip() == str(tmp_path)
