"""Parsed objects to `Row`s: kinds, columns, and what a row must hold, the same for every file format.

In: objects with line numbers, from the readers of JSONL, CSV and Parquet. Out: rows (or their hashes alone),
`Fault`s for rows that cannot be used, counted warnings for what should be known. No file is read here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

from tunesmith.data.characters import has_odd_utf8, odd_characters
from tunesmith.data.conversation import (
    JsonObject,
    Message,
    canonical_messages,
    read_messages,
    read_tools,
    texts_of,
    type_name,
)
from tunesmith.data.findings import Fault, Findings, code_point, names_shown, near_names, shown
from tunesmith.data.likeness import LikenessFinder
from tunesmith.errors import UsageFault
from tunesmith.spec.datasets import MAX_DEPTH, MAX_KEYS, RowKind

OUR_COLUMNS = ("prompt", "completion", "messages", "tools")
HASH_BYTES = 16
_KIND_SHOWN = {RowKind.PROMPT_COMPLETION: "prompt and completion", RowKind.MESSAGES: "messages"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as training sees it. `line`: its first physical line (in Parquet its number), from 1.

    prompt and completion are empty in a row of messages, messages and tools in one of prompt and completion.
    content_hash: 16 bytes, equal for rows that training cannot tell apart, whatever file they stand in.
    """

    line: int
    kind: RowKind
    prompt: str
    completion: str
    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...]
    content_hash: bytes


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises UsageFault for a mapping that no file could fit."""
    for ours, theirs in columns.items():
        if ours not in OUR_COLUMNS:
            raise UsageFault(
                "UNKNOWN_COLUMN",
                f'--columns maps "{shown(ours, 40)}"; columns are {", ".join(OUR_COLUMNS)}.',
                field="columns",
                hint="Write --columns prompt=COLUMN,completion=COLUMN with the file's names behind the equals signs.",
            )
        if not theirs:
            raise UsageFault(
                "EMPTY_COLUMN", f"--columns maps {ours} to nothing.", field="columns", hint=f"Write {ours}=COLUMN."
            )
    if {"messages", "tools"} & columns.keys() and {"prompt", "completion"} & columns.keys():
        raise UsageFault(
            "COLUMNS_OF_TWO_KINDS",
            "--columns maps messages and also prompt or completion; a dataset is of one kind.",
            field="columns",
            hint="Map either prompt and completion, or messages.",
        )
    names = [columns.get(ours, ours) for ours in ("prompt", "completion")]
    if names[0] == names[1]:
        raise UsageFault(
            "SAME_COLUMN_TWICE",
            f'--columns makes "{shown(names[0], 40)}" the prompt and the completion.',
            field="columns",
            hint="Name two different columns.",
        )


class RowMaker:
    """Makes rows of one file and remembers its kind. Rows, lines and hashes gather until they are taken."""

    def __init__(self, columns: Mapping[str, str], *, findings: Findings, keeps_rows: bool) -> None:
        check_columns(columns)
        self.findings = findings
        self.prompt_column = columns.get("prompt", "prompt")
        self.completion_column = columns.get("completion", "completion")
        self.messages_column = columns.get("messages", "messages")
        self.tools_column = columns.get("tools", "tools")
        self.kind: RowKind | None = None
        self.num_rows = 0
        self.rows: list[Row] = []
        self.lines: list[int] = []
        self.hashes: list[bytes] = []
        self._keeps_rows = keeps_rows
        self._mapped = set(columns.values())
        self._chosen: RowKind | None = None
        if columns:
            is_messages = "messages" in columns or "tools" in columns
            self._chosen = RowKind.MESSAGES if is_messages else RowKind.PROMPT_COMPLETION
        self._kind_line = 0
        self._told_mixed = False
        self._likeness = LikenessFinder()
        self.takes_pairs = False  # the file is known to be one of prompt and completion
        self.looks_close = True  # a reader that has looked at a whole stretch of the file may turn this off

    def clear(self) -> None:
        """Forget the rows, lines and hashes that were taken."""
        self.rows.clear()
        self.lines.clear()
        self.hashes.clear()

    def used_columns(self, names: Collection[str], kind: RowKind) -> list[str]:
        """Which of a table's columns training reads."""
        wanted = (
            (self.prompt_column, self.completion_column)
            if kind is RowKind.PROMPT_COMPLETION
            else (self.messages_column, self.tools_column)
        )
        return [name for name in wanted if name in names]

    def may_keep_numbers(self, value: JsonObject) -> bool:
        """True if numbers in the row can reach training: within tools and the arguments of their calls."""
        return self.messages_column in value

    def kind_of(self, names: Collection[str]) -> RowKind:
        """The kind of a row or table with these columns, all that it needs being there. Raises Fault."""
        has_pair = self.prompt_column in names and self.completion_column in names
        has_half = self.prompt_column in names or self.completion_column in names
        has_messages = self.messages_column in names
        kind = self._chosen
        if kind is not None and self.kind is not None and self._is_other_kind(kind, names):
            return RowKind.MESSAGES if kind is RowKind.PROMPT_COMPLETION else RowKind.PROMPT_COMPLETION
        if kind is None and has_pair and has_messages:
            if self.kind is None:
                raise Fault(
                    "TWO_KINDS_IN_A_ROW",
                    f'The row has "{self.prompt_column}" and "{self.completion_column}", and "{self.messages_column}".',
                )
            kind = self.kind
        if kind is None and has_messages:
            kind = RowKind.MESSAGES
        elif kind is None and has_half:
            kind = RowKind.PROMPT_COMPLETION
        if kind is None:
            raise self._no_kind(names)
        needed = (
            (self.messages_column, *((self.tools_column,) if self.tools_column in self._mapped else ()))
            if kind is RowKind.MESSAGES
            else (self.prompt_column, self.completion_column)
        )
        for name in needed:
            if name not in names:
                raise _missing(name, names)
        return kind

    def _is_other_kind(self, kind: RowKind, names: Collection[str]) -> bool:
        """With --columns: a row without any mapped column that is plainly of the other kind."""
        if self._mapped & set(names):
            return False
        return "messages" in names if kind is RowKind.PROMPT_COMPLETION else {"prompt", "completion"} <= set(names)

    def _no_kind(self, names: Collection[str]) -> Fault:
        if "conversations" in names:
            return Fault(
                "SHAREGPT", 'The row has "conversations" as ShareGPT writes them, which is not supported.',
                path=("conversations",), at_key=True,
            )  # fmt: skip
        if not names:
            return Fault("NO_KNOWN_COLUMN", "The row is an empty object.")
        guess = _guessed_mapping(names)
        near = [near_names(ours, names) for ours in OUR_COLUMNS[:3]] if not guess else []
        hints = [*dict.fromkeys(text for text in near if text), guess or _how_to_map(names)]
        return Fault(
            "NO_KNOWN_COLUMN",
            f"The row has neither prompt and completion nor messages; it has {names_shown(names)}.",
            hint=" ".join(hints),
        )

    def add_object(self, value: JsonObject, *, line: int) -> None:
        """Make a row of a parsed object. Raises Fault with the path to what is wrong with it."""
        try:
            kind = self.kind_of(value)
        except Fault as fault:
            if fault.code == "NO_KNOWN_COLUMN":
                fault.hint = _unpacking_hint(value) or fault.hint
            raise
        if self.kind is None:
            self.kind = kind
            self._kind_line = line
            self.takes_pairs = kind is RowKind.PROMPT_COMPLETION
        elif kind is not self.kind:
            self._tell_mixed(kind)
            return
        if kind is RowKind.PROMPT_COMPLETION:
            prompt = self._text(value, self.prompt_column)
            completion = self._text(value, self.completion_column)
            self.add_pair(prompt, completion, line=line)
            extra = len(value) - 2
            used = (self.prompt_column, self.completion_column)
        else:
            extra_keys: dict[str, None] = {}
            self._add_messages(value, line=line, extra_keys=extra_keys)
            extra = len(value) - 1 - (self.tools_column in value) + len(extra_keys)
            used = (self.messages_column, self.tools_column)
            if extra_keys:
                value = {**value, **extra_keys}
        if extra:
            self.findings.warn("EXTRA_COLUMNS", line=line, names=(name for name in value if name not in used))

    def _tell_mixed(self, kind: RowKind) -> None:
        """Once for the file; later rows of the second kind are left out without a word of their own."""
        if self._told_mixed:
            return
        self._told_mixed = True
        assert self.kind is not None
        raise Fault(
            "MIXED_KINDS",
            f"This row has {_KIND_SHOWN[kind]}; line {self._kind_line}, the first row, has {_KIND_SHOWN[self.kind]}.",
        )

    def _text(self, value: JsonObject, name: str) -> str:
        text = value[name]
        if isinstance(text, str):
            return text
        hint = None
        if isinstance(text, list):
            hint = "A conversation goes into one column `messages`, the answer as its last turn."
        raise Fault(
            "WRONG_TYPE", f'"{shown(name, 40)}" must be a text, found {type_name(text)}.', path=(name,), hint=hint
        )

    def add_pair(self, prompt: str, completion: str, *, line: int) -> None:
        """Make a row of prompt and completion. Raises Fault if there is nothing to learn."""
        if not completion or completion.isspace():
            name = shown(self.completion_column, 40)
            raise Fault(
                "EMPTY_COMPLETION",
                f'"{name}" is empty but for white space.' if completion else f'"{name}" is empty.',
                path=(self.completion_column,),
            )
        if not prompt or prompt.isspace():
            self.findings.warn("EMPTY_PROMPT", line=line)
        # the length keeps ("a", "bc") and ("ab", "c") apart
        text = f"{len(prompt)}:{prompt}{completion}"
        data = text.encode()
        if self.looks_close and len(data) != len(text):
            self._look_at(data, line=line)
        if not self._likeness.is_full:
            self._likeness.add(prompt, completion, line=line)
        content_hash = sha256(data).digest()[:HASH_BYTES]
        self.num_rows += 1
        self.lines.append(line)
        self.hashes.append(content_hash)
        if self._keeps_rows:
            self.rows.append(
                Row(
                    line=line,
                    kind=RowKind.PROMPT_COMPLETION,
                    prompt=prompt,
                    completion=completion,
                    messages=(),
                    tools=(),
                    content_hash=content_hash,
                )
            )

    def _add_messages(self, value: JsonObject, *, line: int, extra_keys: dict[str, None]) -> None:
        messages = read_messages(value[self.messages_column], column=self.messages_column, extra_keys=extra_keys)
        tools = read_tools(value.get(self.tools_column), column=self.tools_column)
        text = texts_of(messages)
        if self.looks_close and not text.isascii():
            self._look_at(text.encode(), line=line)
        if not self._likeness.is_full:
            before = texts_of(messages[:-1]) + (str(tools) if tools else "")
            self._likeness.add(before, texts_of(messages[-1:]), line=line)
        content_hash = sha256(canonical_messages(messages, tools)).digest()[:HASH_BYTES]
        self.num_rows += 1
        self.lines.append(line)
        self.hashes.append(content_hash)
        if self._keeps_rows:
            self.rows.append(
                Row(
                    line=line,
                    kind=RowKind.MESSAGES,
                    prompt="",
                    completion="",
                    messages=messages,
                    tools=tools,
                    content_hash=content_hash,
                )
            )

    def tell_likeness(self) -> None:
        """At the end of the file: warn of rows that are nearly equal, and of prompts with several answers."""
        found = self._likeness
        where = f"; only the first {found.num_rows:,} rows were compared" if found.is_full else ""
        for code, like in (("NEAR_DUPLICATES", found.near), ("PROMPT_REPEATED", found.prompts)):
            if like.rows:
                self.findings.warn(code, line=like.line, rows=like.rows, detail=f" (like line {like.of}){where}")

    def _look_at(self, data: bytes, *, line: int) -> None:
        """Count characters that a person should know of."""
        if has_odd_utf8(data):
            for code, ch in odd_characters(data.decode()):
                self.findings.warn(code, line=line, detail=code_point(ch))


# What other datasets call a prompt and a completion, the likelier names first.
_PROMPT_NAMES = ("question", "instruction", "input", "dialogue", "dialog", "query", "document", "article", "source")
_COMPLETION_NAMES = ("answer", "output", "response", "summary", "target", "label", "chosen", "highlights")


def _guessed_mapping(names: Collection[str]) -> str:
    """The --columns that would do, guessed from the names; else empty."""
    folded = {name.strip().casefold(): name for name in reversed(list(names))}
    prompt = next((folded[name] for name in ("prompt", *_PROMPT_NAMES) if name in folded), None)
    completion = next((folded[name] for name in ("completion", *_COMPLETION_NAMES) if name in folded), None)
    if prompt is None or completion is None:
        return ""
    mapping = f"prompt={_written(prompt)},completion={_written(completion)}"
    guess = f"Say which columns to use, perhaps --columns {shlex.quote(mapping)}."
    if prompt == "instruction" and "input" in folded:
        guess += " Join `input` to the instruction first where it matters: one column is the prompt."
    return guess


def _written(name: str) -> str:
    """A column's name as --columns takes it."""
    is_plain = name == name.strip() and not {",", '"'} & set(name)
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def _how_to_map(names: Collection[str]) -> str:
    split = "" if len(names) > 1 else " A text that holds both has to be split into two columns first."
    return f"Say which columns to use: --columns prompt=COLUMN,completion=COLUMN.{split}"


def _unpacking_hint(value: JsonObject) -> str:
    """For one object around all rows, as in {"data": [{...}, ...]}: the command that takes them out of it."""
    lists = [name for name, member in value.items() if isinstance(member, list) and member]
    if len(lists) != 1 or not all(isinstance(row, dict) for row in value[lists[0]]):
        return ""
    name = json.dumps(lists[0])
    return f"If the rows stand in {name}, take them out: `jq -c '.[{name}][]' FILE > rows.jsonl`."


def _missing(name: str, names: Collection[str]) -> Fault:
    there = f"it has {names_shown(names)}" if names else "it has none"
    near = near_names(name, [other for other in names if other not in OUR_COLUMNS])
    hint = near or f"Add it, or say which column it is: --columns {_ours(name)}=COLUMN."
    return Fault("MISSING_COLUMN", f'There is no column "{shown(name, 40)}"; {there}.', hint=hint)


def _ours(name: str) -> str:
    return name if name in OUR_COLUMNS else "prompt"


def count_texts(value: Any, *, depth: int = 0, has_nul: bool = True) -> int:
    """Keys and texts in a parsed value, the limits checked on the way. has_nul: look for NULs as well."""
    if type(value) is str:
        if has_nul and "\0" in value:
            raise Fault("NUL_CHARACTER", r"The text holds a NUL, written as \u0000.")
        return 1
    if type(value) is dict:
        members = cast("JsonObject", value)
        if depth >= MAX_DEPTH:
            raise Fault("TOO_DEEP", f"Objects and lists are nested deeper than {MAX_DEPTH}.")
        if len(members) > MAX_KEYS:
            raise Fault("TOO_MANY_KEYS", f"An object has more than {MAX_KEYS:,} keys.")
        if has_nul and any("\0" in key for key in members):
            raise Fault("NUL_CHARACTER", r"A key holds a NUL, written as \u0000.")
        return len(members) + sum(
            count_texts(member, depth=depth + 1, has_nul=has_nul) for member in members.values() if member is not None
        )
    if type(value) is list:
        if depth >= MAX_DEPTH:
            raise Fault("TOO_DEEP", f"Objects and lists are nested deeper than {MAX_DEPTH}.")
        return sum(count_texts(member, depth=depth + 1, has_nul=has_nul) for member in cast("list[Any]", value))
    return 0
