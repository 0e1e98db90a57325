from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.cli.conftest import Done
from tests.plan.test_resolve import machine
from tunesmith.cli.doctor import LIBRARIES, problems
from tunesmith.errors import MachineCannot
from tunesmith.plan import machine as machine_module
from tunesmith.plan.machine import GpuUser

ALL_THERE: dict[str, str | None] = dict.fromkeys(LIBRARIES, "1.0")


def test_a_healthy_machine_is_told_in_full(tunesmith: Callable[..., Done]) -> None:
    done = tunesmith("doctor", "--json")
    assert done.code == 0
    told = done.json
    assert told["libraries"]["torch"] and told["memory"]["free_bytes"] > 0 and told["home"]["is_writable"]
    assert "cores" in tunesmith("doctor").out


def test_a_gpu_without_a_cuda_build_has_the_command_that_mends_it() -> None:
    [problem] = problems(
        machine(gpu_free=100 << 30, cuda=False), libraries=ALL_THERE, free_disk=1 << 40, home_error=None
    )
    assert problem["code"] == "TORCH_WITHOUT_CUDA" and "install" in problem["command"] and not problem["stops"]


def test_what_keeps_jobs_from_running_stands_first() -> None:
    found = problems(
        machine(free=1 << 20),
        libraries=ALL_THERE | {"tokenizers": None},
        free_disk=1,
        home_error=MachineCannot("HOME_NOT_WRITABLE", "no"),
    )
    assert [problem["code"] for problem in found] == [
        "LIBRARY_MISSING", "HOME_NOT_WRITABLE", "DISK_FULL", "OUT_OF_MEMORY",
    ]  # fmt: skip
    assert [problem["stops"] for problem in found] == [True, True, False, False]


def test_what_is_wrong_with_a_gpu_is_named_with_who_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    users = [GpuUser(pid=77, name="python3", used_bytes=90 << 30)]
    monkeypatch.setattr(machine_module, "gpu_users", lambda gpu: users)
    there = machine(gpu_free=10 << 30)
    old = replace(there, gpus=(replace(there.gpus[0], capability=7.5),), has_triton=False, gpu_fault="Xid 79")
    found = {
        problem["code"]: problem for problem in problems(old, libraries=ALL_THERE, free_disk=1 << 40, home_error=None)
    }
    assert list(found) == ["GPU_FAULT", "GPU_TOO_OLD", "GPU_BUSY", "TRITON_MISSING"]
    assert "Xid 79" in found["GPU_FAULT"]["message"] and "7.5" in found["GPU_TOO_OLD"]["message"]
    assert "python3 (pid 77)" in found["GPU_BUSY"]["message"]
    assert found["TRITON_MISSING"]["command"] == "python -m pip install triton"
    free = problems(machine(gpu_free=120 << 30), libraries=ALL_THERE, free_disk=1 << 40, home_error=None)
    assert free == []
