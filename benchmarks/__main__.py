"""`python -m benchmarks`: every benchmark that this machine can run, one after the other."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("bench_start", "bench_tokens", "bench_training")

for name in BENCHMARKS:
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
