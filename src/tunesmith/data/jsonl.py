"""JSONL: lines of bytes to checked JSON values, and each fault to its line, column and name.

In: batches of lines. Out: values to a `RowMaker`, faults to its findings. The fast way is orjson and a count of
quotes that proves that no key was written twice; a line that fails is read again by `strict_json`, which says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import FileIO
from typing import Any, cast

import orjson

from tunesmith.data.conversation import has_big_number, type_name
from tunesmith.data.findings import MAX_ROW_TEXT, Fault
from tunesmith.data.row_maker import RowMaker, count_texts
from tunesmith.data.source import BYTE_ORDER_MARK, LineBatch, decoded, line_batches
from tunesmith.data.strict_json import column_of, parse_strict

_ARRAY_START = re.compile(rb"\s*\[\s*(\{|\[|\]|$)")
_SPREAD_START = re.compile(rb'\s*\{\s*(\r?\n)\s*("|\})')
_NAME = rb'"?[A-Za-z_][\w .\-]{0,60}"?'
_HEADER = re.compile(rb"%b(\s?[,;\t|]\s?%b)+\s*" % (_NAME, _NAME))


def read_jsonl(handle: FileIO, head: bytes, maker: RowMaker) -> Iterator[None]:
    """Feed every line to `maker`, yielding after each batch so that its rows can be taken."""
    start = head.removeprefix(BYTE_ORDER_MARK)
    _refuse_other_forms(start)
    if len(start) < len(head):
        maker.findings.warn("BYTE_ORDER_MARK", line=1)
    for batch in line_batches(handle, head):
        if batch.oversized is not None:
            message = f"The row has {batch.oversized:,} bytes; the limit is {MAX_ROW_TEXT}."
            maker.findings.add_error(Fault("ROW_TOO_LARGE", message, column=1), line=batch.first_line)
        else:
            _read_batch(batch, maker)
        yield


def _refuse_other_forms(start: bytes) -> None:
    """A JSON array, an object over several lines, a CSV file: known by their first lines."""
    text = start.lstrip()
    if _ARRAY_START.match(text) and not _is_rows_of_lists(text):
        raise Fault("JSON_ARRAY", "The file is one JSON array; one object a line is needed.", line=1)
    if _SPREAD_START.match(text):
        raise Fault("JSON_SPREAD", "The first row is spread over several lines; one object a line is needed.", line=1)
    first_line = text.split(b"\n", 1)[0]
    if _HEADER.fullmatch(first_line):
        name = first_line.strip().decode()
        raise Fault("CSV_NAMED_JSONL", f"The file looks like CSV: its first line is `{name[:80]}`.", line=1)


def _is_rows_of_lists(text: bytes) -> bool:
    """Lines that are lists each, and not one array over the file: two whole ones, one after the other."""
    lines = [line for line in text.split(b"\n", 3)[:3] if line.strip()]
    try:
        return len(lines) > 1 and all(isinstance(orjson.loads(line), list) for line in lines[:2])
    except orjson.JSONDecodeError:
        return False


def _read_batch(batch: LineBatch, maker: RowMaker) -> None:
    """The hot loop: for a row of two texts it does one parse, one count of quotes and one hash."""
    loads = orjson.loads
    prompt_column = maker.prompt_column
    completion_column = maker.completion_column
    look_close = batch.look_close
    maker.looks_close = look_close
    line = batch.first_line - 1
    for data in batch.lines:
        line += 1
        try:
            value = loads(data)
            if (
                type(value) is dict
                and len(value := cast("dict[str, Any]", value)) == 2
                and type(prompt := value.get(prompt_column)) is str
                and type(completion := value.get(completion_column)) is str
                and not look_close
                # Each of four texts has two quotes of its own; what is inside a text is a quote of its value, as no
                # \u0022 is about. A key written twice leaves quotes over.
                and data.count(b'"') == 8 + prompt.count('"') + completion.count('"')
                and maker.takes_pairs
            ):
                maker.add_pair(prompt, completion, line=line)
                continue
            _check_tree(value, data)
            if type(value) is not dict:
                raise Fault("NOT_AN_OBJECT", f"The row is {type_name(value)}; an object is needed.")
            value = cast("dict[str, Any]", value)
            if maker.may_keep_numbers(value) and has_big_number(value):
                value = cast("dict[str, Any]", parse_strict(data.decode()))  # orjson rounds integers beyond 64 bits
            maker.add_object(value, line=line)
        except (orjson.JSONDecodeError, Fault) as error:
            if not data.strip(b" \t\r"):
                maker.findings.warn("BLANK_LINES", line=line)
            elif not maker.findings.has_room:
                maker.findings.count_error()
            else:
                _explain(error, data, batch=batch, line=line, maker=maker)


def _check_tree(value: Any, data: bytes) -> None:
    """Raises Fault for what orjson lets pass: depth, width, NULs, and a key written twice."""
    num_texts = count_texts(value, has_nul=b"\\u0000" in data)
    if data.count(b'"') != 2 * num_texts and _structural_quotes(data) != 2 * num_texts:
        raise Fault("DUPLICATE_KEY", "A key stands twice in one object.")


def _structural_quotes(data: bytes) -> int:
    """Quotes that open or close a text. Within valid JSON a quote is escaped by a backslash that is none itself."""
    bare = data.replace(b"\\\\", b"") if b"\\\\" in data else data
    return bare.count(b'"') - bare.count(b'\\"')


def _explain(error: Exception, data: bytes, *, batch: LineBatch, line: int, maker: RowMaker) -> None:
    """List the fault of a line, with the column of its place."""
    is_last = batch.is_torn and line == batch.first_line + len(batch.lines) - 1
    offset = batch.offset + sum(len(other) + 1 for other in batch.lines[: line - batch.first_line])
    findings = maker.findings
    try:
        text = decoded(data, offset=offset, is_torn=is_last)
        parse_strict(text)
    except Fault as fault:
        if fault.code == "ENDS_EARLY" and is_last:
            message = f"The file ends inside the row, after {len(data):,} bytes of it: {fault.message}"
            fault = Fault("TRUNCATED", message, column=fault.column)
        findings.add_error(fault, line=line)
        return
    if isinstance(error, Fault):
        column = error.column or column_of(text, error.path, at_key=error.at_key)
        findings.add_error(error, line=line, column=column)
    else:  # the two parsers differ: refuse, and say what orjson says
        findings.add_error(Fault("UNEXPECTED", f"The line is not JSON: {error}.", column=1), line=line)
