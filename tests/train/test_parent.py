"""Training that goes on from another version's adapter, on a two-layer model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import MakeJob, some_rows
from tests.train.test_loop import epochs, events, of_kind, run
from tunesmith.files import sha256_of
from tunesmith.spec.jobs import InitialAdapter, JobFile

pytestmark = pytest.mark.slow
TINY_RATE = 1e-9


def continued(job: Path, parent: Path, **changes: Any) -> Path:
    """The job file with the parent's artifact as its start."""
    folder = parent.parent / "artifact"
    initial = InitialAdapter(
        model_version="bot:1", folder=str(folder), sha256=sha256_of(folder / "adapter_model.safetensors")
    ).model_copy(update=changes)
    job.write_text(
        JobFile.model_validate_json(job.read_bytes()).model_copy(update={"initial_adapter": initial}).model_dump_json()
    )
    return job


@pytest.fixture
def parent(make_job: MakeJob) -> Path:
    job = make_job("parent", validation=some_rows(8, start=100), epochs=1, learning_rate=2e-2)
    run(job)
    return job


def losses(job: Path) -> dict[int, float]:
    return {epoch: validation["loss"] for epoch, (_, validation) in epochs(events(job)).items()}


def test_a_continued_run_starts_where_its_parent_ended(make_job: MakeJob, parent: Path) -> None:
    child = make_job("child", validation=some_rows(8, start=100), epochs=1, learning_rate=TINY_RATE, lora_dropout=0.0)
    run(continued(child, parent))
    before, after = losses(parent), losses(child)
    assert before[0] - before[1] > 0.05, "the parent learned something"
    assert after[0] == before[0], "epoch 0 is the base, not the parent"
    assert abs(after[1] - before[1]) < 1e-5  # the rate moves values by 1e-9
    assert "CONTINUED" in [notice["code"] for notice in of_kind(events(child), "notice")]
    assert "bot" in (child.parent / "artifact" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"lora_rank": 8}, "lora_rank"),
        ({"lora_alpha": 16.0}, "lora_alpha"),
        ({"adapter": "rslora"}, "adapter"),
        ({"target_modules": ("q_proj",)}, "target_modules"),
    ],
)
def test_another_form_of_adapter_is_refused_by_its_setting(
    make_job: MakeJob, parent: Path, settings: dict[str, Any], field: str
) -> None:
    child = make_job("child", epochs=1, **settings)
    run(continued(child, parent), expect=3)
    (failure,) = of_kind(events(child), "failure")
    assert (failure["error"]["code"], failure["error"]["field"]) == ("PARENT_DIFFERS", field)
    assert "bot:1" in failure["error"]["message"]


def test_a_parent_that_changed_or_went_away_is_refused(make_job: MakeJob, parent: Path, tmp_path: Path) -> None:
    for index, changes in enumerate(({"sha256": "0" * 64}, {"folder": str(tmp_path / "gone")})):
        child = make_job(f"child-{index}", epochs=1)
        run(continued(child, parent, **changes), expect=3)
        assert of_kind(events(child), "failure")[0]["error"]["code"] == "PARENT_DAMAGED"


def test_a_killed_continued_run_resumes_from_its_checkpoint_without_its_parent(make_job: MakeJob, parent: Path) -> None:
    whole = continued(make_job("whole", epochs=2), parent)
    run(whole)
    halves = continued(make_job("halves", epochs=2), parent)
    run(halves)
    (halves.parent / "artifact" / "manifest.json").unlink()
    weights = parent.parent / "artifact" / "adapter_model.safetensors"
    weights.write_bytes(b"")
    run(halves)
    assert sha256_of(halves.parent / "artifact" / "adapter_model.safetensors") == sha256_of(
        whole.parent / "artifact" / "adapter_model.safetensors"
    )
