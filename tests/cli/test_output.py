from __future__ import annotations

import pytest

from tunesmith.cli.output import Output, visible


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
