"""Our strict JSON against Python's json and orjson: the same values, and never a text that they refuse."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data.bad_rows import GOOD, row
from tunesmith.data.findings import Fault
from tunesmith.data.rows import Findings, check_file, read_rows
from tunesmith.data.strict_json import column_of, parse_strict

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
FULL_TEXT = TEXT.filter(lambda text: text.strip() != "")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
COMMON = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class RefusedError(Exception):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs) or len(pairs) > 1000:
        raise RefusedError
    return dict(pairs)


def _constant(_: str) -> Any:
    raise RefusedError


def _number(text: str) -> Any:
    if math.isinf(float(text)):
        raise RefusedError
    return int(text) if text.lstrip("-").isdigit() else float(text)


def reference(line: bytes) -> Any:
    """Slow and strict by Python's own json: the judge of both of our ways."""
    try:
        value = json.loads(
            line.decode(), object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_number, parse_float=_number
        )
        seen = json.dumps(value, ensure_ascii=False)
        seen.encode()  # a lone surrogate cannot be encoded
    except (ValueError, RecursionError) as error:
        raise RefusedError from error
    if "\\u0000" in json.dumps(value).replace("\\\\", "") or _depth(value) > 32:
        raise RefusedError
    return value


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@COMMON
@pytest.mark.slow  # hundreds of made-up files
@given(JSON, st.booleans(), st.sampled_from([None, 2]))
def test_any_value_is_read_back(value: Any, ascii_only: bool, indent: int | None) -> None:
    assert parse_strict(json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == value


@COMMON
@given(st.text(st.sampled_from('{}[]",:\\u0123dDeE+-.truefalsn \tNI\x00é'), max_size=30))
@example('"\\ud83d\\ude00"')
@example('"\\ud83d\\u0041"')
@example("-0")
@example("1E5")
@example('{"a":1,"a":1}')
def test_strict_json_agrees_with_the_judge(text: str) -> None:
    try:
        expected = reference(text.encode())
    except RefusedError:
        with pytest.raises(Fault) as caught:
            parse_strict(text)
        assert caught.value.column is not None and 1 <= caught.value.column <= len(text) + 1
    else:
        assert parse_strict(text) == expected
        if b"\\u0000" not in text.encode():
            orjson.loads(text)  # so the fast way takes it as well


def test_integers_stay_exact() -> None:
    assert parse_strict("[18446744073709551617, -0, 1e2]") == [2**64 + 1, 0, 100.0]


def test_column_of_finds_values_and_keys() -> None:
    text = '{"é": [1, {"b": 2}]}'
    assert column_of(text, ("é", 1, "b")) == text.index("2") + 1
    assert column_of(text, ("é", 1, "b"), at_key=True) == text.index('"b"') + 1
    assert column_of(text, ("é", 1, "missing")) == text.index('{"b"') + 1
    assert column_of(text, ()) == 1


@COMMON
@pytest.mark.slow  # hundreds of made-up files
@given(st.lists(st.tuples(TEXT, FULL_TEXT), min_size=1, max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_any_text_survives_the_way_through_a_file(
    tmp_path: Path, pairs: list[tuple[str, str]], ascii_only: bool, end: str
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=ascii_only) for p, c in pairs]
    path.write_bytes("".join(line + end for line in lines).encode())
    findings = Findings()
    rows = list(read_rows(path, columns={}, findings=findings))
    assert findings.errors == []
    assert [(row.prompt, row.completion) for row in rows] == pairs
    report = check_file(path, columns={})
    assert report.duplicates == len(pairs) - len(set(pairs))
    path.write_bytes("\n".join(lines).encode())
    assert check_file(path, columns={}).content_hash == report.content_hash


@COMMON
@pytest.mark.slow  # hundreds of made-up files
@given(st.lists(st.tuples(TEXT, FULL_TEXT), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_csv_reads_what_the_csv_module_writes(tmp_path: Path, pairs: list[tuple[str, str]], end: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "completion"), *pairs])
    path = tmp_path / "rows.csv"
    path.write_bytes(text.getvalue().encode())
    findings = Findings()
    rows = list(read_rows(path, columns={}, findings=findings))
    assert findings.errors == []
    assert [(row.prompt, row.completion) for row in rows] == pairs


VALID = (
    GOOD
    + row(prompt='say "prompt" \\ \n', completion="é日😀", id=[1, {"a": 2.5}])
    + rb'{"completion": "\u0022\u00e9\ud83d\ude00", "prompt": "\\u0000\""}'
    + b"\r\n\n"
    + row(prompt="last", completion='"completion": 1, {}')
)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, len(VALID) - 1),
        st.integers(0, 3),
        st.sampled_from(b'{}[]",:\\ u0dD\n\r\x00\xff\xc3\xe2\x80e9-n'),
    ),
    min_size=1,
    max_size=4,
)


@settings(COMMON, max_examples=400)
@pytest.mark.slow  # hundreds of made-up files
@given(CHANGES)
def test_damaged_files_give_rows_or_findings_as_the_judge_says(
    tmp_path: Path, changes: list[tuple[int, int, int]]
) -> None:
    data = VALID
    for place, length, byte in changes:
        place = min(place, len(data) - 1)
        data = data[:place] + bytes([byte]) + data[place + length :]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "first", "completion": "row"}\n' + data)
    findings = Findings()
    rows = {row.line: row for row in read_rows(path, columns={}, findings=findings)}
    faulty = {error.line: error.code for error in findings.errors}
    for number, line in enumerate(data.split(b"\n"), 2):
        if not line.strip(b" \t\r"):
            assert number not in rows and number not in faulty
            continue
        try:
            value = reference(line)
            is_good = isinstance(value, dict) and all(isinstance(value.get(k), str) for k in ("prompt", "completion"))
            is_good = is_good and value["completion"].strip() != ""
        except RefusedError:
            is_good = False
        assert (number in rows) == is_good, line
        assert (number in faulty) == (not is_good), line
        if is_good:
            assert (rows[number].prompt, rows[number].completion) == (value["prompt"], value["completion"])
    report = check_file(path, columns={})
    assert (report.rows, report.errors) == (len(rows), findings.errors)


@settings(COMMON, max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["rows.jsonl", "rows.csv", "rows.parquet"]))
@example(b"PAR1" + bytes(40) + b"PAR1", "rows.parquet")
@example(b'prompt,completion\n"', "rows.csv")
@example(b'\xef\xbb\xbf"', "rows.csv")
def test_no_bytes_raise(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    report = check_file(path, columns={})
    assert report.num_errors > 0 or report.rows > 0


@settings(COMMON, max_examples=200)
@given(st.text(st.sampled_from('a,"\n\r;é'), max_size=30))
def test_csv_never_raises_and_agrees_with_the_csv_module_where_it_reads(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(("prompt,completion\n" + text).encode())
    findings = Findings()
    rows = list(read_rows(path, columns={}, findings=findings))
    if findings.errors:
        return
    lone = text.replace("\r\n", "").count("\r")
    if not lone:  # the csv module takes a lone CR for a line end
        written = [record for record in csv.reader(io.StringIO(text, newline=""), strict=True) if record]
        assert [[row.prompt, row.completion] for row in rows] == written
