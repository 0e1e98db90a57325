from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.catalog import make
from tests.catalog.conftest import PROJECT, State
from tunesmith.catalog import audit
from tunesmith.catalog.sets import remove_alias, set_alias
from tunesmith.catalog.versions import (
    change_version,
    delete_version,
    describe_version,
    find_version,
    list_versions,
    read_manifest,
    read_metrics,
)
from tunesmith.errors import Conflict, Unknown, UsageFault
from tunesmith.jobs.store import JobStore
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import NounChange, VersionState
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import EpochEvent
from tunesmith.storage.database import Database

MANIFEST = Manifest(
    job_id="job-1", model_version="bot:1", files=[ManifestFile(path="README.md", size=1, sha256="0" * 64)]
)


def names(database: Database, **asked: object) -> list[str]:
    with database.read() as connection:
        return [view.model_version for view in list_versions(connection, project=PROJECT, **asked).items]  # type: ignore[arg-type]


def test_a_version_of_a_submitted_job_is_shown_in_progress(state: State) -> None:
    job = state.job()
    with state.database.read() as connection:
        view = find_version(connection, job.model_version, project=PROJECT)
    assert (view.shown_state, view.job_id, view.artifact_uri) == ("In progress", job.job_id, None)


def test_metrics_of_a_running_job_are_its_epoch_events_the_last_of_each_epoch(state: State) -> None:
    job, store = state.job(), JobStore(state.database)
    lease, _ = store.acquire(job.job_id, owner="h/1/1")
    store.move(job.job_id, JobState.IN_PROGRESS, lease=lease)
    for epoch, loss in ((0, 3.0), (1, 2.5), (1, 2.0)):
        scores = make.scores(loss)
        store.say(lease, EpochEvent(time=make.TIME, epoch=epoch, training=scores, validation=scores))
    with state.database.read() as connection:
        found = read_metrics(connection, job.model_version, project=PROJECT)
    assert [(epoch.epoch, epoch.training.loss) for epoch in found.epochs] == [(0, 3.0), (1, 2.0)]
    assert found.best_epoch is None


def test_what_the_job_found_out_stands_in_its_finished_version(state: State) -> None:
    name = state.version(
        lineage=make.lineage(), metrics=make.metrics(3.0, 1.0), verdict=make.verdict(), manifest=MANIFEST,
        artifact_uri="file:///results/bot/1",
    )  # fmt: skip
    with state.database.read() as connection:
        detail = describe_version(connection, name, project=PROJECT)
        assert read_manifest(connection, name, project=PROJECT) == MANIFEST
    assert detail.lineage == make.lineage()
    assert detail.metrics == make.metrics(3.0, 1.0)
    assert detail.verdict == make.verdict()
    assert (detail.version.best_epoch, detail.version.outcome) == (1, "improved")
    assert [file.path for file in detail.files] == ["README.md"]


def test_nothing_is_read_of_a_version_that_is_not_active(state: State) -> None:
    name = state.version(state=VersionState.FAILED)
    with state.database.read() as connection, pytest.raises(Conflict) as caught:
        read_manifest(connection, name, project=PROJECT)
    assert caught.value.code == "VERSION_NOT_ACTIVE"


def test_pages_hold_every_version_once_newest_first_while_others_are_added(state: State) -> None:
    added = [state.version() for _ in range(7)]
    seen: list[str] = []
    after = None
    while True:
        with state.database.read() as connection:
            page = list_versions(connection, project=PROJECT, after=after, limit=3)
        seen += [view.model_version for view in page.items]
        state.version(version_set="others")
        if page.next is None:
            break
        after = page.next
    assert seen == added[::-1]


@pytest.mark.parametrize("limit", [0, 201, -1])
def test_a_page_has_one_to_two_hundred_entries(connection: sa.Connection, limit: int) -> None:
    with pytest.raises(UsageFault, match="1 to 200"):
        list_versions(connection, project=PROJECT, limit=limit)


@pytest.mark.parametrize("after", ["x", "-1", "1; drop table jobs", "9" * 30, "²"])
def test_a_cursor_that_no_page_gave_is_refused(connection: sa.Connection, after: str) -> None:
    with pytest.raises(UsageFault) as caught:
        list_versions(connection, project=PROJECT, after=after)
    assert caught.value.code == "BAD_CURSOR"


def test_lists_are_narrowed_by_state_set_and_tag(state: State) -> None:
    one = state.version(version_set="bot")
    other = state.version(version_set="helper", state=VersionState.FAILED)
    with state.database.write() as connection:
        change_version(connection, one, NounChange(tags={"team": "Support", "x": "1"}), project=PROJECT, actor="a")
    assert names(state.database) == [other, one]
    assert names(state.database, version_set="bot") == [one]
    assert names(state.database, version_set="nobody") == []
    assert names(state.database, state=VersionState.FAILED) == [other]
    assert names(state.database, tag="team") == [one]
    assert names(state.database, tag="team=Support") == [one]
    assert names(state.database, tag="team=support") == []
    assert names(state.database, tag="tea") == []


def test_search_finds_all_words_in_any_text_whatever_the_case_and_takes_no_wildcard(state: State) -> None:
    one = state.version(description="Answers für Kunden, 100% polite")
    state.version(description="something else")
    assert names(state.database, search="KUNDEN answers") == [one]
    assert names(state.database, search="100%") == [one]
    assert names(state.database, search="1%e") == []
    assert names(state.database, search="kunden nobody") == []


def test_another_project_sees_nothing(state: State) -> None:
    name = state.version()
    with state.database.read() as connection:
        assert list_versions(connection, project="other").items == []
        with pytest.raises(Unknown):
            find_version(connection, name, project="other")


def test_an_alias_names_the_version_that_it_points_at(state: State) -> None:
    first, second = state.version(), state.version()
    with state.database.write() as connection:
        set_alias(connection, "bot", "prod", number=1, project=PROJECT, actor="a")
        assert find_version(connection, "bot@prod", project=PROJECT).model_version == first
        set_alias(connection, "bot", "prod", number=2, project=PROJECT, actor="a")
        assert find_version(connection, "bot@prod", project=PROJECT).model_version == second
        assert find_version(connection, second, project=PROJECT).aliases == ["prod"]
        assert find_version(connection, first, project=PROJECT).aliases == []


@pytest.mark.parametrize("name", ["bot", "bot:", ":1", "bot:x", "bot:-1", "bot:1.0", "bot:²", "bot:9999999999", ""])
def test_what_names_no_version_is_refused(connection: sa.Connection, name: str) -> None:
    with pytest.raises(UsageFault) as caught:
        find_version(connection, name, project=PROJECT)
    assert caught.value.code == "BAD_VERSION_NAME"


@pytest.mark.parametrize(
    ("name", "code"),
    [("bot:7", "UNKNOWN_VERSION"), ("no:1", "UNKNOWN_VERSION"), ("no@prod", "UNKNOWN_VERSION_SET")],
)
def test_a_version_that_is_not_there_is_unknown(state: State, name: str, code: str) -> None:
    state.version()
    with state.database.read() as connection, pytest.raises(Unknown) as caught:
        find_version(connection, name, project=PROJECT)
    assert caught.value.code == code


def test_what_is_aliased_cannot_be_deleted_until_the_alias_is_gone(state: State) -> None:
    name = state.version()
    with state.database.write() as connection:
        set_alias(connection, "bot", "prod", number=1, project=PROJECT, actor="a")
        with pytest.raises(Conflict, match="bot@prod") as caught:
            delete_version(connection, name, with_bytes=False, project=PROJECT, actor="a")
        assert caught.value.code == "VERSION_ALIASED"
        assert find_version(connection, name, project=PROJECT).state is VersionState.ACTIVE
        remove_alias(connection, "bot", "prod", project=PROJECT, actor="a")
        gone = delete_version(connection, name, with_bytes=False, project=PROJECT, actor="a")
        assert gone.state is VersionState.DELETED
    assert names(state.database) == []
    assert names(state.database, state=VersionState.DELETED) == [name]


def test_what_a_running_job_makes_or_goes_on_from_cannot_be_deleted(state: State) -> None:
    parent = state.version()
    job = state.job(parent=parent)
    for name in (parent, job.model_version):
        with state.database.write() as connection, pytest.raises(Conflict, match=job.job_id) as caught:
            delete_version(connection, name, with_bytes=True, project=PROJECT, actor="a")
        assert caught.value.code == "VERSION_IN_USE"
    JobStore(state.database).move(job.job_id, JobState.CANCELED, lease=None)
    with state.database.write() as connection:
        delete_version(connection, parent, with_bytes=False, project=PROJECT, actor="a")


def test_a_parent_knows_its_children(state: State) -> None:
    parent = state.version()
    child = state.version(parent=parent)
    with state.database.read() as connection:
        assert describe_version(connection, parent, project=PROJECT).children == [child]


def test_a_deleted_version_is_not_changed(state: State) -> None:
    name = state.version()
    with state.database.write() as connection:
        delete_version(connection, name, with_bytes=False, project=PROJECT, actor="a")
        with pytest.raises(Conflict) as caught:
            change_version(connection, name, NounChange(name="x"), project=PROJECT, actor="a")
    assert caught.value.code == "VERSION_DELETED"


def test_a_number_is_not_given_again_after_its_version_is_deleted(state: State) -> None:
    name = state.version()
    with state.database.write() as connection:
        delete_version(connection, name, with_bytes=False, project=PROJECT, actor="a")
    assert state.version() == "bot:2"


def test_every_change_leaves_who_did_it(state: State) -> None:
    name = state.version()
    with state.database.write() as connection:
        change_version(connection, name, NounChange(description="new"), project=PROJECT, actor="ada")
        delete_version(connection, name, with_bytes=False, project=PROJECT, actor="bob")
        told = audit.list_audit(connection, object=name).items
    assert [(each.actor, each.action) for each in told] == [("bob", "version.delete"), ("ada", "version.change")]


def test_two_versions_with_the_same_files_do_not_lose_them_to_each_other(state: State) -> None:
    one = state.version(artifact_uri="file:///results/a")
    state.version(artifact_uri="file:///results/a")
    with state.database.write() as connection, pytest.raises(Conflict, match="bot:2"):
        delete_version(connection, one, with_bytes=True, project=PROJECT, actor="a")
