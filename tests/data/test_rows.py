"""The reader of dataset files: what it takes, what it refuses and how it says so."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.data.bad_rows import (
    ANSWER,
    CASES,
    CODES_ELSEWHERE,
    CONVERSATIONS,
    GOOD,
    LINES,
    ROWS,
    USER,
    Case,
    call,
    chat,
    row,
    turn,
)
from tunesmith.data import findings as findings_module
from tunesmith.data import rows as rows_module
from tunesmith.data.rows import Findings, Row, check_file, error_summary, read_rows, require_rows
from tunesmith.errors import InputRefused, UsageFault
from tunesmith.spec.datasets import MAX_ROW_BYTES, DatasetReport, RowKind


def check(
    folder: Path, data: bytes, *, name: str = "rows.jsonl", columns: dict[str, str] | None = None
) -> DatasetReport:
    path = folder / name
    path.write_bytes(data)
    return check_file(path, columns=columns or {}, name=name)


def read(folder: Path, data: bytes, *, name: str = "rows.jsonl", columns: dict[str, str] | None = None) -> list[Row]:
    path = folder / name
    path.write_bytes(data)
    findings = Findings()
    rows = list(read_rows(path, columns=columns or {}, findings=findings))
    assert findings.errors == []
    return rows


def pairs(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.prompt, row.completion) for row in rows]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fault_is_named_with_its_place(tmp_path: Path, case: Case) -> None:
    report = check(tmp_path, case.data, name=case.name, columns=case.columns)
    found = [(error.line, error.column, error.code) for error in report.errors]
    expected = [(line, column or real[1], code) for (line, column, code), real in zip(case.found, found, strict=False)]
    assert found == expected and len(found) == len(case.found)
    assert report.num_errors == len(found) and report.rows == case.rows
    first = report.errors[0]
    assert case.says in f"{first.message} {first.hint}"
    assert first.hint


# Not those that rows of a kind before them would change.
BEHIND = [case for case in (*LINES, *ROWS, *CONVERSATIONS) if not case.columns and "KINDS" not in case.found[0][2]]


@pytest.mark.parametrize("case", BEHIND, ids=lambda case: case.id)
def test_fault_is_found_behind_good_rows_too(tmp_path: Path, case: Case) -> None:
    """The first rows tell the kind of a file, and from then on lines go the fast way."""
    before = chat(USER, ANSWER) if case in CONVERSATIONS else GOOD
    report = check(tmp_path, before * 2 + case.data)
    assert [(error.line, error.code) for error in report.errors] == [
        (line + 2, code) for line, _, code in case.found if line is not None
    ]
    assert report.rows == 2 + case.rows


def test_every_code_of_the_table_is_shown_by_a_case() -> None:
    shown = {code for case in CASES for _, _, code in case.found} | CODES_ELSEWHERE
    assert shown == findings_module.ERRORS.keys()


def test_the_two_readers_find_the_same(tmp_path: Path) -> None:
    for case in CASES:
        path = tmp_path / case.name
        path.write_bytes(case.data)
        findings = Findings()
        rows = list(read_rows(path, columns=case.columns, findings=findings))
        report = check_file(path, columns=case.columns)
        assert len(rows) == report.rows, case.id
        assert findings.errors == report.errors, case.id


# What is taken.


def test_rows_keep_their_text_and_physical_lines(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\r\n {"completion": "d ", "prompt": "c\\r\\n"} \n'
    rows = read(tmp_path, data)
    assert pairs(rows) == [("a", "b"), ("c\r\n", "d ")]
    assert [row.line for row in rows] == [1, 3]
    report = check(tmp_path, data)
    assert [(warning.code, warning.line) for warning in report.warnings] == [("BYTE_ORDER_MARK", 1), ("BLANK_LINES", 2)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x7f", "\\u000b", "\\f"])
def test_only_lf_ends_a_line(tmp_path: Path, separator: str) -> None:
    rows = read(tmp_path, f'{{"prompt": "a{separator}b", "completion": "c"}}\n'.encode() * 2)
    assert [row.line for row in rows] == [1, 2]
    assert len(rows[0].prompt) == 3


def test_line_ends_do_not_change_the_content_hash(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "completion": "é\r\n"}) for i in range(5)]
    unix = check(tmp_path, "\n".join(lines).encode())
    dos = check(tmp_path, ("\r\n".join(lines) + "\r\n").encode())
    other = check(tmp_path, "\n".join(lines[::-1]).encode())
    assert unix.content_hash == dos.content_hash != other.content_hash


def test_hash_is_of_what_training_sees(tmp_path: Path) -> None:
    plain, extra, renamed, moved = (
        read(tmp_path, data, columns=columns)[0].content_hash
        for data, columns in (
            (row(prompt="ab", completion="c"), {}),
            (row(id=3, completion="c", prompt="ab"), {}),
            (row(q="ab", a="c"), {"prompt": "q", "completion": "a"}),
            (row(prompt="a", completion="bc"), {}),
        )
    )
    assert plain == extra == renamed != moved
    assert len(plain) == 16


def test_csv_and_jsonl_rows_are_the_same_rows(tmp_path: Path) -> None:
    jsonl = read(tmp_path, row(prompt='a "b", c\nd', completion="é"))
    csv = read(tmp_path, 'id,completion,prompt\r\n1,é,"a ""b"", c\nd"\r\n'.encode(), name="rows.csv")
    tsv = read(tmp_path, 'completion\tprompt\né\t"a ""b"", c\nd"'.encode(), name="rows.tsv")
    assert [row.content_hash for row in jsonl] == [row.content_hash for row in csv] == [row.content_hash for row in tsv]


def test_csv_lines_are_physical_and_crlf_in_fields_is_kept_and_said(tmp_path: Path) -> None:
    data = b'prompt,completion\r\n"a\r\nb",c\r\n\r\nd,"e"\r\n'
    rows = read(tmp_path, data, name="rows.csv")
    assert [(row.line, row.prompt, row.completion) for row in rows] == [(2, "a\r\nb", "c"), (5, "d", "e")]
    warnings = check(tmp_path, data, name="rows.csv").warnings
    assert [(warning.code, warning.line) for warning in warnings] == [("CRLF_IN_FIELDS", 2), ("BLANK_LINES", 4)]


def test_conversation_is_read_whole(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"big": 2**70}}}]
    data = chat(
        turn("system", [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]),
        turn("user", "hi", name="amanda"),
        {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b", arguments={"x": "é", "n": 2**70})]},
        turn("tool", "", tool_call_id="b"),
        turn("tool", "2", tool_call_id="a"),
        turn("assistant", "no", weight=0),
        turn("user", weight=0),
        turn("assistant", "yes", weight=1),
        tools=tools,
    )
    (found,) = read(tmp_path, data)
    assert found.kind is RowKind.MESSAGES and (found.prompt, found.completion) == ("", "")
    assert [message.role for message in found.messages] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert [message.learned for message in found.messages] == [i in (2, 7) for i in range(8)]
    assert found.messages[0].content == "be kind"
    assert found.messages[1].name == "amanda"
    first, second = found.messages[2].tool_calls
    assert first.arguments == '{"x": 1}'
    assert json.loads(second.arguments) == {"x": "é", "n": 2**70}
    assert found.messages[3].tool_call_id == "b"
    assert list(found.tools) == tools


def test_conversation_hash_sees_weights_and_tools(tmp_path: Path) -> None:
    turns = [turn("user"), turn("assistant", "a"), turn("user"), turn("assistant", "b")]
    silent = [turns[0], turn("assistant", "a", weight=0), *turns[2:]]
    tool = {"name": "f"}
    hashes = [
        read(tmp_path, data)[0].content_hash for data in (chat(*turns), chat(*silent), chat(*turns, tools=[tool]))
    ]
    assert len(set(hashes)) == 3
    assert read(tmp_path, chat(*turns, id=7))[0].content_hash == hashes[0]


def test_tools_may_be_json_text_as_tables_keep_them(tmp_path: Path) -> None:
    (found,) = read(tmp_path, chat(turn("user"), turn("assistant"), tools='[{"name": "f"}]'))
    assert found.tools == ({"name": "f"},)


def test_columns_choose_the_kind(tmp_path: Path) -> None:
    data = row(prompt="p", completion="c", messages=[turn("user"), turn("assistant")])
    assert read(tmp_path, data, columns={"messages": "messages"})[0].kind is RowKind.MESSAGES
    assert read(tmp_path, data, columns={"prompt": "prompt"})[0].kind is RowKind.PROMPT_COMPLETION
    talk = row(talk=[turn("user"), turn("assistant")])
    assert read(tmp_path, talk, columns={"messages": "talk"})[0].kind is RowKind.MESSAGES


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"text": "a"}, "UNKNOWN_COLUMN"),
        ({"prompt": ""}, "EMPTY_COLUMN"),
        ({"prompt": "a", "messages": "b"}, "COLUMNS_OF_TWO_KINDS"),
        ({"prompt": "a", "completion": "a"}, "SAME_COLUMN_TWICE"),
        ({"prompt": "completion"}, "SAME_COLUMN_TWICE"),
    ],
)
def test_impossible_mapping_is_a_usage_fault(tmp_path: Path, columns: dict[str, str], code: str) -> None:
    with pytest.raises(UsageFault) as caught:
        check(tmp_path, GOOD, columns=columns)
    assert (caught.value.code, caught.value.field) == (code, "columns")


def test_limits_are_inclusive(tmp_path: Path) -> None:
    deep = json.loads("[" * 31 + "]" * 31)
    fits = row(prompt="p", completion="")
    full = row(prompt="p", completion="c" * (MAX_ROW_BYTES - len(fits) + 1))
    wide = row(prompt="p", completion="c", **{f"k{i}": i for i in range(998)})
    assert check(tmp_path, row(prompt="p", completion="c", x=deep) + full + wide).rows == 3


# Warnings.


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a\u202eb", "BIDI_CONTROLS"),
        ("a\u2066b", "BIDI_CONTROLS"),
        ("\u061c", "BIDI_CONTROLS"),
        ("a\u200bb", "ZERO_WIDTH"),
        ("a\ufeffb", "ZERO_WIDTH"),
        ("a\ufffd", "REPLACEMENT_CHARACTERS"),
        ("\ufffe", "NONCHARACTERS"),
        ("\ufdd0", "NONCHARACTERS"),
        ("\ue000", "NONCHARACTERS"),
        ("\U0001ffff", "NONCHARACTERS"),
        ("\U0010fffd", "NONCHARACTERS"),
        ("\U000f1234", "NONCHARACTERS"),
    ],
)
def test_odd_characters_are_counted(tmp_path: Path, text: str, code: str, ascii_only: bool) -> None:
    lines = [{"prompt": f"naïve “quotes” 日本 😀 \u200d{i}", "completion": "c"} for i in range(4)]
    lines[2]["completion"] += text
    data = "\n".join(json.dumps(line, ensure_ascii=ascii_only) for line in lines).encode()
    report = check(tmp_path, data)
    assert [(warning.code, warning.line) for warning in report.warnings] == [(code, 3)]
    assert "1 row has" in report.warnings[0].message
    conversation = chat(turn("user", text + "x"), turn("assistant"))
    assert [warning.code for warning in check(tmp_path, conversation).warnings] == [code]


def test_warnings_are_summed_up(tmp_path: Path) -> None:
    data = (
        GOOD
        + b"\n"
        + row(prompt="", completion="x", id=1)
        + GOOD
        + b" \n"
        + row(prompt=" ", completion="y", z=1)
        + GOOD
    )
    report = check(tmp_path, data)
    assert report.num_errors == 0 and report.rows == 5 and report.duplicates == 2
    assert [(warning.line, warning.code) for warning in report.warnings] == [
        (2, "BLANK_LINES"),
        (3, "EMPTY_PROMPT"),
        (3, "EXTRA_COLUMNS"),
        (4, "DUPLICATE_ROWS"),
    ]
    blank, empty, extra, duplicate = (warning.message for warning in report.warnings)
    assert "2 blank lines" in blank and "2 rows have" in empty
    assert '2 rows have fields that training does not use: "id", "z"' in extra
    assert "2 rows are equal" in duplicate and "like line 1" in duplicate
    assert report.num_warnings == 4


def test_rows_that_differ_in_case_or_white_space_alone_are_counted(tmp_path: Path) -> None:
    data = row(prompt="Say  it", completion="Yes.") + row(prompt="other", completion="No.")
    data += row(prompt="say it\n", completion="yes.") + row(prompt="Say  it", completion="Yes.")
    near, equal = check(tmp_path, data).warnings
    assert (near.code, near.line) == ("NEAR_DUPLICATES", 3) and "1 row is" in near.message and "line 1" in near.message
    assert (equal.code, equal.line) == ("DUPLICATE_ROWS", 4)


def test_several_answers_to_one_prompt_are_counted(tmp_path: Path) -> None:
    data = b"".join(row(prompt="Why?", completion=answer) for answer in ("a", "b", "a", "c"))
    repeated, _equal = check(tmp_path, data).warnings
    assert (repeated.code, repeated.line) == ("PROMPT_REPEATED", 2)
    assert "2 rows have the prompt of an earlier row" in repeated.message and "like line 1" in repeated.message
    several = chat(turn("user", "Why?"), turn("assistant", "a")) + chat(turn("user", "Why?"), turn("assistant", "b"))
    assert [warning.code for warning in check(tmp_path, several).warnings] == ["PROMPT_REPEATED"]
    unasked = row(prompt="", completion="a") + row(prompt="", completion="b")
    assert [warning.code for warning in check(tmp_path, unasked).warnings] == ["EMPTY_PROMPT"]


def test_only_so_many_rows_are_compared_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.likeness.MAX_ROWS", 2)
    data = b"".join(row(prompt="Why?", completion=answer) for answer in ("a", "b", "c"))
    (repeated,) = check(tmp_path, data).warnings
    assert "1 row has" in repeated.message and "only the first 2 rows were compared" in repeated.message


def test_white_space_around_a_column_is_named(tmp_path: Path) -> None:
    (error,) = check(tmp_path, b" prompt ,completion\na,b\n", name="rows.csv").errors
    assert error.code == "MISSING_COLUMN" and 'The column " prompt " has white space' in (error.hint or "")


def test_every_warning_of_the_table_can_be_said() -> None:
    findings = Findings()
    for code in findings_module.WARNINGS:
        findings.warn(code, line=1, detail="x")
    assert {warning.code for warning in findings.warnings} == findings_module.WARNINGS.keys()
    assert all(warning.hint for warning in findings.warnings)


def test_keys_of_turns_that_are_not_used_are_said(tmp_path: Path) -> None:
    report = check(tmp_path, chat(turn("user", thought="hm"), turn("assistant")))
    assert [warning.code for warning in report.warnings] == ["EXTRA_COLUMNS"]
    assert '"messages[].thought"' in report.warnings[0].message


def test_prototype_like_keys_are_extra_fields(tmp_path: Path) -> None:
    report = check(tmp_path, row(prompt="p", completion="c", __proto__={}, constructor=1))
    assert report.num_errors == 0
    assert '"__proto__", "constructor"' in report.warnings[0].message


@pytest.mark.parametrize("block", [10**9, 3])
def test_duplicates_are_counted_whatever_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_ROWS", block)
    numbers = [0, 1, 2, 3, 1, 4, 4, 1, 5, 6]
    report = check(tmp_path, b"".join(row(prompt=f"{n}", completion="c") for n in numbers))
    assert report.duplicates == 3
    assert report.warnings[0].line == 5 and "like line 2" in report.warnings[0].message


# The report and its refusal.


def test_first_hundred_errors_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    report = check(tmp_path, b"{}\nx\n\n" * 150 + GOOD)
    assert report.num_errors == 300 and len(report.errors) == 100 and report.rows == 1
    assert report.warnings[0].code == "BLANK_LINES" and "150" in report.warnings[0].message


def test_refusal_names_file_line_and_column(tmp_path: Path) -> None:
    report = check(tmp_path, GOOD * 16 + row(prompt="p", completion="") + b"x\n" * 4)
    with pytest.raises(InputRefused) as caught:
        require_rows(report)
    refusal = caught.value
    assert refusal.message == 'rows.jsonl line 17, column 31: "completion" is empty. (and 4 more errors)'
    assert (refusal.code, refusal.field) == ("EMPTY_COMPLETION", "line 17")
    assert refusal.hint is not None and "`tunesmith dataset check rows.jsonl`" in refusal.hint
    assert error_summary(report) == refusal.message


def test_a_file_without_errors_is_not_refused(tmp_path: Path) -> None:
    report = check(tmp_path, GOOD)
    require_rows(report)
    assert error_summary(report) == ""
    assert (report.kind, report.rows, report.bytes) == (RowKind.PROMPT_COMPLETION, 1, len(GOOD))


def test_text_of_the_file_is_shown_escaped_and_short(tmp_path: Path) -> None:
    report = check(tmp_path, row(messages=[turn("a\x1b[2J\u202e" + "x" * 500), turn("assistant")]))
    message = report.errors[0].message
    assert "\\u001b" in message and "\\u202e" in message and len(message) < 200
    assert message.isprintable()


@pytest.mark.parametrize("name", ["a b.jsonl", "-x.jsonl", "a\nb\x1b.jsonl", "😀.jsonl", "x" * 249 + ".jsonl"])
def test_any_file_name_is_read_and_shown_escaped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD)
    report = check_file(path, columns={})
    assert report.rows == 1
    assert report.path.isprintable()


def test_file_name_that_is_not_unicode(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl"))
    path.write_bytes(GOOD)
    report = check_file(path, columns={})
    assert report.rows == 1
    assert report.path.endswith("\\udcff.jsonl")
    assert json.dumps(report.as_json())


# Files that are none.


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        for path, code in [
            (tmp_path / "missing.jsonl", "FILE_MISSING"),
            (tmp_path, "NOT_A_FILE"),
            (tmp_path / "pipe", "NOT_A_FILE"),
            (tmp_path / "loop", "NOT_A_FILE"),
            (tmp_path / "sock", "NOT_A_FILE"),
            (Path("/dev/zero"), "NOT_A_FILE"),
            (Path("nul\0byte"), "FILE_UNREADABLE"),
            (tmp_path / ("x" * 300), "FILE_UNREADABLE"),
        ]:
            report = check_file(path, columns={})
            assert [error.code for error in report.errors] == [code], path
            assert report.errors[0].line is None
            with pytest.raises(InputRefused):
                require_rows(report)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")  # tests may run as root, whom no mode stops

    monkeypatch.setattr("tunesmith.data.source.os.open", refuse)
    assert [error.code for error in check_file(path, columns={}).errors] == ["FILE_UNREADABLE"]


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD * 20_000)
    findings = Findings()
    rows = read_rows(path, columns={}, findings=findings)
    next(rows)
    with path.open("ab") as handle:
        handle.write(GOOD)
    assert sum(1 for _ in rows) >= 19_999
    assert [error.code for error in findings.errors] == ["FILE_CHANGED"]


def test_terabyte_of_nothing_is_refused_at_once(tmp_path: Path) -> None:
    for start in (b"", GOOD * 10):
        path = tmp_path / "sparse.jsonl"
        path.write_bytes(start)
        os.truncate(path, 1 << 40)
        started = time.monotonic()
        report = check_file(path, columns={})
        assert time.monotonic() - started < 60, "reading it takes many minutes"
        assert [error.code for error in report.errors] == ["NOT_TEXT"]
        path.unlink()


def test_memory_does_not_grow_with_an_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as handle:
        handle.write(b'{"prompt": "')
        for _ in range(64):
            handle.write(b"x" * (1 << 20))
        handle.write(b'", "completion": "c"}\n' + GOOD)
    tracemalloc.start()
    report = check_file(path, columns={})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(error.line, error.code) for error in report.errors] == [(1, "ROW_TOO_LARGE")]
    assert report.rows == 1 and peak < 24 << 20


# Parquet.


def test_parquet_rows_are_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": [1, 2, 3], "prompt": ["a", "", "é"], "completion": ["b", "c", " "]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    report = check_file(tmp_path / "rows.parquet", columns={})
    assert [(error.line, error.code) for error in report.errors] == [(3, "EMPTY_COMPLETION")]
    assert [warning.code for warning in report.warnings] == ["EXTRA_COLUMNS", "EMPTY_PROMPT"]
    jsonl = check(tmp_path, row(prompt="a", completion="b") + row(prompt="", completion="c"))
    assert report.content_hash == jsonl.content_hash


def test_parquet_conversations_leave_out_what_is_null(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    turns = [
        [
            turn("user", name="x"),
            turn("assistant", tool_calls=[call()]),
            turn("tool", tool_call_id="a1"),
            turn("assistant"),
        ]
    ]
    parquet.write_table(pyarrow.table({"talk": turns}), tmp_path / "rows.parquet")
    findings = Findings()
    (found,) = read_rows(tmp_path / "rows.parquet", columns={"messages": "talk"}, findings=findings)
    assert findings.errors == [] and [message.role for message in found.messages][-1] == "assistant"
    assert found.content_hash == read(tmp_path, chat(*turns[0]))[0].content_hash


def test_parquet_faults_are_found(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    bad_text = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")
    )
    for columns, found in (
        ({"prompt": ["a", None], "completion": ["b", "c\0"]}, [(2, "NUL_CHARACTER")]),
        ({"prompt": [1, 2], "completion": ["b", "c"]}, [(1, "WRONG_TYPE"), (2, "WRONG_TYPE")]),
        ({"prompt": ["a", "b"], "completion": bad_text}, [(2, "NOT_UTF8")]),
        ({"text": ["a"]}, [(None, "NO_KNOWN_COLUMN")]),
        ({"prompt": pyarrow.array([], "string"), "completion": pyarrow.array([], "string")}, [(None, "EMPTY_FILE")]),
    ):
        parquet.write_table(pyarrow.table(columns), path)
        assert [(error.line, error.code) for error in check_file(path, columns={}).errors] == found


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1...")
    (error,) = check_file(path, columns={}).errors
    assert error.code == "PARQUET_NEEDS_PYARROW" and error.hint is not None and "pip install" in error.hint


# The real files.


def test_mts_dialog_has_1201_records_in_11457_lines(shared_data: Path) -> None:
    path = shared_data / "dialogue_summarisation" / "mts_dialog" / "MTS-Dialog-TrainingSet.csv"
    columns = {"prompt": "dialogue", "completion": "section_text"}
    report = check_file(path, columns=columns)
    assert (report.rows, report.num_errors, report.duplicates) == (1201, 0, 1)
    rows = list(read_rows(path, columns=columns, findings=Findings()))
    assert max(len(row.prompt) for row in rows) == 8954
    assert sum(row.completion == "None." for row in rows) == 37
    assert rows[-1].line <= 11_457
    assert all("\r\n" in row.prompt for row in rows[:100])


def test_wwdc25_has_437_copies(shared_data: Path) -> None:
    report = check_file(shared_data / "prompt_completion" / "wwdc25" / "train.jsonl", columns={})
    assert (report.rows, report.num_errors, report.duplicates) == (1800, 0, 437)
    said = {warning.code: warning.message for warning in report.warnings}
    assert "437 rows are equal" in said["DUPLICATE_ROWS"]
    assert "1,244 rows have the prompt of an earlier row and another completion" in said["PROMPT_REPEATED"]


def test_gsm8k_by_columns(shared_data: Path) -> None:
    path = shared_data / "instruction" / "gsm8k" / "train.head3000.jsonl"
    report = check_file(path, columns={"prompt": "question", "completion": "answer"})
    assert (report.rows, report.num_errors, report.num_warnings) == (3000, 0, 0)


def test_tinker_messages(shared_data: Path) -> None:
    findings = Findings()
    path = shared_data / "messages" / "tinker" / "conversations.jsonl"
    rows = list(read_rows(path, columns={}, findings=findings))
    assert len(rows) == 128 and findings.errors == []
    assert sum(row.messages[0].role == "system" for row in rows) == 25


def test_wikisql_is_refused_with_the_way_out(shared_data: Path) -> None:
    report = check_file(shared_data / "text" / "wikisql" / "valid.jsonl", columns={})
    assert report.rows == 0 and report.num_errors == 100 and report.errors[0].code == "NO_KNOWN_COLUMN"
    assert '"text"' in report.errors[0].message and "--columns" in str(report.errors[0].hint)


def test_glaive_is_refused_as_an_array(shared_data: Path) -> None:
    report = check_file(shared_data / "toolcall" / "glaive" / "glaive_toolcall_en_demo.json", columns={})
    assert [error.code for error in report.errors] == ["JSON_ARRAY"]
    assert "jq" in str(report.errors[0].hint)


# The house.


def test_reading_rows_imports_nothing_heavy() -> None:
    code = "import sys, tunesmith.data.rows; print([m for m in ('numpy', 'torch', 'pyarrow') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_codes_are_upper_snake() -> None:
    assert all(
        re.fullmatch(r"[A-Z][A-Z0-9_]+", code) for code in {**findings_module.ERRORS, **findings_module.WARNINGS}
    )
