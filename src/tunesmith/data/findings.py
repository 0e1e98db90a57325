"""What a check of a dataset can find: the table of codes, the collector, and text made safe to show.

In: faults and counts from the readers. Out: `Finding`s. Every code stands in CODES with its meaning and way out;
`docs/guide/data.md` repeats that table, and a test holds the two together.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tunesmith.spec.datasets import MAX_DEPTH, MAX_KEYS, MAX_LISTED_FINDINGS, MAX_ROW_BYTES, Finding

MAX_SHOWN = 80
MAX_NAMES = 12
MAX_ROW_TEXT = f"{MAX_ROW_BYTES // (1024 * 1024)} MB ({MAX_ROW_BYTES:,} bytes)"


class CodeMeaning(NamedTuple):
    meaning: str
    way_out: str


# The file as a whole. Reading ends at these.
FILE_ERRORS: dict[str, CodeMeaning] = {
    "FILE_MISSING": CodeMeaning("There is no file of that name.", "Check the spelling of the path."),
    "FILE_UNREADABLE": CodeMeaning("The system does not let us read the file.", "Check its permissions and its disk."),
    "NOT_A_FILE": CodeMeaning(
        "The path is a folder, a pipe, a socket or a device.", "Name one regular file; copy a stream into one first."
    ),
    "FILE_CHANGED": CodeMeaning("The file changed while it was read.", "Wait until its writer is done, or copy it."),
    "EMPTY_FILE": CodeMeaning("The file has no row.", "Give a file with at least one row."),
    "NOT_TEXT": CodeMeaning(
        "The file is an archive, a pickle, a table in a binary format, a run of NULs or the like.",
        "Unpack or convert it to JSONL in UTF-8.",
    ),
    "LFS_POINTER": CodeMeaning(
        "The file is a Git LFS pointer; the rows were never fetched.", "Run `git lfs pull` where it came from."
    ),
    "ENCODING": CodeMeaning(
        "The file is UTF-16 or UTF-32.", "Convert it: `iconv -f UTF-16 -t UTF-8 FILE > rows.jsonl`."
    ),
    "JSON_ARRAY": CodeMeaning(
        "The file is one JSON array; JSONL has one object a line.", "Convert it: `jq -c '.[]' FILE > rows.jsonl`."
    ),
    "JSON_SPREAD": CodeMeaning(
        "A JSON object is spread over several lines; JSONL has one object a line.",
        "Convert it: `jq -c . FILE > rows.jsonl`.",
    ),
    "CSV_NAMED_JSONL": CodeMeaning(
        "The first line is the header of a CSV file.", "Rename the file to end in .csv, or convert it to JSONL."
    ),
    "PARQUET_UNREADABLE": CodeMeaning("pyarrow cannot read the Parquet file.", "Write the file anew."),
    "PARQUET_NEEDS_PYARROW": CodeMeaning(
        "The file is Parquet, and pyarrow is not installed.", "Run `pip install 'tunesmith[parquet]'`."
    ),
    "BAD_HEADER": CodeMeaning(
        "The header of a CSV file is empty, names a column twice, or is not separated by commas.",
        "Give a first line with the columns' names, separated by commas.",
    ),
    "UNCLOSED_QUOTE": CodeMeaning(
        "A quoted field of a CSV file is never closed; the rest of the file cannot be told apart.",
        'Close the quote; a quote inside a field is written twice: "".',
    ),
}

# One line: its bytes, its JSON, its fields.
LINE_ERRORS: dict[str, CodeMeaning] = {
    "NOT_UTF8": CodeMeaning(
        "Bytes that are not UTF-8.", "Convert the file: `iconv -f WINDOWS-1252 -t UTF-8 FILE > rows.jsonl`."
    ),
    "NUL_CHARACTER": CodeMeaning(r"A NUL, as a byte or written as \u0000.", "Remove it."),
    "ROW_TOO_LARGE": CodeMeaning(f"The row is larger than {MAX_ROW_TEXT}.", "Split the row, or remove it."),
    "TOO_DEEP": CodeMeaning(f"Objects and lists nested deeper than {MAX_DEPTH}.", "Flatten the row."),
    "TOO_MANY_KEYS": CodeMeaning(f"An object with more than {MAX_KEYS:,} keys.", "Keep the columns that are needed."),
    "TRUNCATED": CodeMeaning(
        "The file ends inside its last row.", "Copy or download the file again, or remove the last line."
    ),
    "ENDS_EARLY": CodeMeaning(
        "The line ends inside a row.", r"Put the whole row on one line; a line break inside text is written \n."
    ),
    "TWO_ROWS_ON_A_LINE": CodeMeaning("A second row on the same line.", "Put each row on a line of its own."),
    "TEXT_AFTER_ROW": CodeMeaning("Text after the end of the row.", "Remove it."),
    "DUPLICATE_KEY": CodeMeaning("An object has the same key twice.", "Keep one of the two."),
    "LONE_SURROGATE": CodeMeaning(
        r"Half of a surrogate pair (\ud800 to \udfff); no character.",
        "Write the whole pair or the character itself; the text was probably cut in the middle of an emoji.",
    ),
    "NOT_FINITE": CodeMeaning("NaN or Infinity, which JSON does not have.", "Write null, or leave the field out."),
    "NUMBER_TOO_LARGE": CodeMeaning(
        "A number beyond the range of a 64-bit float (about 1.8e308).", "Write it as text, or leave the field out."
    ),
    "BAD_NUMBER": CodeMeaning(
        "Not a number as JSON writes it, such as 01, +1, .5 or 0x10.", "Write 1, 0.5, 1e5, or text in quotes."
    ),
    "WRONG_QUOTES": CodeMeaning(
        "Single or typographic quotes around a text.", 'Use "double" quotes; json.dumps writes valid rows.'
    ),
    "PYTHON_LITERAL": CodeMeaning(
        "True, False or None: a row printed by Python.", "Write true, false or null; json.dumps does, print does not."
    ),
    "COMMENT": CodeMeaning("A comment, which JSON does not have.", "Remove it."),
    "UNQUOTED_KEY": CodeMeaning("A key without quotes.", 'Put keys in "double" quotes.'),
    "TRAILING_COMMA": CodeMeaning("A comma before a closing bracket.", "Remove the comma."),
    "CONTROL_CHARACTER": CodeMeaning(
        "A raw control character inside a text.", r"Write it escaped, a tab as \t; json.dumps does."
    ),
    "BAD_ESCAPE": CodeMeaning("A backslash followed by what JSON does not know.", r"Write a backslash as \\."),
    "UNEXPECTED": CodeMeaning("Something else than JSON allows in that place.", "Write the row with json.dumps."),
    "BAD_QUOTE": CodeMeaning(
        "A quote inside or behind a field of a CSV file.",
        'Put the whole field in quotes and write a quote inside it twice: "".',
    ),
    "WRONG_FIELD_COUNT": CodeMeaning(
        "A record of a CSV file with more or fewer fields than the header.",
        "Put fields that hold commas or line breaks in quotes.",
    ),
    "NOT_AN_OBJECT": CodeMeaning("The row is not a JSON object.", 'Write rows as {"prompt": ..., "completion": ...}.'),
}

# What a row holds.
ROW_ERRORS: dict[str, CodeMeaning] = {
    "NO_KNOWN_COLUMN": CodeMeaning(
        "The row has neither prompt and completion nor messages.",
        "Say which columns they are: --columns prompt=COLUMN,completion=COLUMN or --columns messages=COLUMN.",
    ),
    "SHAREGPT": CodeMeaning(
        "The row has ShareGPT's `conversations`, which is not supported.",
        'Write `messages` with "role" (human = user, gpt = assistant) and "content" in place of "from" and "value".',
    ),
    "TWO_KINDS_IN_A_ROW": CodeMeaning(
        "The row has prompt and completion, and messages as well.",
        "Choose: --columns messages=messages or --columns prompt=prompt,completion=completion.",
    ),
    "MIXED_KINDS": CodeMeaning(
        "The file has rows of both kinds. Said once, at the first row of the second kind.",
        "Put the two kinds into two files.",
    ),
    "MISSING_COLUMN": CodeMeaning(
        "A column that the row needs is not there.", "Add it, or name the file's own column with --columns."
    ),
    "WRONG_TYPE": CodeMeaning("A field is not of the type it must have.", "Give it the type that the message names."),
    "EMPTY_COMPLETION": CodeMeaning(
        "The completion is empty or only white space.", "Remove the row, or give the text the model should learn."
    ),
    "UNKNOWN_ROLE": CodeMeaning(
        "A role other than system, user, assistant and tool.",
        "Use one of those four.",
    ),
    "ROLE_ORDER": CodeMeaning(
        "The turns are not in an order that chat templates know.",
        "Let user and assistant take turns, tool turns standing between an assistant's tool calls and its next turn.",
    ),
    "SYSTEM_NOT_FIRST": CodeMeaning("A system turn that is not the first.", "Move it to the front."),
    "SYSTEM_TWICE": CodeMeaning("A second system turn.", "Join the two into one, at the front."),
    "NO_ASSISTANT": CodeMeaning("No assistant turn, so nothing to learn.", "Add the answer, or remove the row."),
    "LAST_NOT_ASSISTANT": CodeMeaning("The last turn is not the assistant's.", "End the row with the answer."),
    "EMPTY_CONTENT": CodeMeaning("A turn without content.", "Give the content, or remove the turn."),
    "NOT_TEXT_PART": CodeMeaning(
        "A part of a turn's content that is not text, such as an image.", "Only text can be learned: remove the part."
    ),
    "BAD_TOOLS": CodeMeaning(
        "`tools` is not a list of functions with names.",
        'Write [{"type": "function", "function": {"name": ..., "parameters": ...}}].',
    ),
    "BAD_TOOL_CALL": CodeMeaning(
        "A tool call without id or name, with arguments that are not a JSON object, or in a turn that cannot have it.",
        'Write {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}} in an assistant turn.',
    ),
    "TOOL_WITHOUT_CALL": CodeMeaning(
        "A tool turn that answers no call of the assistant turn before it, or one already answered.",
        "Give the tool turn the `tool_call_id` of that call.",
    ),
    "BAD_WEIGHT": CodeMeaning(
        "`weight` is not 0 or 1, or is 1 in a turn that is not the assistant's.",
        "Use 1 to learn an assistant turn and 0 to leave it out.",
    ),
    "NOTHING_TO_LEARN": CodeMeaning(
        "Every assistant turn has weight 0.", "Give one of them weight 1, or remove the row."
    ),
}

# Said once each, with the first line and the number of rows.
WARNINGS: dict[str, CodeMeaning] = {
    "BYTE_ORDER_MARK": CodeMeaning("The file starts with a byte order mark, which was skipped.", "Nothing to do."),
    "BLANK_LINES": CodeMeaning("Blank lines, which were skipped; line numbers count them.", "Nothing to do."),
    "DUPLICATE_ROWS": CodeMeaning(
        "Rows equal to an earlier one; each counts in training.", "Keep them, or say --duplicates drop."
    ),
    "NEAR_DUPLICATES": CodeMeaning(
        "Rows equal to an earlier one but for upper case and white space; an estimate over the first 100,000 rows.",
        "Keep one of each, or let them be: on both sides of the split they make validation look better than it is.",
    ),
    "PROMPT_REPEATED": CodeMeaning(
        "Rows with the prompt of an earlier row and another completion: the model learns a mixture of the answers.",
        "Keep one answer for each prompt if there is one right answer; let them be if variety is meant.",
    ),
    "EXTRA_COLUMNS": CodeMeaning("Fields that training does not use.", "Nothing to do."),
    "EMPTY_PROMPT": CodeMeaning(
        "Prompts that are empty or only white space: the model learns to speak unasked.",
        "Remove the rows if that is not meant.",
    ),
    "BIDI_CONTROLS": CodeMeaning(
        "Text with bidirectional control characters, which can make it look different from what it is.",
        "Look at the rows; remove the characters if they are not meant.",
    ),
    "ZERO_WIDTH": CodeMeaning(
        "Text with invisible characters (zero-width space, word joiner, byte order mark).",
        "Remove them if they are not meant.",
    ),
    "REPLACEMENT_CHARACTERS": CodeMeaning(
        "Text with U+FFFD, left by a wrong conversion: characters are lost.", "Convert the source anew."
    ),
    "NONCHARACTERS": CodeMeaning(
        "Text with code points that are no characters, or private ones.", "Remove them if they are not meant."
    ),
    "CRLF_IN_FIELDS": CodeMeaning(
        "Fields of a CSV file with CRLF line breaks, which are learned as they are.",
        "Write the file with LF if the model should not learn them.",
    ),
}

ERRORS: dict[str, CodeMeaning] = {**FILE_ERRORS, **LINE_ERRORS, **ROW_ERRORS}
_WARNING_TEXT = {
    "BYTE_ORDER_MARK": "The file starts with a byte order mark (U+FEFF), which was skipped.",
    "BLANK_LINES": "{rows} blank {lines} skipped, the first here.",
    "DUPLICATE_ROWS": "{rows} {rows_are} equal to an earlier row; the first is here{detail}.",
    "NEAR_DUPLICATES": "{rows} {rows_are} equal to an earlier row but for case and white space; the first is here"
    "{detail}.",
    "PROMPT_REPEATED": "{rows} {rows_have} the prompt of an earlier row and another completion; the first is here"
    "{detail}.",
    "EXTRA_COLUMNS": "{rows} {rows_have} fields that training does not use: {detail}; the first is here.",
    "EMPTY_PROMPT": "{rows} {rows_have} an empty prompt; the first is here.",
    "BIDI_CONTROLS": "{rows} {rows_have} bidirectional control characters in the text; the first is here ({detail}).",
    "ZERO_WIDTH": "{rows} {rows_have} invisible characters in the text; the first is here ({detail}).",
    "REPLACEMENT_CHARACTERS": "{rows} {rows_have} the replacement character in the text; the first is here ({detail}).",
    "NONCHARACTERS": "{rows} {rows_have} noncharacters or private characters; the first is here ({detail}).",
    "CRLF_IN_FIELDS": "{rows} {rows_have} CRLF line breaks inside fields, kept as they are; the first is here.",
}


class Fault(Exception):
    """One error at one place of a file. Which faults end the reading, the readers know.

    line: 1-based, where the one who raises knows it; else the reader that lists the fault does. column: 1-based, in
    characters. path: keys and indexes from the row to the value at fault, for readers that can find its column;
    `at_key` if the key itself is meant.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        line: int | None = None,
        column: int | None = None,
        path: tuple[str | int, ...] = (),
        hint: str | None = None,
        at_key: bool = False,
    ) -> None:
        super().__init__(message)
        assert code in ERRORS, code
        self.code = code
        self.message = message
        self.line = line
        self.column = column
        self.path = path
        self.hint = hint or ERRORS[code].way_out
        self.at_key = at_key


@dataclass(slots=True)
class _Counted:
    line: int | None
    rows: int = 0
    detail: str = ""
    names: dict[str, None] = field(default_factory=dict[str, None])


class Findings:
    """Collects what a check finds: all are counted, the first 100 errors kept; warnings are one a code."""

    def __init__(self) -> None:
        self.errors: list[Finding] = []
        self.num_errors = 0
        self._counted: dict[str, _Counted] = {}

    @property
    def has_room(self) -> bool:
        """False once another error would only be counted, so that its place need not be found."""
        return len(self.errors) < MAX_LISTED_FINDINGS

    def add_error(self, fault: Fault, *, line: int | None = None, column: int | None = None) -> None:
        self.num_errors += 1
        if self.has_room:
            self.errors.append(
                Finding(
                    line=fault.line if line is None else line,
                    column=fault.column if column is None else column,
                    code=fault.code,
                    message=fault.message,
                    hint=fault.hint,
                )
            )

    def count_error(self) -> None:
        """An error that is not listed any more."""
        assert not self.has_room
        self.num_errors += 1

    def warn(self, code: str, *, line: int | None, rows: int = 1, detail: str = "", names: Iterable[str] = ()) -> None:
        """Count `rows` more rows for a warning; the first call decides its line and detail."""
        counted = self._counted.get(code)
        if counted is None:
            assert code in WARNINGS, code
            counted = self._counted[code] = _Counted(line, detail=detail)
        counted.rows += rows
        for name in names:
            if len(counted.names) <= MAX_NAMES:
                counted.names[name] = None

    @property
    def warnings(self) -> list[Finding]:
        found = [
            Finding(
                line=counted.line,
                column=None,
                code=code,
                message=_warning_text(code, counted),
                hint=WARNINGS[code].way_out,
            )
            for code, counted in self._counted.items()
        ]
        return sorted(found, key=lambda finding: (finding.line or 0, finding.code))

    @property
    def num_warnings(self) -> int:
        return len(self._counted)


def _warning_text(code: str, counted: _Counted) -> str:
    one = counted.rows == 1
    return _WARNING_TEXT[code].format(
        rows=f"{counted.rows:,}",
        lines="line was" if one else "lines were",
        rows_are="row is" if one else "rows are",
        rows_have="row has" if one else "rows have",
        detail=names_shown(counted.names) if counted.names else counted.detail,
    )


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Text for a message: control, bidirectional, invisible and unpaired characters escaped, cut to `limit`."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(ch if ch.isprintable() else _escaped(ch) for ch in cut)


def _escaped(ch: str) -> str:
    code = ord(ch)
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(ch) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def names_shown(names: Iterable[str]) -> str:
    """`"a", "b" and more`: columns of a file in a message."""
    listed = list(names)
    text = ", ".join(f'"{shown(name, 40)}"' for name in listed[:MAX_NAMES])
    return text + (" and more" if len(listed) > MAX_NAMES else "")


def code_point(ch: str) -> str:
    return f"U+{ord(ch):04X} {unicodedata.name(ch, '')}".rstrip()


def near_names(wanted: str, names: Iterable[str]) -> str:
    """A sentence on columns that look like `wanted`, with the code points that make the difference; else empty."""
    listed = list(names)
    for name in listed:
        odd = [ch for ch in name if not ch.isascii()]
        if odd and len(name) - len(odd) >= 2 and _looks_like(name, wanted):
            points = ", ".join(code_point(ch) for ch in dict.fromkeys(odd))
            return f'The column "{shown(name, 40)}" only looks like "{wanted}": it holds {points}. Rename it.'
    padded = next((name for name in listed if name.strip() == wanted), None)
    if padded is not None:
        return (
            f'The column "{shown(padded, 40)}" has white space around its name. Take it out, or name it in quotes: '
            f"--columns '{wanted}=\"{shown(padded, 40)}\"'."
        )
    folded = {name.strip().casefold(): name for name in reversed(listed)}
    close = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.7)
    return f'Did you mean "{shown(folded[close[0]], 40)}"?' if close else ""


def _looks_like(name: str, wanted: str) -> bool:
    """True if `name` without its non-ASCII characters is `wanted` with as many holes, or with nothing missing."""
    ascii_part = "".join(ch for ch in name if ch.isascii())
    if ascii_part == wanted:  # invisible characters were added
        return True
    return len(name) == len(wanted) and all(
        ours == theirs for ours, theirs in zip(wanted, name, strict=True) if theirs.isascii()
    )
