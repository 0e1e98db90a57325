"""Start-up: from the command to the first step of the bundled model, beside torch's own import in the same run.

    python -m benchmarks.bench_start [--rounds 5]

32 rows, so that the base model's evaluation before the first step costs little; what remains is interpreter, checks,
inspection, plan, model and the first step itself. The best of the rounds counts: noise only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.report import save
from tunesmith.bundled import TRAINING_ROWS

ROWS = 32


def seconds_to_first_step(folder: Path) -> float:
    """One run in a fresh home, so that no cache of an earlier round helps."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(TRAINING_ROWS.read_text().splitlines(keepends=True)[:ROWS]))
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", "tunesmith.cli", "finetune", "tunesmith/demo", str(rows), "--epochs", "1", "--json"],
        check=True,
        capture_output=True,
        env={**os.environ, "TUNESMITH_HOME": str(folder / "home")},
    )
    (events,) = (folder / "home" / "jobs").glob("*/events.jsonl")
    first = next(json.loads(line) for line in events.open() if '"kind": "step"' in line)
    return datetime.fromisoformat(first["time"]).timestamp() - started


def seconds_to_import_torch() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    whole: list[float] = []
    torch_alone: list[float] = []
    for _ in range(options.rounds):
        torch_alone.append(seconds_to_import_torch())
        with tempfile.TemporaryDirectory() as folder:
            whole.append(seconds_to_first_step(Path(folder)))
    summary = {
        "seconds_to_first_step": min(whole),
        "seconds_to_import_torch": min(torch_alone),
        "difference": min(whole) - min(torch_alone),
        "rounds": {"to_first_step": whole, "import_torch": torch_alone},
    }
    print(json.dumps(summary, indent=2))
    print(f"kept as {save('start', {'summary': summary}, libraries=('torch', 'transformers', 'tunesmith'))}")


if __name__ == "__main__":
    main()
