from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.waiting import until
from tunesmith.jobs import launcher
from tunesmith.jobs.launcher import (
    Standby,
    exit_code,
    is_running,
    machine_is_idle,
    release,
    start_logged,
    train_command,
    worker_command,
    worker_environment,
)


def test_credentials_and_hijacking_variables_do_not_reach_a_worker() -> None:
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "x", "TUNESMITH_TOKEN": "x", "PYTHONPATH": "/evil", "LD_PRELOAD": "x",
        "PYTHONSTARTUP": "x", "PYTHONHOME": "x", "HTTPS_PROXY": "x", "LD_LIBRARY_PATH": "/evil", "GITHUB_TOKEN": "x",
    }  # fmt: skip
    assert not set(secrets) & set(worker_environment(secrets, needs_cuda=False, is_idle=True))


def test_what_a_worker_needs_is_kept() -> None:
    needed = {
        "PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "TMPDIR": "/t", "TUNESMITH_HOME": "/s", "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "1", "TRITON_CACHE_DIR": "/c",
    }  # fmt: skip
    environment = worker_environment(needed | {"LD_LIBRARY_PATH": "/cuda"}, needs_cuda=True, is_idle=True)
    assert needed.items() <= environment.items()
    assert environment["HF_HUB_OFFLINE"] == "1" and environment["LD_LIBRARY_PATH"] == "/cuda"


def test_compiled_kernels_lie_in_the_state_folder_unless_the_user_says_otherwise() -> None:
    def caches(environment: dict[str, str], *, needs_cuda: bool) -> set[str]:
        found = worker_environment(environment, needs_cuda=needs_cuda, is_idle=True)
        return {value for name, value in found.items() if name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}

    assert caches({"TUNESMITH_HOME": "/s"}, needs_cuda=True) == {"/s/cache/triton", "/s/cache/inductor"}
    assert caches({"TUNESMITH_HOME": "/s", "TRITON_CACHE_DIR": "/c"}, needs_cuda=True) == {"/c", "/s/cache/inductor"}
    assert caches({}, needs_cuda=True) == caches({"TUNESMITH_HOME": "/s"}, needs_cuda=False) == set()


def test_waiting_threads_sleep_on_a_busy_machine_unless_the_user_says_otherwise() -> None:
    def wait_policy(environment: dict[str, str], *, is_idle: bool) -> str | None:
        return worker_environment(environment, needs_cuda=False, is_idle=is_idle).get("OMP_WAIT_POLICY")

    assert wait_policy({}, is_idle=True) is None
    assert wait_policy({}, is_idle=False) == "PASSIVE"
    assert wait_policy({"OMP_WAIT_POLICY": "ACTIVE"}, is_idle=False) == "ACTIVE"
    assert wait_policy({"GOMP_SPINCOUNT": "9"}, is_idle=False) is None


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
        environment=worker_environment(os.environ, needs_cuda=False, is_idle=True),
    )
    assert until(lambda: not is_running(pid, started_at=None), "it ends") and exit_code(pid) == 0
    assert (tmp_path / "logs" / "worker.log").read_text().strip() == str(tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(launcher, "worker_command", lambda *_: [sys.executable, "-c", program])


def test_a_worker_that_stands_by_gets_its_job_and_outlives_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "import json; given = json.loads(input()); open(given['log'], 'w').write(given['job_file'])")
    with Standby(os.environ, folder=tmp_path) as standby:
        standby.start(needs_cuda=False, needs_transformers=False)
        pid = standby.take(tmp_path / "job.json", log=tmp_path / "worker.log")
        assert pid is not None
        release(pid)
        assert standby.take(tmp_path / "other.json", log=tmp_path / "worker.log") is None, "it has one job to give"
    assert until(lambda: not is_running(pid, started_at=None), "it ends") and exit_code(pid) == 0
    assert (tmp_path / "worker.log").read_text() == str(tmp_path / "job.json")


def test_a_worker_that_will_need_transformers_is_told_so() -> None:
    assert worker_command("tunesmith.train", "-", "transformers")[-3:] == ["tunesmith.train", "-", "transformers"]


def test_a_worker_that_stood_by_in_vain_is_gone_after_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "import os; open('new', 'w').write(str(os.getpid())); os.rename('new', 'pid'); input()")
    with Standby(os.environ, folder=tmp_path) as standby:
        standby.start(needs_cuda=False, needs_transformers=False)
        until((tmp_path / "pid").exists, "it stands by")
    assert not is_running(int((tmp_path / "pid").read_text()), started_at=None)


def test_a_worker_that_died_while_standing_by_is_not_given_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "raise SystemExit(1)")
    with Standby(os.environ, folder=tmp_path) as standby:
        standby.start(needs_cuda=False, needs_transformers=True)
        process = standby._process
        assert process is not None
        process.wait()
        assert standby.take(tmp_path / "job.json", log=tmp_path / "worker.log") is None
