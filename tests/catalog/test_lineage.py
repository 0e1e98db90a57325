from __future__ import annotations

import pytest

from tests.catalog import make
from tests.catalog.conftest import PROJECT, State
from tunesmith.bundled import MODEL_NAME
from tunesmith.catalog.datasets import add_dataset, delete_dataset, find_dataset, sibling_datasets
from tunesmith.catalog.lineage import MAXIMUM_ANCESTORS, MAXIMUM_DESCENDANTS, read_lineage
from tunesmith.catalog.versions import trained_on
from tunesmith.errors import Unknown
from tunesmith.spec.catalog import Lineage, LineageDataset, LineageGraph


def lineage(state: State, version: str) -> LineageGraph:
    with state.database.read() as connection:
        return read_lineage(connection, version, project=PROJECT)


def of_dataset(dataset_id: str, content_hash: str = "c" * 64) -> Lineage:
    used = LineageDataset(
        role="training", name="tickets.jsonl", dataset_id=dataset_id, content_hash=content_hash, rows=1
    )
    return make.lineage().model_copy(update={"datasets": [used]})


def add(state: State, name: str = "tickets", **fields: object) -> str:
    with state.database.write() as connection:
        return add_dataset(connection, make.dataset(name, **fields), project=PROJECT, actor="a").dataset_id


def test_a_line_of_versions_is_told_with_what_each_was_made_from(state: State) -> None:
    dataset_id = add(state)
    first = state.version(lineage=of_dataset(dataset_id))
    second = state.version(lineage=make.lineage(parent=first), parent=first)
    third = state.version(lineage=make.lineage(parent=second), parent=second)
    graph = lineage(state, second)
    names = {node.id: node.name for node in graph.nodes}
    assert {(names[edge.source], names[edge.target], edge.role) for edge in graph.edges} == {
        ("base", first, "base"),
        ("tickets.jsonl", first, "training"),
        ("rows.jsonl", second, "training"),
        (first, second, "parent"),
        (second, third, "parent"),
    }
    assert [node.name for node in graph.nodes if node.is_asked] == [second]
    by_name = {node.name: node for node in graph.nodes}
    assert by_name["tickets.jsonl"].reference == dataset_id
    assert (by_name["tickets.jsonl"].detail, by_name[first].detail) == ("1 row", "Active")
    assert by_name["base"].reference is None and "not registered" in by_name["base"].detail
    assert not graph.is_cut


def test_what_was_deleted_stays_in_the_lineage_without_a_reference(state: State) -> None:
    dataset_id = add(state)
    version = state.version(lineage=of_dataset(dataset_id))
    with state.database.write() as connection:
        delete_dataset(connection, dataset_id, project=PROJECT, actor="a")
    [dataset] = [node for node in lineage(state, version).nodes if node.kind == "dataset"]
    assert dataset.reference is None and dataset.detail == "1 row, deleted"


def test_a_long_line_and_many_children_are_cut_and_say_so(state: State) -> None:
    name = state.version(lineage=make.lineage())
    for _ in range(MAXIMUM_ANCESTORS + 2):
        name = state.version(lineage=make.lineage(parent=name), parent=name)
    graph = lineage(state, name)
    assert sum(node.kind == "version" for node in graph.nodes) == MAXIMUM_ANCESTORS + 1 and graph.is_cut
    parent = state.version(version_set="many")
    for _ in range(MAXIMUM_DESCENDANTS + 1):
        state.version(version_set="many", parent=parent)
    graph = lineage(state, parent)
    assert sum(node.kind == "version" for node in graph.nodes) == MAXIMUM_DESCENDANTS + 1 and graph.is_cut


def test_an_unknown_version_is_unknown(state: State) -> None:
    with pytest.raises(Unknown):
        lineage(state, "bot:9")


def test_what_was_trained_on_a_dataset_is_found_by_its_id_and_by_its_rows(state: State) -> None:
    dataset_id = add(state)
    by_id = state.version(lineage=of_dataset(dataset_id, "e" * 64))
    by_rows = state.version(lineage=make.lineage())
    state.version(lineage=make.lineage(content_hash="f" * 64))
    with state.database.read() as connection:
        found = trained_on(connection, dataset_id=dataset_id, content_hash="c" * 64, project=PROJECT)
    assert [version.model_version for version in found] == [by_rows, by_id]


def test_versions_of_a_dataset_share_its_name_or_its_place(state: State) -> None:
    place = {"location": None, "source_uri": "s3://team/rows.jsonl"}
    first = add(state, "tickets", **place, source_version_id="1")
    second = add(state, "tickets of May", **place, source_version_id="2")
    third = add(state, "tickets")
    add(state, "others")
    with state.database.read() as connection:
        found = sibling_datasets(connection, find_dataset(connection, first, project=PROJECT), project=PROJECT)
    assert [each.dataset_id for each in found] == [third, second]


def test_before_a_job_has_read_its_inputs_what_it_asked_for_stands_there(state: State) -> None:
    dataset_id = add(state)
    job = state.job(model=MODEL_NAME, dataset=dataset_id, validation_dataset="s3://team/held-out.jsonl")
    graph = lineage(state, job.model_version)
    by_name = {node.name: node for node in graph.nodes}
    assert by_name[MODEL_NAME].detail.startswith("digest ") and by_name[MODEL_NAME].reference == MODEL_NAME
    assert by_name["tickets"].detail == "10 rows, SHA-256 aaaaaaaaaaaa" and by_name["tickets"].reference == dataset_id
    assert (by_name["held-out.jsonl"].detail, by_name["held-out.jsonl"].reference) == ("read when its job starts", None)
    assert {(edge.source, edge.role) for edge in graph.edges} == {
        (f"base {MODEL_NAME}", "base"), (f"dataset {dataset_id}", "training"),
        ("dataset s3://team/held-out.jsonl", "validation"),
    }  # fmt: skip


def test_a_base_of_a_folder_is_said_to_be_read_later(state: State) -> None:
    job = state.job(model="/models/ours", dataset="rows.jsonl")
    by_kind = {node.kind: node for node in lineage(state, job.model_version).nodes}
    assert by_kind["base"].detail == "read when its job starts, not registered"
    assert (by_kind["dataset"].name, by_kind["dataset"].detail) == ("rows.jsonl", "read when its job starts")
