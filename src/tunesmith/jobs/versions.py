"""Numbers of model versions: one counter per version set, in a file under a lock.

The service's database takes this over (a unique constraint inside a transaction); the numbers stay.
"""

from __future__ import annotations

import fcntl
import json
import os

from tunesmith.files import write_json
from tunesmith.jobs.home import Home


def next_version(home: Home, version_set: str) -> int:
    """The next number of a version set, never given twice, from 1. A number whose job never started is not re-used.

    A counter that was lost goes on behind the results that are there.
    """
    handle = os.open(home.root / ".versions.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        path = home.root / "versions.json"
        numbers: dict[str, int] = json.loads(path.read_bytes()) if path.exists() else {}
        numbers[version_set] = 1 + max(numbers.get(version_set, 0), _highest_published(home, version_set))
        write_json(path, numbers)
        return numbers[version_set]
    finally:
        os.close(handle)


def _highest_published(home: Home, version_set: str) -> int:
    folder = home.results / version_set
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)
