"""Starts workers on this machine: a clean environment, a session of their own, output to a log.

In: a module name, its argument and a folder. Out: a running process. The environment is an allow-list: no credential,
no PYTHONPATH and no preload reaches a worker, and `-P` keeps its folder off the import path. Following a process
that another supervisor started goes by pid and start time, because pids are used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

KEPT_VARIABLES = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TUNESMITH_HOME", "XDG_CACHE_HOME",
        # thread counts
        "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
        "RAYON_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
        "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME",
        # compiled kernels are kept between runs
        "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR",
        # Windows and macOS cannot start Python without theirs
        "SYSTEMROOT", "TEMP", "TMP", "__CF_USER_TEXT_ENCODING",
    }
)  # fmt: skip
KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "PYTORCH_CUDA_", "PYTORCH_ALLOC_")
SET_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
}
# Threads that spin while they wait are quick on an idle machine and starve each other on a busy one. A step of the
# bundled model on 2 cores: 160 ms spinning and 330 ms sleeping when idle, 1,770 ms and 640 ms at a load of 4.
# A user's own wish counts.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
# Batches on a GPU differ in size: segments that grow let freed memory serve the next size, too. Again a wish counts.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
GROWING_SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
# Kernels compiled for a GPU lie in the state folder where one is named: a service's user may have no home that can be
# written, and a container's is gone with it. Once more a wish counts.
COMPILED = {"TRITON_CACHE_DIR": "cache/triton", "TORCHINDUCTOR_CACHE_DIR": "cache/inductor"}
IDLE_SHARE = 0.7  # of the processors' time, in the moment before a worker starts
IDLE_SAMPLE_SECONDS = 0.1
LINUX_PROCESSES = Path("/proc/self/stat")
SAME_START_SECONDS = 0.005  # half a tick of the system's clock
# A shell that becomes the worker once it has read a line; at the end of its input it just ends.
HOLD = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")
TRAINER = "tunesmith.train"
BENCH = "tunesmith.train.bench"
INSPECTOR = "tunesmith.models.inspect"


def worker_environment(environment: Mapping[str, str], *, needs_cuda: bool, is_idle: bool) -> dict[str, str]:
    """The variables a worker gets. The library path is kept for a GPU's driver only; is_idle: its threads may spin."""
    kept = {
        name: value
        for name, value in environment.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES) or (needs_cuda and name == "LD_LIBRARY_PATH")
    }
    waiting = {} if is_idle or kept.keys() & set(WAIT_VARIABLES) else SLEEPING_THREADS
    memory = GROWING_SEGMENTS if needs_cuda and not kept.keys() & set(ALLOCATOR_VARIABLES) else {}
    home = kept.get("TUNESMITH_HOME")
    compiled = {name: f"{home}/{folder}" for name, folder in COMPILED.items()} if needs_cuda and home else {}
    return compiled | kept | SET_VARIABLES | waiting | memory


def machine_is_idle(*, counters: Path = Path("/proc/stat")) -> bool:
    """Whether the processors have little else to do just now; False where the system does not tell."""

    def idle_and_all() -> tuple[int, int]:
        times = [int(field) for field in counters.read_text().partition("\n")[0].split()[1:9]]
        return times[3] + times[4], sum(times)  # idle, and idle while waiting for a disk

    try:
        idle_before, all_before = idle_and_all()
        time.sleep(IDLE_SAMPLE_SECONDS)
        idle_after, all_after = idle_and_all()
    except (OSError, ValueError, IndexError):
        return False
    return all_after > all_before and idle_after - idle_before >= IDLE_SHARE * (all_after - all_before)


def worker_command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]


def train_command(job_file: Path) -> list[str]:
    return worker_command(TRAINER, str(job_file))


def start_logged(
    command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str], is_held: bool = False
) -> int:
    """Start `command` in `folder` with its output appended to `log`; returns its pid. It outlives its supervisor.

    is_held: it does nothing before `release`, and ends by itself should this process die first: nobody would know of a
    worker whose pid was not yet written down.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*HOLD, *command] if is_held else command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE if is_held else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children[process.pid] = process
    if is_held:
        _awaited[process.pid] = b"go\n"
    return process.pid


def release(pid: int) -> None:
    """Let a held worker go; it keeps its pid and start time."""
    line = _children[pid].stdin
    assert line is not None, "only a worker that is held"
    with contextlib.suppress(BrokenPipeError), line:  # killed meanwhile: whoever watches it will see
        line.write(_awaited.pop(pid))


class Standby:
    """A training worker that imports what takes seconds while its job is still being checked and planned.

    A context manager: a worker that got no job ends with the block.
    """

    def __init__(self, environment: Mapping[str, str], *, folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self._is_idle = machine_is_idle()  # now, before our own checks keep the machine busy
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with self._process as unwanted:
                unwanted.kill()
            self._process = None

    def start(self, *, needs_cuda: bool, needs_transformers: bool) -> None:
        self._process = subprocess.Popen(
            worker_command(TRAINER, "-", *(["transformers"] if needs_transformers else [])),
            cwd=self._folder,
            env=worker_environment(self._environment, needs_cuda=needs_cuda, is_idle=self._is_idle),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def take(self, job_file: Path, *, log: Path) -> int | None:
        """The worker for this job, held; returns its pid. None where there is none: the caller starts another."""
        if self._process is None or self._process.poll() is not None:
            return None
        process, self._process = self._process, None
        _children[process.pid] = process
        _awaited[process.pid] = json.dumps({"job_file": str(job_file), "log": str(log)}).encode() + b"\n"
        return process.pid


_children: dict[int, subprocess.Popen[bytes]] = {}  # ours to reap; a followed worker is not among them
_awaited: dict[int, bytes] = {}  # the line that a held worker waits for


def exit_code(pid: int) -> int | None:
    """Exit code of a child that has ended (negative: the signal that killed it); None while it runs or is not ours."""
    child = _children.get(pid)
    return child.poll() if child else None


def process_started_at(pid: int) -> float | None:
    """Start of a live process in seconds of `process_clock`; None where there is none (a zombie is none)."""
    if not LINUX_PROCESSES.exists():
        return _listed_start(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def process_clock() -> float:
    """Now, on the clock of `process_started_at`: seconds since the machine's start, which no clock change moves."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if LINUX_PROCESSES.exists() else time.time()


def _listed_start(pid: int) -> float | None:
    """Where there is no /proc: seconds since the epoch."""
    listing = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
    )
    words = listing.stdout.strip()
    return time.mktime(time.strptime(words, "%a %b %d %H:%M:%S %Y")) if words else None


def is_running(pid: int, *, started_at: float | None) -> bool:
    """Whether the process with this pid is the one that started then."""
    if exit_code(pid) is not None:
        return False
    found = process_started_at(pid)
    return found is not None and (started_at is None or abs(found - started_at) < SAME_START_SECONDS)


def signal_worker(pid: int, number: int, *, whole_group: bool = False) -> None:
    """Send a signal to a worker, or to everything that it started; a process already gone is fine."""
    try:
        if whole_group:
            os.killpg(pid, number)  # a worker leads its own session, so its group has its pid
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return
