"""Rows of a dataset's file to look at: a page of them, each with what the check found in it.

In: the file and its report. Out: texts by role, cut where they are long. The strict reader reads from the file's start
to the page's end in bounded memory: rows have no fixed place in a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from tunesmith.data.rows import Findings, Message, Row, read_rows
from tunesmith.spec.api import ROW_CHARACTERS, DatasetRow, DatasetRowPage, RowText
from tunesmith.spec.datasets import DatasetReport, Finding

MAXIMUM_TURNS = 50  # of a conversation that are shown


def read_row_page(
    path: Path, *, columns: Mapping[str, str], report: DatasetReport, after: int, limit: int
) -> DatasetRowPage:
    """Rows behind line `after`. A file that cannot be read any more gives no rows."""
    warnings: dict[int, list[Finding]] = defaultdict(list)
    for finding in report.warnings:
        if finding.line is not None:
            warnings[finding.line].append(finding)
    found: list[DatasetRow] = []
    for row in read_rows(path, columns=columns, findings=Findings()):
        if row.line <= after:
            continue
        if len(found) == limit:
            return DatasetRowPage(rows=found, next=str(found[-1].line))
        found.append(DatasetRow(line=row.line, texts=_texts(row), warnings=warnings[row.line]))
    return DatasetRowPage(rows=found, next=None)


def _texts(row: Row) -> list[RowText]:
    if not row.messages:
        return [_text("prompt", row.prompt), _text("completion", row.completion)]
    texts = [_text(turn.role, _content(turn)) for turn in row.messages[:MAXIMUM_TURNS]]
    more = len(row.messages) - MAXIMUM_TURNS
    return texts if more <= 0 else [*texts, _text("more", f"{more} more turns")]


def _content(turn: Message) -> str:
    calls = [f"{call.name}({call.arguments})" for call in turn.tool_calls]
    return "\n".join([*([turn.content] if turn.content else []), *calls])


def _text(role: str, text: str) -> RowText:
    return RowText(role=role, text=text[:ROW_CHARACTERS], characters=len(text))
