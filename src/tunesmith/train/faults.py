"""What went wrong in a worker, in words: out of memory, a GPU that fell away, a full disk, and the rest.

In: an exception. Out: the error that the user is told, and whether another attempt may help. Classes of CUDA errors
come as text: torch has one exception for most of them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import torch

from tunesmith.errors import MachineCannot, TunesmithError
from tunesmith.plan.machine import GpuUser, gpu_users, this_machine

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
# The device, its driver or its link: nothing that the run's settings could mend.
GPU_FAULT_WORDS = (
    "cuda error",
    "cuda driver",
    "cuda unknown error",
    "cuda runtime error",
    "no cuda gpus are available",
    "found no nvidia driver",
    "no cuda-capable device",
    "driver on your system is too old",
    "cublas_status",
    "cudnn_status",
    "uncorrectable ecc error",
)
TAKEN_BYTES = 1 << 30  # held by others: from here on theirs is worth naming
SHOWN_USERS = 3


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS)


def is_gpu_fault(error: BaseException) -> bool:
    kinds = (RuntimeError, AssertionError)  # torch.AcceleratorError is a RuntimeError
    return isinstance(error, kinds) and any(words in str(error).lower() for words in GPU_FAULT_WORDS)


def classify(error: BaseException) -> tuple[TunesmithError, bool]:
    """What the user is told of an exception, and whether another attempt may help."""
    if isinstance(error, TunesmithError):
        return error, False
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return (
            MachineCannot(
                "DISK_FULL",
                "The disk is full; the newest whole checkpoint is kept.",
                field="TUNESMITH_HOME",
                hint="Free some space.",
            ),
            False,
        )
    if is_out_of_memory(error):
        return out_of_memory(error), False
    if is_gpu_fault(error):
        return (
            MachineCannot(
                "GPU_FAULT",
                f"The GPU or its driver failed: {_first_line(error)} The newest whole checkpoint is kept.",
                field="device",
                hint="`tunesmith doctor` looks at the driver. A GPU that does this again may be broken; "
                "`nvidia-smi -q` and the system's log (Xid) tell more.",
            ),
            True,
        )
    return (
        TunesmithError(
            "INTERNAL",
            f"A fault of ours in the training worker: {type(error).__name__}: {error}",
            hint="The worker's log holds the traceback; please report it.",
        ),
        True,
    )


def out_of_memory(error: BaseException, *, what: str = "Memory ran out") -> MachineCannot:
    """Who holds the memory is named; where it is others, the job waits for them."""
    users = other_users()
    taken = sum(user.used_bytes for user in users)
    if taken >= TAKEN_BYTES:
        return MachineCannot(
            "DOES_NOT_FIT_NOW",
            f"{what}: other processes hold {taken / 1e9:.1f} GB of the GPU ({_listed(users)}). {_first_line(error)}",
            field="device",
            hint="Wait for them or end them; the job goes on from its newest checkpoint.",
        )
    return MachineCannot(
        "OUT_OF_MEMORY",
        f"{what}: {_first_line(error)}",
        field="micro_batch_size",
        hint="Lower --micro-batch-size or --sequence-length, or take a smaller base model.",
    )


def other_users() -> list[GpuUser]:
    """Processes beside this one that hold memory of its GPU, as far as the system tells."""
    if not torch.cuda.is_available():
        return []
    gpus = this_machine(os.environ).gpus
    return [user for user in gpu_users(gpus[0]) if user.pid != os.getpid()] if gpus else []


def _listed(users: Sequence[GpuUser]) -> str:
    shown = ", ".join(f"{user.name}, pid {user.pid}: {user.used_bytes / 1e9:.1f} GB" for user in users[:SHOWN_USERS])
    return shown + (f" and {len(users) - SHOWN_USERS} more" if len(users) > SHOWN_USERS else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no more to be had"
