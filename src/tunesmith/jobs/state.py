"""The state that everything about jobs gets passed: the home's folders, its database, the jobs in it.

In: a `Home`. Out: a `State`. The database is opened, made or upgraded at its first use, and its libraries imported
then: that costs 0.15 s, which a command spends while a worker of its own runs already.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.spec.catalog import DEFAULT_PROJECT

if TYPE_CHECKING:
    from tunesmith.jobs.store import JobStore
    from tunesmith.storage.database import Database


@dataclass(frozen=True, kw_only=True)
class State:
    home: Home

    @cached_property
    def database(self) -> Database:
        """Raises MachineCannot (STATE_TOO_NEW, STATE_BUSY, STATE_NOT_WRITABLE), TunesmithError (STATE_DAMAGED)."""
        from tunesmith.storage.database import open_database, sqlite_url

        return open_database(sqlite_url(self.home.root))

    @cached_property
    def jobs(self) -> JobStore:
        from tunesmith.jobs.store import JobStore

        return JobStore(self.database)

    def folder(self, job_id: str, *, project: str | None = None) -> JobFolder:
        """The folder of a job, which may not be made yet. Raises Unknown (UNKNOWN_JOB)."""
        return JobFolder(path=self.home.jobs / self.jobs.read(job_id, project=project).job_id)

    def results(self, project: str) -> Path:
        """Where results of a project go that name no location. No version set begins with an underscore."""
        return self.home.results if project == DEFAULT_PROJECT else self.home.results / f"_{project}"

    def highest_result(self, version_set: str, *, project: str = DEFAULT_PROJECT) -> int:
        """The highest version number with a local result, known to the database or not (0: none)."""
        try:
            names = os.listdir(self.results(project) / version_set)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return max((int(name) for name in names if name.isdecimal()), default=0)


def open_state(home: Home) -> State:
    return State(home=home)
