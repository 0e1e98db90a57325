"""This machine's devices as slots for jobs, by the memory that is free on them now.

In: the environment, and which job runs where. Out: `Slot`s, and the environment of a worker that is to use one. A GPU
holds one training worker; the CPU one by default, because two that share its caches and cores are slower than one
after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tunesmith.jobs.queue import Slot
from tunesmith.plan.machine import Machine, this_machine

READING_SECONDS = 2.0  # nvidia-smi takes up to half a second: the memory is looked at this often
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Devices:
    """The slots of this machine; the last reading of its memory serves for two seconds."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        cpu_jobs: int = 1,
        read_machine: Callable[[Mapping[str, str]], Machine] = this_machine,
    ) -> None:
        self._environment = dict(environment)
        self._cpu_jobs = cpu_jobs
        self._read_machine = read_machine
        self._machine: Machine | None = None
        self._read_at = 0.0

    def slots(self, used: Mapping[str, str]) -> list[Slot]:
        """Every device. used: job -> name of its slot, of the jobs that run now."""
        machine = self.machine()

        def slot(name: str, *, index: int | None, free_bytes: int, capacity: int) -> Slot:
            users = tuple(job_id for job_id, where in used.items() if where == name)
            return Slot(name=name, gpu_index=index, free_bytes=free_bytes, capacity=capacity, users=users)

        if machine.device == "cuda":
            return [
                slot(gpu_name(gpu.index), index=gpu.index, free_bytes=gpu.free_bytes, capacity=1)
                for gpu in machine.gpus
            ]
        return [slot(CPU, index=None, free_bytes=machine.free_memory_bytes, capacity=self._cpu_jobs)]

    def environment(self, slot: Slot | None) -> dict[str, str]:
        """What control and worker of a job on this slot see; None: a worker that is only followed."""
        if slot is None:
            return self._environment
        if slot.gpu_index is not None:
            # nvidia-smi counts in the order of the bus, CUDA by default not
            return self._environment | {VISIBLE: str(slot.gpu_index), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if slot.capacity > 1 and "OMP_NUM_THREADS" not in self._environment:
            return self._environment | {"OMP_NUM_THREADS": str(max(1, self.machine().cores // slot.capacity))}
        return self._environment

    def used_by(self, worker_pid: int) -> str | None:
        """The slot of a worker that an earlier server started; None where the system does not tell."""
        if self.machine().device != "cuda":
            return CPU
        try:
            variables = Path(f"/proc/{worker_pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return None
        prefix = f"{VISIBLE}=".encode()
        index = next((text.removeprefix(prefix) for text in variables if text.startswith(prefix)), b"")
        return gpu_name(int(index)) if index.isdigit() else None

    def machine(self) -> Machine:
        """As it was at most two seconds ago."""
        if self._machine is None or time.monotonic() - self._read_at >= READING_SECONDS:
            self._machine, self._read_at = self._read_machine(self._environment), time.monotonic()
        return self._machine


CPU = "CPU"


def gpu_name(index: int) -> str:
    return f"GPU {index}"
