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

from tunesmith.spec.datasets import Notice

NVIDIA_SMI_SECONDS = 10
LEAST_DISK_BYTES = 1_000_000_000
LEAST_MEMORY_BYTES = 1_000_000_000
QUERY = "index,name,memory.total,memory.free,driver_version,compute_cap"
OLD_QUERY = "index,name,memory.total,memory.free,driver_version"  # drivers before 510 know no compute_cap
USERS_QUERY = "pid,process_name,used_memory"
BUSY_SHARE = 0.5  # less of a GPU's memory is free: worth saying who has it
DRIVER_FILES = Path("/proc/driver/nvidia/version")
BF16_CAPABILITY = 8.0  # Ampere; older chips have no bf16 products


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    driver: str
    capability: float | None = None  # None: the driver does not tell

    @property
    def has_bf16(self) -> bool:
        return self.capability is None or self.capability >= BF16_CAPABILITY


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUser:
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    used_bytes: int


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
    has_triton: bool = True  # its kernels compute on a GPU
    gpu_fault: str | None = None  # what the driver's own tool says where it fails

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


def machine_notices(machine: Machine, *, free_disk_bytes: int) -> list[Notice]:
    """What somebody should see to before it stops a job."""
    found: list[Notice] = []
    if machine.gpus and machine.torch_version is not None and not machine.has_cuda_torch:
        found.append(
            Notice(
                code="TORCH_WITHOUT_CUDA",
                message=f"{machine.gpus[0].name} cannot be used: torch {machine.torch_version} has no CUDA build.",
                hint="python -m pip install --force-reinstall torch",
            )
        )
    if machine.gpu_fault is not None:
        found.append(
            Notice(
                code="GPU_FAULT",
                message=f"The GPU's driver answers with a fault: {machine.gpu_fault}",
                hint="nvidia-smi",
            )
        )
    for gpu in machine.gpus if machine.has_cuda_torch else ():
        if not gpu.has_bf16:
            found.append(
                Notice(
                    code="GPU_TOO_OLD",
                    message=f"{gpu.name} (compute capability {gpu.capability}) has no bf16: jobs compute in float32.",
                )
            )
        users = gpu_users(gpu) if gpu.free_bytes < gpu.total_bytes * BUSY_SHARE else []
        if users:
            named = ", ".join(f"{user.name} (pid {user.pid}) {user.used_bytes / 1e9:.1f} GB" for user in users[:3])
            found.append(
                Notice(
                    code="GPU_BUSY",
                    message=f"{gpu.name}: {gpu.free_bytes / 1e9:.1f} of {gpu.total_bytes / 1e9:.1f} GB are free; "
                    f"in use by {named}.",
                    hint="nvidia-smi",
                )
            )
    if machine.device == "cuda" and not machine.has_triton:
        found.append(
            Notice(
                code="TRITON_MISSING",
                message="Triton is not installed: jobs take the slower path on the GPU.",
                hint="python -m pip install triton",
            )
        )
    if free_disk_bytes < LEAST_DISK_BYTES:
        message = f"{free_disk_bytes / 1e9:.1f} GB of disk are free at TUNESMITH_HOME."
        found.append(Notice(code="DISK_FULL", message=message, hint="tunesmith state clean"))
    if machine.free_memory_bytes < LEAST_MEMORY_BYTES:
        message = f"{machine.free_memory_bytes / 1e9:.1f} GB of memory are free."
        found.append(Notice(code="OUT_OF_MEMORY", message=message))
    return found


def this_machine(environment: Mapping[str, str]) -> Machine:
    cores = usable_cores()
    total, free = _memory()
    version, has_cuda = _torch_build()
    gpus, fault = _gpus(environment)
    threads = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor_name(),
        cores=cores,
        threads=int(threads) if threads.isdecimal() and int(threads) > 0 else cores,
        total_memory_bytes=total,
        free_memory_bytes=free,
        gpus=gpus,
        torch_version=version,
        has_cuda_torch=has_cuda,
        has_triton=util.find_spec("triton") is not None,
        gpu_fault=fault,
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


def _gpus(environment: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs that a worker would see, with what is free on each now; and the driver's fault, where it has one."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return (), None
    listing, fault = _nvidia_smi(f"--query-gpu={QUERY}")
    if listing is None and fault is not None and "compute_cap" in fault:
        listing, fault = _nvidia_smi(f"--query-gpu={OLD_QUERY}")
    if listing is None:
        return (), fault if DRIVER_FILES.exists() else None
    found = [gpu for line in listing.splitlines() if (gpu := _gpu(line)) is not None]
    if visible is not None and all(word.strip().isdecimal() for word in visible.split(",")):
        by_index = {gpu.index: gpu for gpu in found}
        found = [by_index[int(word)] for word in visible.split(",") if int(word) in by_index]
    return tuple(found), None


def gpu_users(gpu: Gpu) -> list[GpuUser]:
    """Who holds this GPU's memory, the greediest first; empty where the system does not tell (in a container)."""
    listing, _ = _nvidia_smi(f"--id={gpu.index}", f"--query-compute-apps={USERS_QUERY}")
    found: list[GpuUser] = []
    for line in (listing or "").splitlines():
        pid, _, rest = line.partition(",")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdecimal() and used.strip().isdecimal():
            found.append(GpuUser(pid=int(pid), name=Path(name.strip()).name, used_bytes=int(used) << 20))
    return sorted(found, key=lambda user: -user.used_bytes)


def _nvidia_smi(*query: str) -> tuple[str | None, str | None]:
    """(its answer, None), or (None, what it says); (None, None) where it is absent."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return None, None
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"nvidia-smi: {type(error).__name__}"
    if done.returncode == 0:
        return done.stdout, None
    said = " ".join((done.stderr or done.stdout).split())[:300]
    return None, said or f"nvidia-smi ended with {done.returncode}"


def _gpu(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        index, name, total, free, driver, *more = fields
        return Gpu(
            index=int(index),
            name=name,
            total_bytes=int(total) << 20,
            free_bytes=int(free) << 20,
            driver=driver,
            capability=float(more[0]) if more else None,
        )
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
