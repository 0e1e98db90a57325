"""A job that goes on from another version: what is refused before it starts, and what its worker gets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.catalog import make
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.sets import remove_alias, set_alias
from tunesmith.catalog.versions import delete_version, final_columns, find_version
from tunesmith.errors import Conflict, InputRefused, MachineCannot, Unknown
from tunesmith.jobs.accept import Submission, check_submission
from tunesmith.jobs.home import open_home
from tunesmith.jobs.parents import fetch_adapter, find_parent, require_same_base, with_form_of
from tunesmith.jobs.results_check import ResultsChecks
from tunesmith.jobs.settings import read_settings
from tunesmith.jobs.state import State, open_state
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

FILES = {"adapter_model.safetensors": b"weights", "adapter_config.json": b"{}", "README.md": b"card"}


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))


@pytest.fixture
def version(state: State) -> str:
    """bot:1, ACTIVE, of rank 8, its artifact in the results folder."""
    folder = state.home.results / "bot" / "1"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    files = [
        ManifestFile(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in FILES.items()
    ]
    columns = final_columns(
        lineage=make.lineage(lora_rank=8, target_modules=("q_proj",)), artifact_uri=folder.as_uri(),
        manifest=Manifest(job_id="job-1", model_version="bot:1", files=files),
    )  # fmt: skip
    with state.database.write() as connection:
        name = add_version(
            connection, project="default", version_set="bot", above=0, created_at=make.TIME, name="",
            base_name="base", results_uri="",
        )  # fmt: skip
        move_version(
            connection, project="default", model_version=name, state=VersionState.ACTIVE, now=make.TIME, **columns
        )
    return name


def test_the_form_is_the_parents_where_nobody_set_it(state: State, version: str) -> None:
    parent = find_parent(version, state=state, project="default")
    settings = with_form_of(parent, read_settings({"epochs": "7", "lora_dropout": "0.2"}))
    assert (settings.lora_rank, settings.target_modules) == (8, ("q_proj",))
    assert (settings.epochs, settings.lora_dropout) == (7, 0.2)
    assert with_form_of(parent, read_settings({"lora_rank": "8"})) == with_form_of(parent, TrainingSettings())


def test_another_form_that_somebody_set_is_refused_by_its_option(state: State, version: str) -> None:
    parent = find_parent(version, state=state, project="default")
    with pytest.raises(InputRefused, match="--lora-rank is 32") as caught:
        with_form_of(parent, read_settings({"lora_rank": "32"}))
    assert (caught.value.code, caught.value.field) == ("PARENT_DIFFERS", "lora_rank")


def test_another_base_is_refused_by_its_digest(state: State, version: str) -> None:
    parent = find_parent(version, state=state, project="default")
    require_same_base(parent, make.facts())
    with pytest.raises(InputRefused) as caught:
        require_same_base(parent, make.facts().model_copy(update={"digest": "e" * 64}))
    assert caught.value.code == "ADAPTER_OF_ANOTHER_BASE"


def test_the_worker_gets_the_two_files_verified_and_keeps_them(state: State, version: str) -> None:
    parent = find_parent(version, state=state, project="default")
    adapter = fetch_adapter(parent, home=state.home, environment={})
    folder = Path(adapter.folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: content for name, content in FILES.items() if name.startswith("adapter_")
    }
    assert adapter.sha256 == hashlib.sha256(FILES["adapter_model.safetensors"]).hexdigest()
    (state.home.results / "bot" / "1" / "adapter_model.safetensors").unlink()
    assert fetch_adapter(parent, home=state.home, environment={}) == adapter


def test_damaged_files_are_not_trained_on(state: State, version: str) -> None:
    (state.home.results / "bot" / "1" / "adapter_config.json").write_text("[]")
    parent = find_parent(version, state=state, project="default")
    with pytest.raises(MachineCannot) as caught:
        fetch_adapter(parent, home=state.home, environment={})
    assert caught.value.code == "OBJECT_DAMAGED"
    assert list((state.home.cache / "adapters").iterdir()) == []


def test_only_an_active_version_is_gone_on_from(state: State, version: str) -> None:
    with state.database.write() as connection:
        delete_version(connection, version, with_bytes=False, project="default", actor="a")
    with pytest.raises(Conflict):
        find_parent(version, state=state, project="default")
    with pytest.raises(Unknown):
        find_parent("bot:9", state=state, project="default")
    with pytest.raises(Unknown):
        find_parent(version, state=state, project="other")


def test_an_accepted_job_keeps_the_version_that_the_alias_named_then(
    state: State, version: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    with state.database.write() as connection:
        set_alias(connection, "bot", "prod", number=1, project="default", actor="a")
    request = FinetuneRequest(model="tunesmith/demo", dataset=str(rows), from_version="bot@prod", version_set="bot")
    new = check_submission(
        Submission(request=request, settings=TrainingSettings()), state=state, results_checks=ResultsChecks({})
    )
    assert (new.parent, new.request.from_version, new.settings.lora_rank) == (version, version, 8)
    with state.database.write() as connection:
        record = state.jobs.insert(connection, new)
    with state.database.write() as connection:
        assert find_version(connection, record.model_version, project="default").parent == version
        remove_alias(connection, "bot", "prod", project="default", actor="a")
        with pytest.raises(Conflict, match=record.job_id):
            delete_version(connection, version, with_bytes=True, project="default", actor="a")
