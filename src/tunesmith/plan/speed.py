"""How fast this machine computes: measured on a CPU, assumed from its name on a GPU. Said as such in the plan.

In: a machine and a folder that keeps what was measured. Out: operations a second that a whole training run sustains,
with the reason. The first time costs 0.3 s.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.files import write_atomic
from tunesmith.plan.machine import Machine

# Share of a plain matrix product's rate that training sustains. CPU: bundled model, 2 busy cores of a Xeon, torch 2.13:
# 1,900 tokens/s at best, 0.15 of what one idle thread times two would do.
CPU_SUSTAINED_SHARE = 0.2
# The same of a GPU's data sheet, by what computes the layers. One H200, Llama of 8B and 1B: the fast path 0.60 and
# 0.53, compiled layers 0.49 and 0.38; plain modules about half of that, which was not measured.
GPU_SUSTAINED_SHARES = {"fast": 0.56, "compiled": 0.43, "plain": 0.22}
ASSUMED_GPU_OPERATIONS = 100e12
# Dense bf16 operations a second, from the makers' data sheets.
GPU_OPERATIONS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "4090": 165e12}
PROBE_LIMIT_SECONDS = 30
# The best of a tenth of a second: a busy machine gives at least one undisturbed slice.
PROBE = """
import time, numpy as np
a = np.ones((384, 384), dtype=np.float32)
best, end = float("inf"), time.perf_counter() + 0.1
while time.perf_counter() < end:
    start = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - start)
print(2 * 384**3 / best)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """operations_per_second: sustained, where shares is empty; else each share of it, by what computes the layers."""

    operations_per_second: float
    reason: str
    shares: Mapping[str, float] = field(default_factory=dict[str, float])

    def of(self, *, path: str, is_compiled: bool) -> tuple[float, str]:
        """Sustained operations a second of a run, and why."""
        if not self.shares:
            return self.operations_per_second, self.reason
        share = self.shares["fast" if path == "fast" else "compiled" if is_compiled else "plain"]
        return self.operations_per_second * share, f"assumed, not measured: {share:.0%} of {self.reason}"


def machine_speed(machine: Machine, *, cache: Path) -> Speed:
    if machine.device == "cuda":
        name, peak = next(
            ((name, peak) for name, peak in GPU_OPERATIONS.items() if name in machine.device_name),
            ("", ASSUMED_GPU_OPERATIONS),
        )
        known = f"the data sheet's {peak / 1e12:.0f}" if name else f"an unknown GPU, taken for {peak / 1e12:.0f}"
        return Speed(
            operations_per_second=peak,
            reason=f"{known} TFLOP/s of {machine.device_name}",
            shares=GPU_SUSTAINED_SHARES,
        )
    key = hashlib.sha256(machine.processor.encode()).hexdigest()[:16]
    rate = _matrix_product_rate(cache / "speed" / key)
    return Speed(
        operations_per_second=rate * machine.threads * CPU_SUSTAINED_SHARE,
        reason=f"rough: {CPU_SUSTAINED_SHARE:.0%} of the {rate / 1e9:.0f} GFLOP/s measured for a matrix product, times "
        f"{machine.threads} threads, on a machine with nothing else to do",
    )


def _matrix_product_rate(kept: Path) -> float:
    """float32 operations a second of one thread's matrix product; measured once and kept in `kept`."""
    try:
        return float(kept.read_text())
    except (OSError, ValueError):
        pass
    # A process of its own: only there can numpy still be told to use one thread. Several threads would wait for each
    # other on a busy machine and measure a twentieth of what it can do.
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        capture_output=True,
        text=True,
        check=True,
        timeout=PROBE_LIMIT_SECONDS,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    text = f"{float(done.stdout):.6g}\n"
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, text.encode())
    return float(text)
