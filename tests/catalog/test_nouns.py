"""Base models, datasets, sets, locations, logs, networks: what all of them promise, and each alone."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from tests.catalog import make
from tests.catalog.conftest import PROJECT, State
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.catalog import audit, datasets, locations, logs, models, networks, sets
from tunesmith.catalog.known import bundled_facts
from tunesmith.errors import Conflict, Unknown, UsageFault
from tunesmith.jobs.store import JobStore
from tunesmith.spec.catalog import (
    BaseModelChange,
    LocationChange,
    LogChange,
    NetworkChange,
    NewBaseModel,
    NewLocation,
    NewLog,
    NewNetwork,
    NewVersionSet,
    NounChange,
    VersionState,
)
from tunesmith.spec.jobs import JobState

# ---- base models


def register(connection: sa.Connection, name: str = "acme/base") -> None:
    new = NewBaseModel(name=name, path="/models/base", tags={"size": "small"})
    models.register_model(connection, new, facts=make.facts(), actor="a")


def test_the_bundled_model_is_always_there_and_first(connection: sa.Connection) -> None:
    register(connection)
    page = models.list_models(connection)
    assert [model.name for model in page.items] == [MODEL_NAME, "acme/base"]
    bundled = models.find_model(connection, MODEL_NAME)
    assert (bundled.is_bundled, bundled.path, bundled.facts) == (True, str(MODEL_FOLDER), bundled_facts())
    assert [model.name for model in models.list_models(connection, search="acme").items] == ["acme/base"]


def test_the_bundled_model_is_neither_taken_changed_nor_deleted(connection: sa.Connection) -> None:
    with pytest.raises(Conflict, match=MODEL_NAME):
        register(connection, MODEL_NAME)
    with pytest.raises(Conflict, match="changed"):
        models.change_model(connection, MODEL_NAME, BaseModelChange(description="x"), actor="a")
    with pytest.raises(Conflict, match="deleted"):
        models.delete_model(connection, MODEL_NAME, project="default", actor="a")


def test_a_base_model_is_not_deleted_while_a_version_needs_it(state: State) -> None:
    with state.database.write() as connection:
        register(connection)
    version = state.version(base_name="acme/base")
    with state.database.write() as connection, pytest.raises(Conflict, match=version) as caught:
        models.delete_model(connection, "acme/base", project="default", actor="a")
    assert caught.value.code == "MODEL_IN_USE"
    failed = state.version(base_name="acme/other", state=VersionState.FAILED)
    assert failed == "bot:2"
    with state.database.write() as connection:
        register(connection, "acme/other")
        models.delete_model(connection, "acme/other", project="default", actor="a")
        with pytest.raises(Unknown):
            models.find_model(connection, "acme/other")


@pytest.mark.parametrize("name", ["", "/x", "a/b/c", "../x", "a b", "a/.hidden", "-x", "x" * 97])
def test_names_of_base_models_are_plain(name: str) -> None:
    with pytest.raises(ValidationError):
        NewBaseModel(name=name, path="/x")


# ---- datasets


def test_a_dataset_keeps_its_hashes_counts_and_report(connection: sa.Connection) -> None:
    made = datasets.add_dataset(connection, make.dataset(tags={"kind": "faq"}), project=PROJECT, actor="a")
    found = datasets.find_dataset(connection, made.dataset_id, project=PROJECT)
    assert found == made
    assert (found.rows, found.bytes, found.num_warnings, found.content_hash) == (10, 1000, 3, "c" * 64)
    assert datasets.read_report(connection, made.dataset_id, project=PROJECT) == make.report()
    with pytest.raises(Unknown):
        datasets.find_dataset(connection, made.dataset_id, project="other")


def test_a_dataset_is_found_and_changed(connection: sa.Connection) -> None:
    made = datasets.add_dataset(connection, make.dataset("first"), project=PROJECT, actor="a")
    datasets.add_dataset(connection, make.dataset("second"), project=PROJECT, actor="a")
    change = NounChange(name="Renamed", tags={"a": 'quote " and \\ slash'})
    datasets.change_dataset(connection, made.dataset_id, change, project=PROJECT, actor="a")
    for asked in ({"search": "renamed"}, {"tag": "a"}, {"tag": 'a=quote " and \\ slash'}):
        (found,) = datasets.list_datasets(connection, project=PROJECT, **asked).items
        assert (found.dataset_id, found.name, found.description) == (made.dataset_id, "Renamed", "")


@pytest.mark.parametrize("field", ["dataset", "validation_dataset", "test_dataset"])
def test_a_dataset_is_not_deleted_while_an_unfinished_job_asks_for_it(state: State, field: str) -> None:
    with state.database.write() as connection:
        made = datasets.add_dataset(connection, make.dataset(), project=PROJECT, actor="a")
    job = state.job(**{field: made.dataset_id})
    state.job(name=made.dataset_id)  # says its name, and reads another file
    with state.database.write() as connection, pytest.raises(Conflict) as caught:
        datasets.delete_dataset(connection, made.dataset_id, project=PROJECT, actor="a")
    assert caught.value.code == "DATASET_IN_USE"
    assert caught.value.message.endswith(f"is used by {job.job_id}.")
    JobStore(state.database).move(job.job_id, JobState.CANCELED, lease=None)
    with state.database.write() as connection:
        datasets.delete_dataset(connection, made.dataset_id, project=PROJECT, actor="a")
        with pytest.raises(Unknown):
            datasets.find_dataset(connection, made.dataset_id, project=PROJECT)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a\0b"])
def test_the_file_name_of_a_dataset_is_one_step(name: str) -> None:
    with pytest.raises(ValidationError):
        make.dataset(file_name=name)


# ---- tags


@pytest.mark.parametrize(
    "tags",
    [
        {"": "x"},
        {"a b": "x"},
        {"a=b": "x"},
        {"a": "line\nbreak"},
        {"a": "x" * 257},
        {str(i): "" for i in range(51)},
    ],
)
def test_tags_have_limits(tags: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        NounChange(tags=tags)


# ---- sets and aliases


def test_a_set_counts_its_versions_and_shows_its_aliases(state: State) -> None:
    state.version()
    state.version()
    with state.database.write() as connection:
        sets.set_alias(connection, "bot", "prod", number=2, project=PROJECT, actor="a")
        sets.describe_set(connection, "bot", "Answers", project=PROJECT, actor="a")
        view = sets.find_set(connection, "bot", project=PROJECT)
    assert (view.versions, view.last_number, view.description) == (2, 2, "Answers")
    assert [(alias.alias, alias.model_version) for alias in view.aliases] == [("prod", "bot:2")]


def test_sets_are_listed_by_name_in_pages(connection: sa.Connection) -> None:
    for name in ("c", "a", "b"):
        sets.add_set(connection, NewVersionSet(name=name), project=PROJECT, actor="a")
    first = sets.list_sets(connection, project=PROJECT, limit=2)
    rest = sets.list_sets(connection, project=PROJECT, limit=2, after=first.next)
    assert [view.name for view in (*first.items, *rest.items)] == ["a", "b", "c"]
    assert rest.next is None
    with pytest.raises(Conflict):
        sets.add_set(connection, NewVersionSet(name="a"), project=PROJECT, actor="a")


@pytest.mark.parametrize("alias", ["1", "Prod", "a b", "a@b", "a:b", "", "x" * 64, "ü"])
def test_an_alias_is_never_taken_for_something_else(state: State, alias: str) -> None:
    state.version()
    with state.database.write() as connection, pytest.raises(UsageFault) as caught:
        sets.set_alias(connection, "bot", alias, number=1, project=PROJECT, actor="a")
    assert caught.value.code == "BAD_ALIAS"


@pytest.mark.parametrize("version_state", [VersionState.CREATING, VersionState.FAILED, VersionState.CANCELED])
def test_an_alias_points_at_active_versions_alone(state: State, version_state: VersionState) -> None:
    state.version(state=version_state)
    with state.database.write() as connection:
        with pytest.raises(Conflict) as caught:
            sets.set_alias(connection, "bot", "prod", number=1, project=PROJECT, actor="a")
        assert caught.value.code == "VERSION_NOT_ACTIVE"
        with pytest.raises(Unknown):
            sets.set_alias(connection, "bot", "prod", number=2, project=PROJECT, actor="a")


def test_an_alias_that_went_away_and_came_back_is_a_new_generation(state: State) -> None:
    state.version()
    with state.database.write() as connection:
        first = sets.set_alias(connection, "bot", "prod", number=1, project=PROJECT, actor="a")
        sets.remove_alias(connection, "bot", "prod", project=PROJECT, actor="a")
        with pytest.raises(Unknown) as caught:
            sets.remove_alias(connection, "bot", "prod", project=PROJECT, actor="a")
        second = sets.set_alias(connection, "bot", "prod", number=1, project=PROJECT, actor="a")
    assert caught.value.code == "UNKNOWN_ALIAS"
    assert second.generation > first.generation


# ---- locations, logs, networks

NOUNS: list[Any] = [
    pytest.param(
        locations.add_location, locations.find_location, locations.list_locations, locations.remove_location,
        lambda name: NewLocation(name=name, uri=f"s3://{name}"), id="locations",
    ),
    pytest.param(
        logs.add_log, logs.find_log, logs.list_logs, logs.remove_log, lambda name: NewLog(name=name), id="logs"
    ),
    pytest.param(
        networks.add_network, networks.find_network, networks.list_networks, networks.remove_network,
        lambda name: NewNetwork(name=name, cidr="10.0.0.0/24"), id="networks",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("add", "find", "list_", "remove", "new"), NOUNS)
def test_an_administrators_noun_is_added_once_listed_by_name_and_removed(
    connection: sa.Connection, add: Any, find: Any, list_: Any, remove: Any, new: Any
) -> None:
    for name in ("b", "a"):
        assert add(connection, new(name), actor="ada").name == name
    with pytest.raises(Conflict):
        add(connection, new("a"), actor="ada")
    assert [view.name for view in list_(connection).items] == ["a", "b"]
    assert [view.name for view in list_(connection, search="B").items] == ["b"]
    assert find(connection, "a").name == "a"
    remove(connection, "a", actor="bob")
    for call in (lambda: find(connection, "a"), lambda: remove(connection, "a", actor="bob")):
        with pytest.raises(Unknown):
            call()
    actors = [each.actor for each in audit.list_audit(connection).items]
    assert actors == ["bob", "ada", "ada"]


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "a:b", "-a", "x" * 64, "..", "a\n"])
@pytest.mark.parametrize("make_new", [noun.values[4] for noun in NOUNS])
def test_names_are_plain(make_new: Any, name: str) -> None:
    with pytest.raises(ValidationError):
        make_new(name)


def test_what_an_unfinished_job_uses_stays(state: State) -> None:
    with state.database.write() as connection:
        locations.add_location(connection, NewLocation(name="data", uri="s3://data"), actor="a")
        locations.add_location(connection, NewLocation(name="out", uri=(state.home / "results").as_uri()), actor="a")
        logs.add_log(connection, NewLog(name="team"), actor="a")
        networks.add_network(connection, NewNetwork(name="fast", cidr="10.0.0.0/24"), actor="a")
        networks.add_network(connection, NewNetwork(name="team", cidr="10.0.1.0/24"), actor="a")
    job = state.job(dataset="data:rows.jsonl", log="team", network="fast")
    removals = [
        (locations.remove_location, "data"),
        (locations.remove_location, "out"),
        (logs.remove_log, "team"),
        (networks.remove_network, "fast"),
    ]
    with state.database.read() as connection:
        assert locations.users_of_location(connection, "data") == ([], [job.job_id])
        assert locations.users_of_location(connection, "out") == ([], [job.job_id])
        assert logs.jobs_of_log(connection, "team") == networks.jobs_of_network(connection, "fast") == [job.job_id]
        assert networks.jobs_of_network(connection, "team") == []
    for remove, name in removals:
        with state.database.write() as connection, pytest.raises(Conflict, match=job.job_id):
            remove(connection, name, actor="a")
    JobStore(state.database).move(job.job_id, JobState.CANCELED, lease=None)
    for remove, name in [*removals, (networks.remove_network, "team")]:
        with state.database.write() as connection:
            remove(connection, name, actor="a")


def test_a_uri_is_reached_through_the_deepest_location_that_holds_it(connection: sa.Connection) -> None:
    for name, uri, credentials in (("all", "s3://bucket", "env:ALL"), ("team", "s3://bucket/team/", "env:TEAM")):
        new = NewLocation(name=name, uri=uri, credentials=credentials, endpoint_url="https://store.example")
        locations.add_location(connection, new, actor="a")
    deep = locations.location_of_uri(connection, "s3://bucket/team/bot/1")
    assert (deep.uri, deep.credentials, deep.endpoint_url) == (
        "s3://bucket/team/bot/1", "env:TEAM", "https://store.example",
    )  # fmt: skip
    assert locations.location_of_uri(connection, "s3://bucket/teammate/1").credentials == "env:ALL"
    assert locations.location_of_uri(connection, "s3://bucket-two/x").credentials is None


@pytest.mark.parametrize("credentials", ["AKIA123:secret", "env:", "plain", "file:"])
def test_a_location_keeps_a_reference_to_credentials_never_a_secret(credentials: str) -> None:
    with pytest.raises(ValidationError):
        NewLocation(name="a", uri="s3://b", credentials=credentials)


def test_a_location_is_changed_and_moved_only_while_nothing_uses_it(state: State) -> None:
    new = NewLocation(name="team", uri="s3://bucket/team", credentials="env:TEAM", region="r")
    with state.database.write() as connection:
        locations.add_location(connection, new, actor="a")
        view = locations.change_location(connection, "team", LocationChange(credentials="", region="r2"), actor="b")
        assert (view.credentials, view.region, view.uri) == (None, "r2", "s3://bucket/team")
        view = locations.change_location(connection, "team", LocationChange(uri="s3://other"), actor="b")
        assert view.uri == "s3://other"
    state.job(dataset="team:rows.jsonl")
    with state.database.write() as connection:
        for change in (LocationChange(uri="s3://other"), LocationChange(description="kept")):  # it stays where it is
            locations.change_location(connection, "team", change, actor="b")
        with pytest.raises(Conflict) as refusal:
            locations.change_location(connection, "team", LocationChange(uri="s3://third"), actor="b")
        assert refusal.value.code == "LOCATION_IN_USE"
        told = [(each.action, each.object) for each in audit.list_audit(connection, actor="b").items]
        assert told == [("location.change", "team")] * 4
        with pytest.raises(Unknown):
            locations.change_location(connection, "none", LocationChange(description="x"), actor="b")


@pytest.mark.parametrize("credentials", ["AKIA123:secret", "plain"])
def test_a_change_of_credentials_is_a_reference_too(credentials: str) -> None:
    with pytest.raises(ValidationError):
        LocationChange(credentials=credentials)


def test_a_log_is_changed(connection: sa.Connection) -> None:
    logs.add_log(connection, NewLog(name="team", description="all"), actor="a")
    view = logs.change_log(connection, "team", LogChange(retention_days=7), actor="a")
    assert (view.retention_days, view.description, view.maximum_bytes) == (7, "all", 1 << 30)


def test_a_network_is_changed_and_its_interface_taken_away(connection: sa.Connection) -> None:
    networks.add_network(connection, NewNetwork(name="n", cidr="10.0.0.0/24", interface="eth0"), actor="a")
    view = networks.change_network(connection, "n", NetworkChange(cidr="10.0.1.0/24"), actor="b")
    assert (view.cidr, view.interface) == ("10.0.1.0/24", "eth0")
    view = networks.change_network(connection, "n", NetworkChange(interface=""), actor="b")
    assert (view.cidr, view.interface) == ("10.0.1.0/24", None)
    assert [each.action for each in audit.list_audit(connection, actor="b").items] == ["network.change"] * 2
    with pytest.raises(Unknown):
        networks.change_network(connection, "none", NetworkChange(interface=""), actor="b")


@pytest.mark.parametrize(
    ("given", "kept"), [("10.0.0.0/24", "10.0.0.0/24"), ("fd00::/64", "fd00::/64"), ("10.1.2.3", "10.1.2.3/32")]
)
def test_a_network_is_kept_in_its_one_notation(connection: sa.Connection, given: str, kept: str) -> None:
    assert networks.add_network(connection, NewNetwork(name="n", cidr=given), actor="a").cidr == kept


@pytest.mark.parametrize(
    "fields",
    [{"cidr": "10.0.0.1/24"}, {"cidr": "10.0.0.0/33"}, {"cidr": "eth0"}, {"cidr": ""},
     {"cidr": "10.0.0.0/24", "interface": "eth0; reboot"}, {"cidr": "10.0.0.0/24", "interface": "x" * 16}],
)  # fmt: skip
def test_what_is_no_network_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        NewNetwork.model_validate({"name": "n"} | fields)
