"""The state folder: `TUNESMITH_HOME`, or the platform's user data folder.

In: the environment. Out: a `Home` whose folders exist and can be written. Holds jobs, caches and local results;
what lies inside a job's folder belongs to `records.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import MachineCannot

HOME_VARIABLE = "TUNESMITH_HOME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    root: Path

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def serve_lock(self) -> Path:
        """Held by the server of this state folder, for as long as it runs."""
        return self.root / "serve.lock"

    @property
    def own_socket(self) -> Path:
        """Where the server answers whoever may write in this folder, without a token: a proxy of the same user."""
        return self.root / "serve.sock"

    @property
    def datasets(self) -> Path:
        """Uploaded datasets, a folder each, named by their ids."""
        return self.root / "datasets"

    @property
    def uploads(self) -> Path:
        """What is arriving; emptied when a server starts."""
        return self.root / "uploads"

    @property
    def models(self) -> Path:
        """Base models that were downloaded, by hub id and commit."""
        return self.root / "models"

    @property
    def downloads(self) -> Path:
        """Locks of downloads, and files on their way to a bucket."""
        return self.root / "downloads"


def home_path(environment: Mapping[str, str]) -> Path:
    """Where the state lies or would lie; nothing is created."""
    if named := environment.get(HOME_VARIABLE):
        return Path(named).expanduser().absolute()
    import platformdirs  # only where the variable is absent: it costs 10 ms of every command

    return Path(platformdirs.user_data_dir("tunesmith", appauthor=False))


def open_home(environment: Mapping[str, str]) -> Home:
    """The state folder, made if need be (mode 0700). Raises MachineCannot where it cannot be written."""
    home = Home(root=home_path(environment))
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (home.jobs, home.cache, home.results, home.logs, home.datasets, home.uploads):
            folder.mkdir(mode=0o700, exist_ok=True)
        probe = home.root / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise MachineCannot(
            "HOME_NOT_WRITABLE",
            f"The state folder {home.root} cannot be written: {error.strerror or error}.",
            field=HOME_VARIABLE,
            hint=f"Set {HOME_VARIABLE} to a folder that you may write.",
        ) from error
    return home
