"""Tables: CSV (RFC 4180, line breaks in quoted fields included) and Parquet, record by record.

In: an open file. Out: objects of the columns that training reads, to a `RowMaker`. Field text is kept byte for byte:
a CRLF inside a quoted field stays one, and is counted. The line of a record is the one it starts on.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from io import FileIO
from typing import Any

from tunesmith.data.conversation import JsonObject
from tunesmith.data.findings import MAX_ROW_TEXT, Fault, names_shown, shown
from tunesmith.data.row_maker import RowMaker, count_texts
from tunesmith.data.source import BYTE_ORDER_MARK, decoded, line_batches
from tunesmith.spec.datasets import MAX_ROW_BYTES, RowKind

PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH_ROWS = 256
_SEPARATOR_NAMES = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv(handle: FileIO, head: bytes, maker: RowMaker, *, separator: str = ",") -> Iterator[None]:
    """Feed every record to `maker`, yielding now and then so that its rows can be taken."""
    findings = maker.findings
    if head.startswith(BYTE_ORDER_MARK):
        findings.warn("BYTE_ORDER_MARK", line=1)
    reader = _CsvReader(maker, separator=separator)
    for batch in line_batches(handle, head):
        if batch.oversized is not None:
            reader.refuse_oversized(batch.oversized, line=batch.first_line)
        offset = batch.offset
        is_last = batch.is_torn
        for line, data in enumerate(batch.lines, batch.first_line):
            reader.add_line(data, line=line, offset=offset, is_torn=is_last)
            offset += len(data) + 1
        yield
    reader.end()
    yield


class _CsvReader:
    """Physical lines in, records out; a record ends at a line end outside of quotes."""

    def __init__(self, maker: RowMaker, *, separator: str) -> None:
        self.maker = maker
        self.findings = maker.findings
        self.separator = separator
        self.names: list[str] | None = None
        self.places: dict[str, int] = {}
        self.open_lines: list[bytes] = []
        self.open_bytes = 0
        self.first_line = 1
        self.first_offset = 0

    def add_line(self, data: bytes, *, line: int, offset: int, is_torn: bool) -> None:
        leaves_open = data.count(b'"') % 2 == 1  # quotes inside a quoted field are doubled
        if self.open_lines:
            leaves_open = not leaves_open
        else:
            self.first_line = line
            self.first_offset = offset
            if not data.strip(b" \t\r"):
                self.findings.warn("BLANK_LINES", line=line)
                return
            # a line whose quotes are wrong already is a record by itself, and is refused below
            leaves_open = leaves_open and self._opens_a_field(data, is_torn=is_torn)
        self.open_lines.append(data)
        self.open_bytes += len(data) + 1
        if leaves_open:
            self._check_open_size()
            return
        lines, self.open_lines, self.open_bytes = self.open_lines, [], 0
        try:
            self._take(lines, is_torn=is_torn)
        except Fault as fault:
            if self.names is None:
                raise  # nothing can be read without a header
            self.findings.add_error(fault, line=fault.line or self.first_line)

    def _check_open_size(self) -> None:
        if self.open_bytes > MAX_ROW_BYTES:
            raise self._unclosed(f"within {MAX_ROW_TEXT}")

    def _opens_a_field(self, data: bytes, *, is_torn: bool) -> bool:
        """True if the line is fine up to a quoted field that it leaves open."""
        try:
            _split(decoded(data, offset=0, is_torn=is_torn), self.separator, may_stay_open=True)
        except Fault as fault:
            return fault.code != "BAD_QUOTE"
        return True

    def _unclosed(self, where: str) -> Fault:
        text = self.open_lines[0].decode(errors="replace")
        opened = _split(text, self.separator, may_stay_open=True)
        column = len(text) - len(opened[-1]) + 1
        return Fault(
            "UNCLOSED_QUOTE",
            f"A quoted field opened here is not closed {where}; what follows was not read.",
            line=self.first_line,
            column=column,
        )

    def refuse_oversized(self, size: int, *, line: int) -> None:
        if self.open_lines:
            raise self._unclosed(f"within {MAX_ROW_TEXT}")
        if self.names is None:
            raise Fault("BAD_HEADER", f"The first line has {size:,} bytes; it should name the columns.", line=line)
        fault = Fault("ROW_TOO_LARGE", f"The row has {size:,} bytes; the limit is {MAX_ROW_TEXT}.", column=1)
        self.findings.add_error(fault, line=line)

    def end(self) -> None:
        if self.open_lines:
            raise self._unclosed("before the end of the file")
        if self.names is not None and self.maker.num_rows:
            extra = [name for name in self.names if name not in self.places]
            if extra:
                names = [name or "(no name)" for name in extra]
                self.findings.warn("EXTRA_COLUMNS", line=1, rows=self.maker.num_rows, names=names)

    def _take(self, lines: list[bytes], *, is_torn: bool) -> None:
        text = self._text(lines, is_torn=is_torn)
        if self.names is None:
            self._refuse_json(text)
            self._take_header(_split(text, self.separator, first_line=self.first_line))
            return
        fields = _split(text, self.separator, first_line=self.first_line)
        if len(fields) != len(self.names):
            raise Fault(
                "WRONG_FIELD_COUNT",
                f"The record has {len(fields)} field{'s' * (len(fields) != 1)}; the header has {len(self.names)}.",
            )
        value: JsonObject = {name: fields[place] for name, place in self.places.items()}
        self.maker.add_object(value, line=self.first_line)
        if "\r" in text and any("\r\n" in field for field in value.values()):
            self.findings.warn("CRLF_IN_FIELDS", line=self.first_line)

    def _text(self, lines: list[bytes], *, is_torn: bool) -> str:
        last = lines[-1].removesuffix(b"\r")
        texts: list[str] = []
        offset = self.first_offset
        for index, data in enumerate([*lines[:-1], last]):
            try:
                if b"\0" in data:
                    before = data[: data.index(0)].decode(errors="replace")
                    raise Fault("NUL_CHARACTER", "The line holds a raw NUL byte.", column=len(before) + 1)
                texts.append(decoded(data, offset=offset, is_torn=is_torn and index == len(lines) - 1))
            except Fault as fault:
                fault.line = self.first_line + index
                raise
            offset += len(data) + 1
        return "\n".join(texts)

    def _refuse_json(self, text: str) -> None:
        if text.lstrip().startswith(("{", "[")):
            raise Fault(
                "BAD_HEADER",
                "The first line looks like JSON, not like the names of columns.",
                line=self.first_line,
                hint="Rename the file to end in .jsonl.",
            )

    def _take_header(self, names: list[str]) -> None:
        header = Fault("BAD_HEADER", "", line=self.first_line)
        if any("\r" in name for name in names):
            header.message = "The lines end in CR alone; records are split at LF."
            header.hint = "Convert the line ends: `tr '\\r' '\\n' < FILE > rows.csv`."
            raise header
        if not any(names):
            header.message = "The header names no column."
            raise header
        if len(names) == 1:
            for mark, what in _SEPARATOR_NAMES.items():
                if mark in names[0]:
                    header.message = f"The header is separated by {what}; commas are needed."
                    header.hint = "Write the table with commas" + (", or name it .tsv." if mark == "\t" else ".")
                    raise header
        twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
        if twice:
            header.message = f"The header names {names_shown(twice)} twice."
            raise header
        try:
            kind = self.maker.kind_of([name for name in names if name])
        except Fault as fault:
            fault.line = self.first_line
            fault.message = fault.message.replace("The row has", "The header has").replace("it has", "the header has")
            raise
        if kind is RowKind.MESSAGES:
            raise Fault(
                "WRONG_TYPE",
                f'"{shown(self.maker.messages_column, 40)}" cannot be a column of a CSV file, whose fields are texts.',
                line=self.first_line,
                hint="Use JSONL for conversations.",
            )
        self.names = names
        self.places = {name: names.index(name) for name in self.maker.used_columns(names, kind)}


def _split(text: str, separator: str, *, first_line: int = 1, may_stay_open: bool = False) -> list[str]:
    """Fields of a record. Raises Fault at a quote that stands inside or behind a field.

    may_stay_open: the last field may lack its closing quote; it is then given as written.
    """
    if '"' not in text:
        return text.split(separator)
    fields: list[str] = []
    at = 0
    while True:
        if text.startswith('"', at):
            end = text.find('"', at + 1)
            while end >= 0 and text.startswith('"', end + 1):
                end = text.find('"', end + 2)
            if end < 0:
                assert may_stay_open
                return [*fields, text[at:]]
            fields.append(text[at + 1 : end].replace('""', '"'))
            at = end + 1
            if at < len(text) and not text.startswith(separator, at):
                raise _bad_quote("Text follows the closing quote of a field.", text, at, first_line=first_line)
        else:
            end = text.find(separator, at)
            field = text[at:] if end < 0 else text[at:end]
            if '"' in field:
                place = at + field.index('"')
                raise _bad_quote(
                    "A quote stands inside a field that has none around it.", text, place, first_line=first_line
                )
            fields.append(field)
            at += len(field)
        if at >= len(text):
            return fields
        at += len(separator)


def _bad_quote(message: str, text: str, at: int, *, first_line: int) -> Fault:
    line = first_line + text.count("\n", 0, at)
    return Fault("BAD_QUOTE", message, line=line, column=at - (text.rfind("\n", 0, at) + 1) + 1)


def read_parquet(handle: FileIO, head: bytes, maker: RowMaker) -> Iterator[None]:
    """Feed every record to `maker`; only the columns that training reads are decoded."""
    if not head.startswith(PARQUET_MAGIC):
        raise Fault("PARQUET_UNREADABLE", "The file is named .parquet, but does not start like one.")
    try:
        # local: pyarrow is an extra, wanted for this format alone
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise Fault("PARQUET_NEEDS_PYARROW", "Reading Parquet needs pyarrow, which is not installed.") from error
    line = 0
    try:
        handle.seek(0)
        table = parquet.ParquetFile(handle)
        names: list[str] = list(table.schema_arrow.names)
        kind = maker.kind_of(names)
        used = maker.used_columns(names, kind)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=used):
            for value in _objects(batch):
                line += 1
                try:
                    _add_record(value, maker, line=line)
                except Fault as fault:
                    maker.findings.add_error(fault, line=line)
            yield
    except (ValueError, OSError, NotImplementedError) as error:  # Arrow's own errors are of these
        message = f"pyarrow cannot read the file: {shown(str(error))}"
        raise Fault("PARQUET_UNREADABLE", message, line=line or None) from error
    extra = [name for name in names if name not in used]
    if extra and maker.num_rows:
        maker.findings.warn("EXTRA_COLUMNS", line=1, rows=maker.num_rows, names=extra)
    yield


def _objects(batch: Any) -> Iterator[JsonObject | Fault]:
    """The records of a batch; one whose text is not UTF-8 as a Fault of its own."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield Fault("NOT_UTF8", f"Byte 0x{error.object[error.start]:02X} of a text is not UTF-8.")


def _add_record(value: JsonObject | Fault, maker: RowMaker, *, line: int) -> None:
    if isinstance(value, Fault):
        raise value
    count_texts(value)
    size = sum(len(field.encode()) for field in value.values() if isinstance(field, str))
    if size > MAX_ROW_BYTES:
        raise Fault("ROW_TOO_LARGE", f"The row has {size:,} bytes; the limit is {MAX_ROW_TEXT}.")
    maker.add_object(value, line=line)
