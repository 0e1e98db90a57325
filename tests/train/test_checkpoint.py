"""Checkpoints: whole or not there, damaged ones passed over, only the newest kept."""

from pathlib import Path

import pytest
import torch

from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import (
    RunState,
    clean_temporary,
    newest_checkpoint,
    read_best,
    remove_other_bests,
    write_best,
    write_checkpoint,
)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"values": torch.full((7,), value), "mean": torch.zeros(7), "square": torch.ones(7)}


def test_newest_is_read_back_with_its_state(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, RunState(steps_done=step, tokens=10 * step), tensors(step))
    found = newest_checkpoint(tmp_path)
    assert found is not None
    state, read, damaged = found
    assert (state.steps_done, state.tokens, damaged) == (3, 30, [])
    assert torch.equal(read["values"], torch.full((7,), 3.0))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("fault", ["flip", "cut", "no state", "bad json"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, fault: str) -> None:
    write_checkpoint(tmp_path, RunState(steps_done=1), tensors(1))
    newest = write_checkpoint(tmp_path, RunState(steps_done=2), tensors(2))
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    if fault == "flip":
        content[-1] ^= 1
        (newest / "tensors.safetensors").write_bytes(content)
    elif fault == "cut":
        (newest / "tensors.safetensors").write_bytes(content[:-4])
    elif fault == "no state":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text("{")
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found[0].steps_done == 1
    assert found[2] == [newest]


def test_full_disk_leaves_the_older_checkpoint_and_no_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, RunState(steps_done=1), tensors(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, RunState(steps_done=2), tensors(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_none_where_nothing_was_written(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None


def test_remains_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.tmp").mkdir()
    (tmp_path / ".best-00001.safetensors.tmp").write_bytes(b"x")
    write_checkpoint(tmp_path, RunState(steps_done=1), tensors(1))
    clean_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_only_the_named_best_is_kept(tmp_path: Path) -> None:
    write_best(tmp_path, torch.ones(3), epoch=1)
    write_best(tmp_path, torch.full((3,), 2.0), epoch=4)
    remove_other_bests(tmp_path, epoch=4)
    assert [path.name for path in tmp_path.iterdir()] == ["best-00004.safetensors"]
    assert torch.equal(read_best(tmp_path, epoch=4), torch.full((3,), 2.0))
