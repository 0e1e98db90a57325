from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_prepare import dataset, folder, run, some_rows, write_rows
from tunesmith.data.preview import previews
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import PreviewWish

__all__ = ["folder"]


def test_previews_show_learned_text(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(50))
    shown = previews(run(folder, tmp_path, dataset(path), validation_fraction=0), PreviewWish(), seed=0)
    assert [preview.which for preview in shown] == ["longest", "shortest", "random", "random"]
    for preview in shown:
        assert [piece.learned for piece in preview.pieces] == [False, True]
        assert preview.pieces[1].text == f"It is {preview.line - 1}.<|end|>"
        assert preview.pieces[0].text == f"<|begin|><|user|>What is {preview.line - 1}?<|end|><|assistant|>"
        assert preview.spans == []


def test_rows_are_chosen_by_line_in_the_order_asked_for(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(9))
    path.write_bytes(b"\n" + path.read_bytes())  # a blank line: rows start at lines 2 to 10
    prepared = run(folder, tmp_path, dataset(path), validation_fraction=0)
    shown = previews(prepared, PreviewWish(lines=[10, 2]), seed=0)
    assert [(each.line, each.which, each.pieces[1].text) for each in shown] == [
        (10, "chosen", "It is 8.<|end|>"),
        (2, "chosen", "It is 0.<|end|>"),
    ]
    for line, near in ((1, "at line 2."), (11, "at line 10.")):
        with pytest.raises(InputRefused) as caught:
            previews(prepared, PreviewWish(lines=[line]), seed=0)
        assert (caught.value.code, caught.value.field) == ("NO_SUCH_ROW", "lines")
        assert f"line {line}" in caught.value.message and near in (caught.value.hint or "")


def test_spans_are_tokens_and_never_cut_a_character(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*some_rows(3), {"prompt": "How do you do?", "completion": "中文 and é and \U0001f600."}]
    prepared = run(folder, tmp_path, dataset(write_rows(tmp_path / "t.jsonl", rows)), validation_fraction=0)
    [shown] = previews(prepared, PreviewWish(lines=[4], spans=True), seed=0)
    assert sum(len(span.ids) for span in shown.spans) == shown.tokens and shown.tokens_left_out == 0
    for piece in shown.pieces:
        assert "".join(span.text for span in shown.spans if span.learned == piece.learned) == piece.text
    of = {word: next(span for span in shown.spans if word in span.text) for word in ("\U0001f600", "<|user|>")}
    assert len(of["\U0001f600"].ids) > 1 and len(of["<|user|>"].ids) == 1
    assert not any("\ufffd" in span.text for span in shown.spans)
    monkeypatch.setattr("tunesmith.data.preview.MAXIMUM_SPANS", 7)
    [cut] = previews(prepared, PreviewWish(lines=[4], spans=True), seed=0)
    assert sum(len(span.ids) for span in cut.spans) == 7 and cut.tokens_left_out == shown.tokens - 7
