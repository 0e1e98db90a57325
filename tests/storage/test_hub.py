"""The hub through its real library, against a stand-in of its HTTP API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.hub import TOKEN, FakeHub
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.spec.explorer import Label
from tunesmith.spec.hub import HubFile, HubQuery, choose_files
from tunesmith.storage.hub import Hub
from tunesmith.storage.objects import Stopped

SMALL = "team/small"


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(SMALL, MODEL_FOLDER, extra={"pytorch_model.bin": b"\x80\x04" * 1000, "onnx/model.onnx": b"x"})
        hub.add("team/gated", MODEL_FOLDER, gated=True, licence="llama3.2")
        hub.add("team/private", MODEL_FOLDER, private=True)
        hub.add(
            "other/mixture",
            extra={"config.json": b'{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}'},
        )
        yield hub


def hub_of(fake: FakeHub, **environment: str) -> Hub:
    return Hub({"HF_ENDPOINT": fake.url} | environment)


def large_file(fake: FakeHub, hub: Hub) -> HubFile:
    return next(file for file in hub.look(SMALL, "main")[2] if file.path == "model.safetensors")


def nothing(_: int) -> None:
    pass


def code_of(call: Any) -> str:
    with pytest.raises(TunesmithError) as caught:
        call()
    assert caught.value.hint, "a way out"
    return caught.value.code


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, {SMALL, "team/gated", "other/mixture"}),
        ({"search": "small"}, {SMALL}),
        ({"author": "other"}, {"other/mixture"}),
        ({"licence": "llama3.2"}, {"team/gated"}),
        ({"minimum_parameters": 1000}, {SMALL, "team/gated"}),
        ({"maximum_parameters": 1000}, {"other/mixture"}),
        ({"task": "text-classification"}, set()),
    ],
)
def test_search_goes_by_name_author_task_licence_and_size(fake: FakeHub, query: Any, found: set[str]) -> None:
    models = hub_of(fake).search(HubQuery.model_validate(query))
    assert {model.hub_id for model in models} == found


def test_what_was_found_is_labelled(fake: FakeHub) -> None:
    by_name = {model.hub_id: model for model in hub_of(fake).search(HubQuery.model_validate({}))}
    assert {each.label for each in by_name[SMALL].labels} == {Label.READY_TO_FINE_TUNE, Label.READY_TO_REGISTER}
    assert "mixture-of-experts" in by_name["other/mixture"].labels[0].reason
    assert by_name["team/gated"].is_gated and by_name["team/gated"].licence == "llama3.2"


def test_a_model_is_pinned_by_its_commit_with_the_hash_of_every_file(fake: FakeHub) -> None:
    model, commit, files = hub_of(fake).look(SMALL, "main")
    assert commit == "c" * 40 and model.parameters
    large = {file.path for file in files if file.sha256 is not None}
    assert "model.safetensors" in large and "config.json" not in large
    assert all(file.sha256 or file.blob_id for file in files)


def test_pickles_are_left_out_whatever_a_pattern_says(fake: FakeHub) -> None:
    files = hub_of(fake).look(SMALL, "main")[2]
    for include in ([], ["*"], ["*.bin"]):
        plan = choose_files(files, include=include, exclude=[])
        assert not [file.path for file in plan.files if file.path.endswith(".bin")]
        assert "run code" in next(each.reason for each in plan.left_out if each.path == "pytorch_model.bin")


def test_patterns_include_and_exclude(fake: FakeHub) -> None:
    files = hub_of(fake).look(SMALL, "main")[2]
    usual = {file.path for file in choose_files(files, include=[], exclude=[]).files}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= usual and "onnx/model.onnx" not in usual
    assert {file.path for file in choose_files(files, include=["*.json"], exclude=["tok*"]).files} == {
        name for name in usual if name.endswith(".json") and not name.startswith("tok")
    }
    assert "onnx/model.onnx" in {file.path for file in choose_files(files, include=["onnx/*"], exclude=[]).files}


def test_the_same_weights_in_another_layout_are_left_out() -> None:
    files = [
        HubFile(path=name, size=1, sha256=None, blob_id=None)
        for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors", "config.json")
    ]
    plan = choose_files(files, include=[], exclude=[])
    assert [each.path for each in plan.left_out] == ["consolidated.safetensors"]


def test_a_file_comes_whole_with_its_hash(fake: FakeHub, tmp_path: Path) -> None:
    hub, told = hub_of(fake), list[int]()
    file = large_file(fake, hub)
    hub.fetch_file(SMALL, "c" * 40, file, tmp_path / file.path, progress=told.append)
    assert (tmp_path / file.path).read_bytes() == (MODEL_FOLDER / file.path).read_bytes()
    assert told[-1] == file.size and told == sorted(told)
    fake.requests.clear()
    hub.fetch_file(SMALL, "c" * 40, file, tmp_path / file.path, progress=told.append)
    assert fake.requests == [], "what is whole is not asked for again"


@pytest.mark.slow
def test_a_connection_that_breaks_in_the_middle_goes_on_where_it_was(fake: FakeHub, tmp_path: Path) -> None:
    hub = hub_of(fake)
    file = large_file(fake, hub)
    fake.break_after = 1_000_000
    hub.fetch_file(SMALL, "c" * 40, file, tmp_path / file.path, progress=nothing)
    assert (tmp_path / file.path).read_bytes() == (MODEL_FOLDER / file.path).read_bytes()
    ranges = [asked for _, path, asked in fake.requests if "/cdn/" in path]
    assert ranges[0] is None and ranges[1] is not None and int(ranges[1][6:-1]) > 0


def test_what_an_ended_transfer_left_is_gone_on_from(fake: FakeHub, tmp_path: Path) -> None:
    hub = hub_of(fake)
    file = large_file(fake, hub)

    def until_half(done: int) -> None:
        if done > 10_000:
            raise Stopped

    with pytest.raises(Stopped):
        hub.fetch_file(SMALL, "c" * 40, file, tmp_path / file.path, progress=until_half)
    assert not (tmp_path / file.path).exists(), "nothing half stands under its name"
    (tmp_path / (file.path + ".part")).write_bytes((MODEL_FOLDER / file.path).read_bytes()[:12_345])
    fake.requests.clear()
    hub.fetch_file(SMALL, "c" * 40, file, tmp_path / file.path, progress=nothing)
    assert [asked for _, path, asked in fake.requests if "/cdn/" in path] == ["bytes=12345-"]
    assert (tmp_path / file.path).read_bytes() == (MODEL_FOLDER / file.path).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_other_bytes_than_the_commit_names_are_refused(fake: FakeHub, tmp_path: Path, name: str) -> None:
    hub = hub_of(fake)
    file = next(each for each in hub.look(SMALL, "main")[2] if each.path == name)
    fake.damaged.add(name)
    assert code_of(lambda: hub.fetch_file(SMALL, "c" * 40, file, tmp_path / name, progress=nothing)) == "HUB_DAMAGED"
    assert list(tmp_path.iterdir()) == []


def test_gated_models_need_the_token_of_an_account_that_accepted(fake: FakeHub, tmp_path: Path) -> None:
    def fetch(hub: Hub) -> None:
        file = next(each for each in hub.look("team/gated", "main")[2] if each.path == "config.json")
        hub.fetch_file("team/gated", "c" * 40, file, tmp_path / "config.json", progress=nothing)

    assert code_of(lambda: fetch(hub_of(fake))) == "HUB_GATED"
    assert code_of(lambda: fetch(hub_of(fake, HF_TOKEN="hf_another"))) == "HUB_GATED"
    fetch(hub_of(fake, HF_TOKEN=TOKEN))
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "config.json").unlink()
    fetch(hub_of(fake, HF_TOKEN_PATH=str(tmp_path / "token")))


def test_what_is_not_there_or_not_shown_is_told(fake: FakeHub) -> None:
    hub = hub_of(fake)
    assert code_of(lambda: hub.look("team/absent", "main")) == "HUB_NOT_FOUND"
    assert code_of(lambda: hub.look("team/private", "main")) == "HUB_NOT_FOUND"
    assert hub_of(fake, HF_TOKEN=TOKEN).look("team/private", "main")[1] == "c" * 40
    assert code_of(lambda: hub.look(SMALL, "v9")) == "HUB_REVISION_NOT_FOUND"


def test_no_network_is_told_at_once(fake: FakeHub) -> None:
    assert code_of(lambda: Hub({"HF_ENDPOINT": "http://127.0.0.1:9"}).look(SMALL, "main")) == "HUB_UNREACHABLE"
    query = HubQuery.model_validate({})
    assert code_of(lambda: Hub({"HF_ENDPOINT": "http://127.0.0.1:9"}).search(query)) == "HUB_UNREACHABLE"
    assert code_of(lambda: hub_of(fake, HF_HUB_OFFLINE="1").search(HubQuery.model_validate({}))) == "HUB_OFFLINE"
    fake.status = 500
    with pytest.raises(MachineCannot) as caught:
        hub_of(fake).look(SMALL, "main")
    assert caught.value.code == "HUB_UNREACHABLE" and "broken" not in str(caught.value), "no word of the hub's own"
    fake.requests.clear()
    assert code_of(lambda: hub_of(fake).search(query)) == "HUB_UNREACHABLE"
    assert len(fake.requests) == 1, "the library alone asks a broken hub for half a minute"


def test_a_file_name_that_leaves_the_folder_is_refused(fake: FakeHub) -> None:
    fake.add("team/evil", extra={"../../.bashrc": b"boom"})
    with pytest.raises(InputRefused) as caught:
        hub_of(fake).look("team/evil", "main")
    assert caught.value.code == "BAD_KEY"
