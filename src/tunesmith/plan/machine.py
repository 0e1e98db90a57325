"""What this machine has: processor cores, free memory, GPUs with their free memory. Found without torch.

In: the environment and the system's own tables. Out: a `Machine`. Nothing is measured longer than 10 ms.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

NVIDIA_SMI_SECONDS = 10
QUERY = "index,name,memory.total,memory.free,driver_version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    system: str
    processor: str
    cores: int  # that this process may use
    threads: int  # for training: OMP_NUM_THREADS where set, else the cores
    total_memory_bytes: int
    free_memory_bytes: int
    gpus: tuple[Gpu, ...]
    torch_version: str | None
    has_cuda_torch: bool

    @property
    def device(self) -> str:
        return "cuda" if self.gpus and self.has_cuda_torch else "cpu"

    @property
    def device_name(self) -> str:
        return self.gpus[0].name if self.device == "cuda" else self.processor

    @property
    def total_device_bytes(self) -> int:
        return self.gpus[0].total_bytes if self.device == "cuda" else self.total_memory_bytes

    @property
    def free_device_bytes(self) -> int:
        return self.gpus[0].free_bytes if self.device == "cuda" else self.free_memory_bytes


def this_machine(environment: Mapping[str, str]) -> Machine:
    cores = usable_cores()
    total, free = _memory()
    version, has_cuda = _torch_build()
    threads = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor_name(),
        cores=cores,
        threads=int(threads) if threads.isdecimal() and int(threads) > 0 else cores,
        total_memory_bytes=total,
        free_memory_bytes=free,
        gpus=_gpus(environment),
        torch_version=version,
        has_cuda_torch=has_cuda,
    )


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> tuple[int, int]:
    """Total and free bytes; the limit of a container counts where it is lower."""
    try:
        table = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
        }
        total, free = table["MemTotal"], table["MemAvailable"]
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free = total // 2  # a system that does not tell: half of it is a careful guess
    limit, used = _cgroup_memory()
    return (min(total, limit), min(free, limit - used)) if limit is not None else (total, free)


def _cgroup_memory() -> tuple[int | None, int]:
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        return (None, 0) if limit == "max" else (int(limit), int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return None, 0


def _gpus(environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that a worker would see, with what is free on each now. None where nvidia-smi is absent or fails."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    try:
        listing = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = [gpu for line in listing.splitlines() if (gpu := _gpu(line)) is not None]
    if visible is not None and all(word.strip().isdecimal() for word in visible.split(",")):
        by_index = {gpu.index: gpu for gpu in found}
        found = [by_index[int(word)] for word in visible.split(",") if int(word) in by_index]
    return tuple(found)


def _gpu(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        index, name, total, free, driver = fields
        return Gpu(index=int(index), name=name, total_bytes=int(total) << 20, free_bytes=int(free) << 20, driver=driver)
    except ValueError:
        return None


def _torch_build() -> tuple[str | None, bool]:
    """torch's version and whether it was built for CUDA, told by its files: importing it takes seconds."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None, False
    spec = util.find_spec("torch")
    library = Path(spec.origin).parent / "lib" / "libtorch_cuda.so" if spec and spec.origin else None
    return version, library is not None and library.exists()
