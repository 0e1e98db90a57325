from __future__ import annotations

from collections.abc import Callable

from tests.cli.conftest import Done
from tests.plan.test_resolve import machine
from tunesmith.cli.doctor import LIBRARIES, problems
from tunesmith.errors import MachineCannot

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
