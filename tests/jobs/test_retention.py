from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.catalog import make
from tunesmith.catalog import datasets, logs
from tunesmith.jobs.home import open_home
from tunesmith.jobs.retention import DAY, drop_old_logs, find_waste, remove
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import NewJob
from tunesmith.spec.catalog import NewLog
from tunesmith.spec.jobs import JobState
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.tables import JOBS

NOW = time.time()


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))


def job(state: State, *, days_ago: float | None, log: str | None = None, log_bytes: int = 0) -> Path:
    """A job's folder with a checkpoint; finished so many days ago, or not at all."""
    new = NewJob(
        job_id=make.job_id(), request=FinetuneRequest(model="base", dataset="rows.jsonl", log=log),
        settings=TrainingSettings(), version_set="bot", results_uri=None, results_root=state.home.results,
        base_name="base",
    )  # fmt: skip
    with state.database.write() as connection:
        state.jobs.insert(connection, new)
    if days_ago is not None:
        state.jobs.move(new.job_id, JobState.CANCELED, lease=None)
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - days_ago * DAY))
        with state.database.write() as connection:
            connection.execute(JOBS.update().where(JOBS.c.job_id == new.job_id).values(finished_at=finished))
    folder = state.home.jobs / new.job_id
    put(folder / "checkpoints" / "step-00000001" / "tensors.safetensors", 1000)
    put(folder / "events.jsonl", 10)
    put(folder / "logs" / "worker.log", log_bytes)
    return folder


def put(path: Path, size: int, *, days_ago: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    for each in (path, path.parent):
        os.utime(each, (NOW - days_ago * DAY,) * 2)
    return path


def waste(state: State, days: float = 7) -> dict[str, int]:
    found = find_waste(state.home, state.database, older_than_days=days, now=NOW)
    return {str(Path(each.path).relative_to(state.home.root)): each.bytes for each in found}


def test_checkpoints_of_old_finished_jobs_go_and_all_else_of_them_stays(state: State) -> None:
    old, young, running = job(state, days_ago=30), job(state, days_ago=1), job(state, days_ago=None)
    assert waste(state) == {f"jobs/{old.name}/checkpoints": 1000}
    for each in find_waste(state.home, state.database, older_than_days=7, now=NOW):
        remove(each)
        remove(each)
    assert not (old / "checkpoints").exists() and (old / "events.jsonl").exists()
    assert (young / "checkpoints").exists() and (running / "checkpoints").exists()
    assert waste(state) == {}
    assert f"jobs/{running.name}/checkpoints" not in waste(state, days=0)


def test_caches_go_by_age_and_stay_while_a_job_may_read_them(state: State) -> None:
    put(state.home.cache / "tokens" / "old" / "table.bin", 100, days_ago=30)
    put(state.home.cache / "tokens" / "new" / "table.bin", 100)
    put(state.home.cache / "objects" / "x", 10, days_ago=30)
    put(state.home.cache / "inspections" / "a.json", 1, days_ago=30)
    put(state.home.cache / "speed" / "this-machine.json", 1, days_ago=30)
    assert waste(state) == {"cache/tokens/old": 100, "cache/objects/x": 10, "cache/inspections/a.json": 1}
    job(state, days_ago=None)
    assert waste(state) == {"cache/inspections/a.json": 1}


def test_an_inspection_that_runs_is_not_waste_however_short_the_age(state: State) -> None:
    put(state.home.cache / "inspections" / "running.answer", 1)
    assert waste(state, days=0) == {}


def test_uploads_that_no_dataset_names_go_after_a_day(state: State) -> None:
    with state.database.write() as connection:
        kept = datasets.add_dataset(connection, make.dataset(), project="default", actor="a").dataset_id
    put(state.home.datasets / kept / "rows.jsonl", 5, days_ago=30)
    put(state.home.datasets / "ds-gone" / "rows.jsonl", 7, days_ago=30)
    put(state.home.uploads / "half.jsonl", 9, days_ago=2)
    put(state.home.uploads / "arriving.jsonl", 9)
    assert waste(state, days=0) == {"datasets/ds-gone": 7, "uploads/half.jsonl": 9}


def test_a_named_log_keeps_its_days_and_its_bytes(state: State) -> None:
    with state.database.write() as connection:
        logs.add_log(connection, NewLog(name="team", retention_days=10, maximum_bytes=1 << 20), actor="a")
    half = 1 << 19
    aged = job(state, days_ago=11, log="team", log_bytes=5)
    oldest = job(state, days_ago=6, log="team", log_bytes=half)
    job(state, days_ago=3, log="team", log_bytes=half)
    running = job(state, days_ago=None, log="team", log_bytes=half)
    other = job(state, days_ago=11, log_bytes=5)
    found = waste(state, days=1000)
    assert found == {f"jobs/{aged.name}/logs/worker.log": 5, f"jobs/{oldest.name}/logs/worker.log": half}
    assert f"jobs/{running.name}/logs/worker.log" not in found and f"jobs/{other.name}/logs/worker.log" not in found
    dropped = drop_old_logs(state.home, state.database, now=NOW)
    assert {str(Path(each.path).relative_to(state.home.root)) for each in dropped} == set(found)
    assert waste(state, days=1000) == {} and drop_old_logs(state.home, state.database, now=NOW) == []
    assert (running / "logs" / "worker.log").is_file() and (other / "logs" / "worker.log").is_file()
