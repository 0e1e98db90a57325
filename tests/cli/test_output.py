from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tunesmith.cli.dataset import tell_previews
from tunesmith.cli.output import Output, visible
from tunesmith.cli.report import Reporter
from tunesmith.errors import MachineCannot
from tunesmith.spec.datasets import Preview, PreviewPiece
from tunesmith.spec.metrics import PathEvent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 汉 🙂", "plain ä 汉 🙂"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("line\nbreak\r", "line\\nbreak\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_what_acts_on_a_terminal_is_shown_instead(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_newlines_may_be_kept() -> None:
    assert visible("a\nb\x1b", keep_newlines=True) == "a\nb\\x1b"


def test_words_for_people_go_to_standard_error_under_json(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json_wanted=True)
    output.say("hello")
    output.result({"a": "\u2028\n"})
    captured = capsys.readouterr()
    assert captured.err == "hello\n"
    assert captured.out.count("\n") == 1, "the object stands on one line"


def test_a_result_that_cannot_be_written_is_an_error_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        output = Output(json_wanted=True)
        with pytest.raises(MachineCannot, match="No space left") as lost:
            output.result({"state": "SUCCEEDED"})
        output.error(lost.value.form())
        Output(json_wanted=False).say("a full disk stops no work")


def test_streams_that_were_closed_before_the_start_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    output = Output(json_wanted=False)
    output.say("hello")
    output.warn("hello")
    sys.stdout.close()
    sys.stderr.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", ["", "1"])
def test_what_is_learned_stands_in_marks_where_no_colour_is_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    pieces = [PreviewPiece(text="Why?", learned=False), PreviewPiece(text="So.", learned=True)]
    row = Preview(dataset="training", line=1, which="longest", tokens=4, pieces=pieces)
    tell_previews([row], output=Output(json_wanted=False))
    assert ("«So.»" in shown.getvalue()) == bool(no_color)


def test_a_dumb_terminal_gets_lines_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "dumb")
    with Reporter(Output(json_wanted=False)) as reporter:
        reporter.say("a line")
    assert shown.getvalue() == "a line\n"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "Path: fast (as asked)\n"),
        ({"is_replayed": True}, "Path: fast (as asked), passes replayed as CUDA graphs\n"),
        ({"is_compiled": True}, "Path: fast (as asked), layers compiled at their first use\n"),
        ({"checkpointed_layers": 3}, "Path: fast (as asked), 3 layers computed twice\n"),
    ],
)
def test_what_computes_the_layers_is_told(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], told: str
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "dumb")
    plain = {
        "time": "2026-01-01T00:00:00Z", "path": "fast", "reason": "as asked", "is_compiled": False,
        "micro_batch_size": 1, "checkpointed_layers": 0,
    }  # fmt: skip
    with Reporter(Output(json_wanted=False)) as reporter:
        reporter.event(PathEvent.model_validate(plain | changes))
    assert shown.getvalue() == told
