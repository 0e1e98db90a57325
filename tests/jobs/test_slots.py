from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from tunesmith.jobs.queue import Slot
from tunesmith.jobs.slots import Devices
from tunesmith.plan.machine import Gpu, Machine


def machine(*gpus: tuple[int, float], cores: int = 8) -> Machine:
    return Machine(
        system="Linux x86_64", processor="test", cores=cores, threads=cores, total_memory_bytes=int(16e9),
        free_memory_bytes=int(9e9), torch_version="2.13.0", has_cuda_torch=True,
        gpus=tuple(
            Gpu(index=index, name="H200", total_bytes=int(140e9), free_bytes=int(free), driver="1")
            for index, free in gpus
        ),
    )  # fmt: skip


def devices(found: Machine, environment: Mapping[str, str] | None = None, *, cpu_jobs: int = 1) -> Devices:
    return Devices(environment or {}, cpu_jobs=cpu_jobs, read_machine=lambda _: found)


def test_each_gpu_is_a_slot_with_what_is_free_on_it() -> None:
    slots = devices(machine((0, 100e9), (3, 20e9))).slots({"job-1": "GPU 3"})
    assert [(slot.name, slot.free_bytes, slot.capacity, slot.users) for slot in slots] == [
        ("GPU 0", 100_000_000_000, 1, ()),
        ("GPU 3", 20_000_000_000, 1, ("job-1",)),
    ]


def test_without_a_gpu_the_cpu_is_the_only_slot() -> None:
    [slot] = devices(machine(), cpu_jobs=2).slots({"job-1": "CPU"})
    assert (slot.name, slot.gpu_index, slot.capacity, slot.users) == ("CPU", None, 2, ("job-1",))
    assert slot.has_room


def test_a_worker_sees_the_gpu_of_its_slot_alone_counted_as_the_driver_counts() -> None:
    found = devices(machine((0, 1e9), (3, 2e9)), {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,3"})
    environment = found.environment(found.slots({})[1])
    assert environment == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_jobs_that_share_the_cpu_share_its_cores_unless_the_user_said_otherwise() -> None:
    shared: Slot = devices(machine(cores=8), cpu_jobs=2).slots({})[0]
    assert devices(machine(cores=8), cpu_jobs=2).environment(shared)["OMP_NUM_THREADS"] == "4"
    assert devices(machine(), {"OMP_NUM_THREADS": "7"}, cpu_jobs=2).environment(shared)["OMP_NUM_THREADS"] == "7"


def test_the_slot_of_a_worker_of_an_earlier_server_is_read_from_its_environment() -> None:
    found = devices(machine((0, 1e9), (1, 2e9)))
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert found.used_by(child.pid) == "GPU 1"
    finally:
        child.communicate()
    assert found.used_by(child.pid) is None
    assert devices(machine()).used_by(1) == "CPU"
