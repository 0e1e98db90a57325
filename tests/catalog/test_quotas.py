"""Quotas: what is over one is refused, undone and told; what ends gives its place back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.server.conftest import add_job
from tunesmith.catalog import quotas
from tunesmith.catalog.audit import list_audit
from tunesmith.catalog.datasets import add_dataset, delete_dataset
from tunesmith.catalog.versions import delete_version
from tunesmith.errors import Conflict
from tunesmith.jobs.home import open_home
from tunesmith.jobs.state import State, open_state
from tunesmith.spec.catalog import NewDataset
from tunesmith.spec.datasets import DatasetReport
from tunesmith.spec.jobs import JobState
from tunesmith.spec.quotas import QuotaChange, Quotas, Usage
from tunesmith.storage.tables import USAGE

PROJECT = "default"


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))


def limit(state: State, principal: str = "*", **values: int) -> None:
    change = QuotaChange.model_validate(values)
    state.database.write_grouped(lambda on: quotas.change_quotas(on, principal, change, actor="ada"))


def used(state: State, principal: str = "local") -> Usage:
    with state.database.read() as connection:
        return quotas.find_quotas(connection, principal).used


def dataset(state: State, *, size: int = 10, source_uri: str | None = None) -> str:
    report = DatasetReport.model_validate(
        {"path": "rows.jsonl", "kind": "prompt-completion", "rows": 1, "duplicates": 0,
         "bytes": size, "content_hash": "c", "errors": [],
         "num_errors": 0, "warnings": [], "num_warnings": 0}
    )  # fmt: skip
    new = NewDataset(
        name="rows", sha256="a" * 64, columns={}, report=report, file_name="rows.jsonl", location=None,
        source_uri=source_uri,
    )  # fmt: skip
    return state.database.write_grouped(
        lambda connection: add_dataset(connection, new, project=PROJECT, actor="local").dataset_id
    )


def refusal(*call: Any, **values: Any) -> Conflict:
    with pytest.raises(Conflict) as caught:
        call[0](*call[1:], **values)
    assert caught.value.code == "QUOTA_EXCEEDED" and caught.value.hint
    return caught.value


def test_a_job_above_the_quota_is_refused_and_leaves_nothing_and_one_that_ends_makes_room(state: State) -> None:
    limit(state, queued_jobs=2)
    first = add_job(state)
    add_job(state)
    refused = refusal(add_job, state)
    assert refused.field == "queued_jobs"
    assert refused.message == "local is at 2 of 2 unfinished jobs, and asked for 1 more."
    assert len(state.jobs.records()) == 2 and used(state) == Usage(queued_jobs=2, versions=2)
    state.jobs.move(first.job_id, JobState.CANCELED, lease=None)
    assert used(state) == Usage(queued_jobs=1, versions=2)
    assert add_job(state).model_version == "demo-rows:3", "the refused one took no number"


def test_versions_count_until_they_are_deleted(state: State) -> None:
    limit(state, versions=1)
    first = add_job(state)
    assert refusal(add_job, state).field == "versions"
    state.jobs.move(first.job_id, JobState.CANCELED, lease=None)
    assert refusal(add_job, state).field == "versions"
    name = first.model_version
    state.database.write_grouped(
        lambda on: delete_version(on, name, with_bytes=False, project=PROJECT, actor="somebody else")
    )
    assert used(state) == Usage()
    add_job(state)


def test_datasets_count_by_number_and_by_uploaded_bytes(state: State) -> None:
    limit(state, datasets=2, uploaded_bytes=15)
    first = dataset(state)
    assert refusal(dataset, state).field == "uploaded_bytes"
    dataset(state, source_uri="s3://bucket/rows.jsonl")  # it stays where it lies
    assert refusal(dataset, state, size=1).field == "datasets"
    assert used(state) == Usage(datasets=2, uploaded_bytes=10)
    state.database.write_grouped(lambda on: delete_dataset(on, first, project=PROJECT, actor="somebody else"))
    assert used(state) == Usage(datasets=1)
    dataset(state, size=15)


def test_ones_own_limits_come_before_everybodys_and_both_can_be_taken_back(state: State) -> None:
    limit(state, queued_jobs=0, datasets=5)
    limit(state, "local", queued_jobs=1)
    with state.database.read() as connection:
        view = quotas.find_quotas(connection, "local")
    assert (view.limits.queued_jobs, view.limits.datasets, view.own) == (1, 5, ["queued_jobs"])
    assert view.limits.versions == Quotas().versions
    add_job(state)
    state.database.write_grouped(lambda connection: quotas.reset_quotas(connection, "local", actor="ada"))
    refusal(add_job, state)
    state.database.write_grouped(lambda connection: quotas.reset_quotas(connection, "*", actor="ada"))
    add_job(state)
    with state.database.read() as connection:
        told = [(each.action, each.object, each.detail) for each in list_audit(connection, actor="ada").items]
        listed = quotas.list_quotas(connection).items
    assert told[-1] == ("quota.change", "*", {"queued_jobs": 0, "datasets": 5})
    assert [each[0] for each in told[:2]] == ["quota.reset", "quota.reset"]
    assert [(view.principal, view.used.queued_jobs) for view in listed] == [("*", 0), ("local", 2)]


def test_a_limit_below_what_is_used_takes_nothing_away(state: State) -> None:
    add_job(state)
    limit(state, queued_jobs=0)
    assert len(state.jobs.records()) == 1
    refusal(add_job, state)


def test_counting_anew_finds_what_the_counts_say(state: State) -> None:
    jobs = [add_job(state) for _ in range(3)]
    state.jobs.move(jobs[0].job_id, JobState.CANCELED, lease=None)
    dataset(state)
    dataset(state, source_uri="s3://bucket/rows.jsonl")
    before = used(state)
    assert before == Usage(queued_jobs=2, versions=3, datasets=2, uploaded_bytes=10)
    with state.database.write() as connection:
        connection.execute(sa.update(USAGE).values(queued_jobs=77, versions=0))
        quotas.recount(connection)
    assert used(state) == before
