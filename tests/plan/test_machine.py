from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunesmith.plan.machine import this_machine

SMI = """#!/bin/sh
echo "0, NVIDIA H200, 143771, 120000, 550.54"
echo "1, NVIDIA H200, 143771, 90000, 550.54"
"""


@pytest.fixture
def with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("with_gpus")
def test_gpus_are_found_with_their_free_memory() -> None:
    gpus = this_machine({}).gpus
    assert [(gpu.index, gpu.name, gpu.free_bytes >> 20) for gpu in gpus] == [
        (0, "NVIDIA H200", 120000),
        (1, "NVIDIA H200", 90000),
    ]


@pytest.mark.usefixtures("with_gpus")
@pytest.mark.parametrize(("visible", "indices"), [("1", [1]), ("1,0", [1, 0]), ("", []), ("-1", []), ("7", [])])
def test_only_visible_gpus_count(visible: str, indices: list[int]) -> None:
    assert [gpu.index for gpu in this_machine({"CUDA_VISIBLE_DEVICES": visible}).gpus] == indices


@pytest.mark.parametrize(("text", "threads"), [("1", 1), ("3,2", 3), ("0", None), ("many", None), ("", None)])
def test_threads_follow_the_environment(text: str, threads: int | None) -> None:
    machine = this_machine({"OMP_NUM_THREADS": text, "CUDA_VISIBLE_DEVICES": ""})
    assert machine.threads == (threads or machine.cores)


def test_free_memory_is_no_more_than_all_of_it() -> None:
    machine = this_machine({"CUDA_VISIBLE_DEVICES": ""})
    assert 0 < machine.free_memory_bytes <= machine.total_memory_bytes
    assert machine.device == "cpu" and machine.torch_version is not None
