"""A state database on disk, and hands that make versions, jobs and datasets in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.catalog import make
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.versions import final_columns
from tunesmith.jobs.store import JobStore, NewJob
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.jobs import JobRecord
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.database import Database, open_database, sqlite_url

PROJECT = "default"


@dataclass
class State:
    database: Database
    home: Path

    def job(self, *, version_set: str = "bot", parent: str | None = None, **asked: Any) -> JobRecord:
        """A submitted job, ACCEPTED, with its version in state CREATING."""
        store = JobStore(self.database)
        request = FinetuneRequest.model_validate({"model": "base", "dataset": "rows.jsonl"} | asked)
        new = NewJob(
            job_id=make.job_id(), request=request, settings=TrainingSettings(), version_set=version_set,
            results_uri=None, results_root=self.home / "results", base_name=request.model, parent=parent,
        )  # fmt: skip
        with self.database.write() as connection:
            return store.insert(connection, new)

    def version(self, *, version_set: str = "bot", state: VersionState = VersionState.ACTIVE, **fields: Any) -> str:
        """A version without a job, moved to `state`."""
        documents = {name: fields.pop(name) for name in ("lineage", "metrics", "verdict", "manifest") if name in fields}
        columns = final_columns(artifact_uri=fields.pop("artifact_uri", None), **documents)
        with self.database.write() as connection:
            name = add_version(
                connection, project=PROJECT, version_set=version_set, above=0, created_at=make.TIME,
                **({"name": "", "base_name": "base", "results_uri": "file:///results"} | fields),
            )  # fmt: skip
            if state is not VersionState.CREATING:
                move_version(connection, project=PROJECT, model_version=name, state=state, now=make.TIME, **columns)
        return name


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    database = open_database(sqlite_url(tmp_path))
    yield State(database=database, home=tmp_path)
    database.close()


@pytest.fixture
def connection(state: State) -> Iterator[sa.Connection]:
    """One write transaction around a test that needs nothing durable."""
    with state.database.write() as connection:
        yield connection
