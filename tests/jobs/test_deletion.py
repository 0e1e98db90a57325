from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.jobs.conftest import submit_job
from tunesmith.catalog import audit, quotas, versions
from tunesmith.errors import Conflict, MachineCannot, Unknown
from tunesmith.jobs.deletion import MARK, delete_job, finish_deletions, remove_folder, what_goes
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State
from tunesmith.jobs.store import this_process
from tunesmith.jobs.supervisor import Ending, StopWish, run_job
from tunesmith.spec.catalog import DEFAULT_PROJECT, VersionDetail
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import Sample, SamplesEvent
from tunesmith.storage.tables import EVENTS, JOBS, MODEL_VERSIONS

Worker = Callable[[str], Callable[[Path], list[str]]]
SAMPLE = Sample(prompt="Hi", expected="Ho", base="Ha", tuned="Ho")


def detail(state: State, model_version: str) -> VersionDetail:
    with state.database.read() as connection:
        return versions.describe_version(connection, model_version, project=DEFAULT_PROJECT)


def delete(state: State, job_id: str) -> None:
    with state.database.write() as connection:
        delete_job(connection, job_id, state=state, actor="ada")


def test_a_deleted_job_leaves_its_model_version_as_it_was(
    state: State, job: JobFolder, worker: Worker, tmp_path: Path
) -> None:
    ended = run_job(
        job, state=state, environment={}, on_event=lambda _: None, wish=StopWish(), command=worker("succeeds")
    )
    assert ended.ending is Ending.SUCCEEDED
    lease, record = state.jobs.acquire(job.job_id, owner=this_process())
    state.jobs.say(lease, SamplesEvent(time="2026-01-01T00:00:00Z", samples=[SAMPLE]))
    with pytest.raises(MachineCannot, match="put away"):
        delete(state, job.job_id)
    state.jobs.release(lease)
    before = detail(state, record.model_version)
    assert before.samples == [SAMPLE] and before.metrics.epochs and before.verdict and before.files
    told = what_goes(job.job_id, state=state)
    assert told.bytes > 3000 and f"{record.num_events + 1} events" in told.goes[0]
    assert any(record.model_version in each for each in told.stays)
    assert any((tmp_path / "results").as_uri() in each for each in told.stays)

    delete(state, job.job_id)
    remove_folder(job.job_id, home=state.home)
    after = detail(state, record.model_version)
    assert after.version.is_job_deleted and after.version.job_id == job.job_id
    unmarked = after.version.model_copy(update={"is_job_deleted": False})
    assert after.model_copy(update={"version": unmarked}) == before
    assert not job.path.exists() and (tmp_path / "results" / "manifest.json").is_file()
    with state.database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(EVENTS)).scalar() == 0
        assert connection.execute(sa.select(sa.func.count()).select_from(JOBS)).scalar() == 0
        [entry] = audit.list_audit(connection, object=job.job_id).items
    assert (entry.action, entry.actor, entry.detail) == (
        "job.delete", "ada", {"version": record.model_version, "state": "SUCCEEDED"},
    )  # fmt: skip
    with pytest.raises(Unknown):
        delete(state, job.job_id)


def test_what_a_version_takes_up_is_counted_after_its_job_is_gone(state: State, job: JobFolder) -> None:
    version = state.jobs.move(job.job_id, JobState.CANCELED, lease=None).model_version
    delete(state, job.job_id)
    with state.database.write() as connection:
        quotas.recount(connection)
        assert quotas.find_quotas(connection, "local").used.versions == 1
        versions.delete_version(connection, version, with_bytes=False, project=DEFAULT_PROJECT, actor="ada")
        assert quotas.find_quotas(connection, "local").used.versions == 0


@pytest.mark.parametrize("state_now", [JobState.ACCEPTED, JobState.IN_PROGRESS, JobState.CANCELING])
def test_a_job_that_has_not_ended_is_not_deleted(state: State, job: JobFolder, state_now: JobState) -> None:
    with state.database.write() as connection:
        connection.execute(JOBS.update().values(state=state_now))
    for refused in (lambda: delete(state, job.job_id), lambda: what_goes(job.job_id, state=state)):
        with pytest.raises(Conflict) as refusal:
            refused()
        assert refusal.value.code == "JOB_NOT_FINISHED" and refusal.value.hint
    assert job.job_file.is_file() and not (job.path / MARK).exists()


def test_a_deletion_that_was_cut_short_is_finished_and_one_that_did_not_happen_undone(
    state: State, job: JobFolder, tmp_path: Path
) -> None:
    other = submit_job(state, results=tmp_path / "other")
    stranger = state.home.jobs / "job-of-another-database"
    stranger.mkdir()
    state.jobs.move(job.job_id, JobState.CANCELED, lease=None)
    delete(state, job.job_id)  # killed before its folder went
    (other.path / MARK).touch()  # killed before its transaction
    assert finish_deletions(state.home, state.database) == [job.job_id]
    assert not job.path.exists() and other.job_file.is_file() and not (other.path / MARK).exists()
    assert stranger.is_dir() and finish_deletions(state.home, state.database) == []


def test_a_version_of_an_unfinished_epoch_keeps_the_metrics_of_its_events(state: State, job: JobFolder) -> None:
    """A version whose metrics were never written into its own row."""
    state.jobs.move(job.job_id, JobState.CANCELED, lease=None)
    epoch = '{"time":"2026-01-01T00:00:00Z","kind":"epoch","epoch":0,"training":%s,"validation":null}'
    scores = '{"loss":2.0,"token_accuracy":0.5,"completion_accuracy":0.25}'
    with state.database.write() as connection:
        connection.execute(EVENTS.insert().values(job_id=job.job_id, number=99, kind="epoch", body=epoch % scores))
        [name] = connection.execute(sa.select(MODEL_VERSIONS.c.model_version)).scalars()
    before = detail(state, name).metrics
    assert [each.epoch for each in before.epochs] == [0]
    delete(state, job.job_id)
    assert detail(state, name).metrics == before
