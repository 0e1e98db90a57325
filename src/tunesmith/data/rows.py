"""A dataset file to rows: the one strict reader, for control and workers alike.

In: a local path (JSONL, CSV, TSV or Parquet by its name) and a mapping of columns. Out: good rows one by one in
bounded memory, and all that is wrong with the others; or a `DatasetReport` of the whole file. Only the standard
library, orjson and the spec are imported here, so that control may read rows. Tokens are no matter of this module.
"""

from __future__ import annotations

import shlex
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path

from tunesmith.data.conversation import Message, ToolCall
from tunesmith.data.findings import Fault, Findings, shown
from tunesmith.data.jsonl import read_jsonl
from tunesmith.data.row_maker import Row, RowMaker, check_columns
from tunesmith.data.source import CHUNK_BYTES, opened, refuse_by_first_bytes
from tunesmith.data.tables import read_csv, read_parquet
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import DatasetReport

__all__ = [
    "Findings",
    "Message",
    "Row",
    "ToolCall",
    "check_columns",
    "check_file",
    "error_summary",
    "read_rows",
    "require_rows",
]

BLOCK_ROWS = 1 << 20
SEEN_PARTS = 256


def read_rows(path: Path, *, columns: Mapping[str, str], findings: Findings) -> Iterator[Row]:
    """The usable rows of a file in its order; faults and warnings go to `findings`, which is whole at the end.

    columns: ours (prompt, completion, messages, tools) to the file's. Duplicates are not counted here, but by
    `check_file`. Raises UsageFault for a mapping that no file could fit; a file that cannot be read is a finding.
    """
    maker = RowMaker(columns, findings=findings, keeps_rows=True)
    for _ in _feed(path, maker):
        yield from maker.rows
        maker.clear()


def check_file(
    path: Path,
    *,
    columns: Mapping[str, str],
    name: str | None = None,
    opened: Callable[[Path], AbstractContextManager[FileIO]] = opened,
) -> DatasetReport:
    """Read a whole file and say all that is wrong with it, and what should be known.

    name: what the user calls the file, for messages. opened: how to open it, for one that still arrives. Memory: 16
    bytes a row beside one row.
    """
    findings = Findings()
    maker = RowMaker(columns, findings=findings, keeps_rows=False)
    seen = _SeenRows()
    digest = sha256()
    for _ in _feed(path, maker, opened):
        hashes = b"".join(maker.hashes)
        digest.update(hashes)
        seen.add(hashes, maker.lines)
        maker.clear()
    duplicates = seen.count_duplicates()
    if duplicates is not None:
        findings.warn(
            "DUPLICATE_ROWS", line=duplicates.line, rows=duplicates.rows, detail=f" (like line {duplicates.of})"
        )
    return DatasetReport(
        path=shown(str(path) if name is None else name, limit=1000),
        kind=maker.kind,
        rows=maker.num_rows,
        bytes=_size(path),
        content_hash=digest.hexdigest(),
        errors=findings.errors,
        num_errors=findings.num_errors,
        warnings=findings.warnings,
        num_warnings=findings.num_warnings,
        duplicates=0 if duplicates is None else duplicates.rows,
    )


def split_needs_two(num_rows: int, *, fraction: float) -> InputRefused:
    """Of rows that are one, or all equal: nothing of them can be held out."""
    rows = "row" if num_rows == 1 else "rows, all equal"
    return InputRefused(
        "SPLIT_NEEDS_TWO",
        f"The dataset has {num_rows:,} {rows}; --validation-fraction {fraction:g} needs 2 different ones.",
        field="validation_fraction",
        hint="Add rows, give --validation-dataset, or set --validation-fraction 0.",
    )


def require_rows(report: DatasetReport) -> None:
    """Raises InputRefused with the first error of a report, if it has one."""
    if not report.errors:
        return
    first = report.errors[0]
    check = f"`tunesmith dataset check {shlex.quote(report.path)}` lists them all."
    hints = [first.hint or "", check if report.num_errors > 1 else ""]
    raise InputRefused(
        first.code,
        error_summary(report),
        field=report.path if first.line is None else f"line {first.line}",
        hint=" ".join(hint for hint in hints if hint) or None,
    )


def error_summary(report: DatasetReport) -> str:
    """`rows.jsonl line 17, column 3: what is wrong (and 4 more errors)`, or an empty text without errors."""
    if not report.errors:
        return ""
    first = report.errors[0]
    place = report.path
    if first.line is not None:
        place += f" line {first.line}"
    if first.column is not None:
        place += f", column {first.column}"
    more = report.num_errors - 1
    others = "" if not more else f" (and {more:,} more error{'s' * (more > 1)})"
    return f"{place}: {first.message}{others}"


def _feed(
    path: Path, maker: RowMaker, opened: Callable[[Path], AbstractContextManager[FileIO]] = opened
) -> Iterator[None]:
    """Give the whole file to `maker`. Each step leaves rows to take; a fault that stops the reading ends it."""
    findings = maker.findings
    try:
        with opened(path) as handle:
            head = handle.read(CHUNK_BYTES) or b""
            yield from _steps(path, maker, handle=handle, head=head)
        if maker.num_rows == 0 and findings.num_errors == 0:
            raise Fault("EMPTY_FILE", "The file has no row, only blank lines or a header.")
    except Fault as fault:
        findings.add_error(fault)
    maker.tell_likeness()


def _steps(path: Path, maker: RowMaker, *, handle: FileIO, head: bytes) -> Iterator[None]:
    """Choose the reader by the file's name; a name that says nothing is read as JSONL."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        if not head:
            refuse_by_first_bytes(head)
        return read_parquet(handle, head, maker)
    refuse_by_first_bytes(head)
    if suffix in (".csv", ".tsv"):
        return read_csv(handle, head, maker, separator="\t" if suffix == ".tsv" else ",")
    return read_jsonl(handle, head, maker)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Duplicates:
    """rows: equal to an earlier one. line: of the first of them in the file. of: the line it repeats."""

    rows: int
    line: int
    of: int


class _SeenRows:
    """Counts equal rows in 16 bytes a row: the first half of each hash, and the line.

    Rows gather in one block, looked through as a whole; full blocks are dealt out to parts by hash, so that what is
    looked through stays small. 8 bytes collide by chance once in 10^5 files of 10^7 rows; only a warning rests on it.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._lines = array("Q")
        self._parts: list[tuple[array[int], array[int]]] = []

    def add(self, hashes: bytes, lines: list[int]) -> None:
        self._hashes.frombytes(hashes)
        self._lines.extend(lines)
        if len(self._lines) >= BLOCK_ROWS:
            self._deal_out()

    def _deal_out(self) -> None:
        if not self._parts:
            self._parts = [(array("Q"), array("Q")) for _ in range(SEEN_PARTS)]
        for key, line in zip(self._hashes[::2], self._lines, strict=True):
            keys, lines = self._parts[key & (SEEN_PARTS - 1)]
            keys.append(key)
            lines.append(line)
        self._hashes = array("Q")
        self._lines = array("Q")

    def count_duplicates(self) -> _Duplicates | None:
        if self._parts:
            self._deal_out()
        num_duplicates = 0
        first: tuple[int, int] | None = None
        for keys, lines in self._parts or [(self._hashes[::2], self._lines)]:
            repeated = len(keys) - len(set(keys))
            if repeated:
                num_duplicates += repeated
                found = _first_repeat(keys, lines)
                first = found if first is None else min(first, found)
        return None if first is None else _Duplicates(rows=num_duplicates, line=first[0], of=first[1])


def _first_repeat(keys: array[int], lines: array[int]) -> tuple[int, int]:
    """Line of the first key that was there before, and the line where it was."""
    first: dict[int, int] = {}
    for key, line in zip(keys, lines, strict=True):
        if key in first:
            return line, first[key]
        first[key] = line
    raise AssertionError("a repeat was counted before")
