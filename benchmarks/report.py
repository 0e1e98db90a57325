"""Where results go: one JSON a run, with the machine, the versions and the commit it was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.files import write_json

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def save(name: str, result: dict[str, Any], *, libraries: tuple[str, ...]) -> Path:
    """Write `results/<name>-<day>.json`; returns its path."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()  # fmt: skip
    measured_at = datetime.now(UTC)
    document = {
        "measured_at": measured_at.isoformat(timespec="seconds"),
        "commit": commit,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: metadata.version(name) for name in libraries} | {"python": platform.python_version()},
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{measured_at:%Y-%m-%d}.json"
    write_json(path, document)
    return path
