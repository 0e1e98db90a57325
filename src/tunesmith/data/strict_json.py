"""Strict JSON in one pass with positions: names the first fault of a text and its column.

In: one line as text. Out: its value, or a `Fault`. It refuses what Python's json lets pass: duplicate keys, NaN,
lone surrogates, NULs, numbers out of range, deep nesting. It is exact and slow; `jsonl` asks it only about lines that
orjson or a count of quotes has found wrong.
"""

from __future__ import annotations

import re
from math import isinf
from typing import Any

from tunesmith.data.findings import Fault, code_point, shown
from tunesmith.spec.datasets import MAX_DEPTH, MAX_KEYS

JsonPath = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_LIKE = re.compile(r"[+-]?[0-9.][0-9a-zA-Z_.+-]*")
_WORD = re.compile(r"-?[A-Za-z_$][A-Za-z0-9_$]*")
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_NOT_FINITE = {"NaN", "-NaN", "Infinity", "-Infinity", "nan", "inf", "-inf"}
_QUOTES = "'`‘’“”«»"


def parse_strict(text: str) -> Any:
    """The value of a JSON text. Integers stay exact. Raises Fault with the column of the first fault."""
    return _Scanner(text).whole()


def column_of(text: str, path: JsonPath, *, at_key: bool = False) -> int | None:
    """1-based column of the value (or key) at `path`, or of the nearest one around it that exists."""
    scanner = _Scanner(text)
    scanner.whole()
    places = scanner.keys if at_key else scanner.values
    while path and path not in places:
        path = path[:-1]
        places = scanner.values
    position = places.get(path)
    return None if position is None else position + 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.values: dict[JsonPath, int] = {}
        self.keys: dict[JsonPath, int] = {}

    def whole(self) -> Any:
        value = self._value((), depth=0)
        self._space()
        if self.at < len(self.text):
            raise self._trailing()
        return value

    def _space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _fault(self, code: str, message: str, *, at: int | None = None, hint: str | None = None) -> Fault:
        return Fault(code, message, column=(self.at if at is None else at) + 1, hint=hint)

    def _value(self, path: JsonPath, *, depth: int) -> Any:
        self._space()
        start = self.at
        self.values[path] = start
        ch = self.text[start : start + 1]
        if ch == "{":
            return self._object(path, depth=depth + 1)
        if ch == "[":
            return self._list(path, depth=depth + 1)
        if ch == '"':
            return self._string()
        match = _NUMBER.match(self.text, start)
        if match and (match.end() == len(self.text) or not re.match(r"[0-9a-zA-Z_.+-]", self.text[match.end()])):
            return self._number(match)
        for word, value in _LITERALS.items():
            if self.text.startswith(word, start) and not self.text[start + len(word) : start + len(word) + 1].isalnum():
                self.at = start + len(word)
                return value
        raise self._not_a_value("a value")

    def _object(self, path: JsonPath, *, depth: int) -> dict[str, Any]:
        self._check_depth(depth)
        self.at += 1
        result: dict[str, Any] = {}
        self._space()
        if self.text.startswith("}", self.at):
            self.at += 1
            return result
        while True:
            self._space()
            start = self.at
            if not self.text.startswith('"', start):
                raise self._not_a_key(after_comma=bool(result))
            key = self._string()
            if key in result:
                raise self._fault("DUPLICATE_KEY", f'The key "{shown(key, 40)}" stands twice in one object.', at=start)
            self.keys[(*path, key)] = start
            self._space()
            if not self.text.startswith(":", self.at):
                raise self._expected('":" after the key')
            self.at += 1
            result[key] = self._value((*path, key), depth=depth)
            if len(result) > MAX_KEYS:
                raise self._fault("TOO_MANY_KEYS", f"An object has more than {MAX_KEYS:,} keys.", at=start)
            if self._closes("}"):
                return result

    def _list(self, path: JsonPath, *, depth: int) -> list[Any]:
        self._check_depth(depth)
        self.at += 1
        result: list[Any] = []
        self._space()
        if self.text.startswith("]", self.at):
            self.at += 1
            return result
        while True:
            self._space()
            if result and self.text.startswith("]", self.at):
                raise self._trailing_comma()
            result.append(self._value((*path, len(result)), depth=depth))
            if self._closes("]"):
                return result

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._fault("TOO_DEEP", f"Objects and lists are nested deeper than {MAX_DEPTH}.")

    def _closes(self, bracket: str) -> bool:
        """After a member: True at the closing bracket, False behind a comma, else a fault."""
        self._space()
        ch = self.text[self.at : self.at + 1]
        if ch != bracket and ch != ",":
            raise self._expected(f'"," or "{bracket}"')
        self.at += 1
        return ch == bracket

    def _number(self, match: re.Match[str]) -> int | float:
        literal = match.group()
        number = float(literal)
        if isinf(number):
            size = f"{len(literal):,} characters long" if len(literal) > 30 else literal
            raise self._fault("NUMBER_TOO_LARGE", f"A number is beyond the range of a 64-bit float ({size}).")
        self.at = match.end()
        return number if match.group(1) or match.group(2) else int(literal)

    def _string(self) -> str:
        """A text at its opening quote."""
        opened = self.at
        self.at += 1
        parts: list[str] = []
        while True:
            match = _PLAIN.match(self.text, self.at)
            assert match is not None
            parts.append(match.group())
            self.at = match.end()
            ch = self.text[self.at : self.at + 1]
            if ch == '"':
                self.at += 1
                return "".join(parts)
            if ch == "":
                raise self._fault("ENDS_EARLY", f"The line ends inside the text opened in column {opened + 1}.")
            if ch != "\\":
                raise self._control(ch)
            parts.append(self._escape())

    def _escape(self) -> str:
        start = self.at
        letter = self.text[start + 1 : start + 2]
        if letter == "":
            self.at += 1
            raise self._fault("ENDS_EARLY", "The line ends inside an escape.")
        if letter in _ESCAPES:
            self.at += 2
            return _ESCAPES[letter]
        if letter != "u":
            raise self._fault("BAD_ESCAPE", rf"JSON has no escape \{shown(letter)}.")
        code = self._hex(start)
        if code == 0:
            raise self._fault("NUL_CHARACTER", r"The text holds a NUL, written as \u0000.", at=start)
        if 0xD800 <= code < 0xDC00 and self.text.startswith("\\u", self.at):
            low = self._hex(self.at)
            if 0xDC00 <= low < 0xE000:
                return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))
        if 0xD800 <= code < 0xE000:
            which = "high" if code < 0xDC00 else "low"
            raise self._fault("LONE_SURROGATE", f"A {which} surrogate stands alone: \\u{code:04x}.", at=start)
        return chr(code)

    def _hex(self, start: int) -> int:
        match = _HEX.match(self.text, start + 2)
        if match is None:
            found = self.text[start : start + 6]
            if start + 6 > len(self.text) and re.fullmatch(r"[0-9a-fA-F]*", self.text[start + 2 :]):
                self.at = len(self.text)
                raise self._fault("ENDS_EARLY", "The line ends inside an escape.")
            raise self._fault("BAD_ESCAPE", rf"\u needs four hexadecimal digits, found {shown(found)}.", at=start)
        self.at = start + 6
        return int(match.group(), 16)

    # What stands where something else was expected.

    def _control(self, ch: str) -> Fault:
        if ch == "\0":
            return self._fault("NUL_CHARACTER", "The line holds a raw NUL byte.")
        return self._fault("CONTROL_CHARACTER", f"A raw control character {shown(ch)} ({code_point(ch)}) in a text.")

    def _expected(self, what: str) -> Fault:
        """A fault for what stands here in the place of `what`."""
        rest = self.text[self.at :]
        ch = rest[:1]
        if ch == "":
            return self._fault("ENDS_EARLY", f"The line ends where {what} is expected.")
        if ch == "\0":
            return self._control(ch)
        if rest.startswith(("//", "/*")) or ch == "#":
            return self._fault("COMMENT", "A comment; JSON has none.")
        if not ch.isprintable() or not ch.isascii():
            return self._fault("UNEXPECTED", f"Expected {what}, found {code_point(ch)}.")
        return self._fault("UNEXPECTED", f"Expected {what}, found {shown(rest, 20)}")

    def _not_a_value(self, what: str) -> Fault:
        rest = self.text[self.at :]
        ch = rest[:1]
        if ch and ch in _QUOTES:
            return self._fault("WRONG_QUOTES", f"Texts stand in double quotes, found {ch} ({code_point(ch)}).")
        word = _WORD.match(rest)
        if word is not None:
            return self._word(word.group(), what)
        number = _NUMBER_LIKE.match(rest)
        if number is not None:
            return self._fault("BAD_NUMBER", f"{shown(number.group(), 20)} is not a number as JSON writes it.")
        return self._expected(what)

    def _word(self, word: str, what: str) -> Fault:
        if word in _PYTHON:
            return self._fault("PYTHON_LITERAL", f"{word} is Python; JSON writes {_PYTHON[word]}.")
        if word in _NOT_FINITE:
            return self._fault("NOT_FINITE", f"{word} is not a number that JSON has.")
        ends_here = self.at + len(word) == len(self.text)
        if ends_here and any(literal.startswith(word) for literal in _LITERALS):
            return self._fault("ENDS_EARLY", f"The line ends inside {shown(word)}.", at=len(self.text))
        return self._fault("UNEXPECTED", f"Expected {what}, found {shown(word, 20)}.")

    def _not_a_key(self, *, after_comma: bool) -> Fault:
        rest = self.text[self.at :]
        if after_comma and rest.startswith("}"):
            return self._trailing_comma()
        if rest[:1] and rest[0] in _QUOTES:
            return self._not_a_value("a key")
        word = _WORD.match(rest)
        if word is not None:
            return self._fault("UNQUOTED_KEY", f"The key {shown(word.group(), 40)} has no quotes.")
        return self._expected('a key in quotes or "}"')

    def _trailing_comma(self) -> Fault:
        return self._fault("TRAILING_COMMA", "A comma stands before the closing bracket.")

    def _trailing(self) -> Fault:
        rest = self.text[self.at :]
        if rest[0] in "{[":
            hint = None
            if "\r" in self.text[: self.at].rstrip("\n")[-3:]:
                hint = "The lines end in CR alone; rows are split at LF. Convert the line ends: `tr '\\r' '\\n'`."
            return self._fault("TWO_ROWS_ON_A_LINE", "A second row starts on the same line.", hint=hint)
        if rest[0] == "\0" or rest.startswith(("//", "/*", "#")):
            return self._expected("the end of the line")
        return self._fault("TEXT_AFTER_ROW", f"Text after the end of the row: {shown(rest, 20)}")
