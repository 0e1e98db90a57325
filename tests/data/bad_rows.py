"""Files with something wrong in them, and what the reader must say: the whole list in one place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tunesmith.spec.datasets import MAX_DEPTH, MAX_KEYS, MAX_ROW_BYTES

GOOD = b'{"prompt": "p", "completion": "c"}\n'


class Case(NamedTuple):
    """`found`: (line, column, code) of each error, in order. `says`: what the first one's message or hint holds."""

    id: str
    data: bytes
    found: Sequence[tuple[int | None, int | None, str]]
    rows: int = 0
    says: str = ""
    name: str = "rows.jsonl"
    columns: dict[str, str] = {}  # noqa: RUF012 - never changed


def row(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def chat(*turns: dict[str, Any], **fields: Any) -> bytes:
    return row(messages=list(turns), **fields)


def turn(role: Any, content: Any = "text", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def call(call_id: Any = "a1", name: Any = "add", arguments: Any = '{"x": 1}') -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


USER, ANSWER = turn("user"), turn("assistant")


def one(code: str, column: int | None = None, line: int | None = 1) -> list[tuple[int | None, int | None, str]]:
    return [(line, column, code)]


FILES = [
    Case("empty file", b"", one("EMPTY_FILE", line=None)),
    Case("only blank lines", b"\n  \n\r\n", one("EMPTY_FILE", line=None)),
    Case("only a mark", b"\xef\xbb\xbf", one("EMPTY_FILE", line=None)),
    Case("gzip", gzip.compress(GOOD), one("NOT_TEXT", line=None), says="gzip"),
    Case("zip", b"PK\x03\x04\x14\x00", one("NOT_TEXT", line=None), says="zip"),
    Case("zstd", b"\x28\xb5\x2f\xfd\x04\x00", one("NOT_TEXT", line=None), says="zstd"),
    Case("pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", one("NOT_TEXT", line=None), says="pickle"),
    Case("parquet named jsonl", b"PAR1\x15\x04", one("NOT_TEXT", line=None), says="Parquet"),
    Case("web page", b"<!DOCTYPE html>\n<html>", one("NOT_TEXT", line=None), says="web page"),
    Case("run of NULs", bytes(5000), one("NOT_TEXT", line=None), says="NUL"),
    Case("git lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", one("LFS_POINTER", line=None)),
    Case("text pickle", b"(lp0\n(dp1\nVprompt\n", one("NOT_TEXT", line=None), says="pickle"),
    Case("old pickle", b"]q\x00}q\x01.", one("NOT_TEXT", line=None), says="pickle"),
    Case("UTF-16 with a mark", GOOD.decode().encode("utf-16"), one("ENCODING", line=None), says="UTF-16"),
    Case("UTF-16 big-endian", (GOOD * 3).decode().encode("utf-16-be"), one("ENCODING", line=None), says="big-endian"),
    Case("UTF-16 little-endian", GOOD.decode().encode("utf-16-le"), one("ENCODING", line=None), says="little-endian"),
    Case("UTF-32 with a mark", GOOD.decode().encode("utf-32"), one("ENCODING", line=None), says="UTF-32"),
    Case("UTF-32 without a mark", GOOD.decode().encode("utf-32-le"), one("ENCODING", line=None), says="UTF-32"),
    Case("array on one line", b"[" + GOOD.strip() + b"]", one("JSON_ARRAY"), says="jq"),
    Case("array over lines", b"[\n  " + GOOD + b"]\n", one("JSON_ARRAY")),
    Case("empty array", b"[]", one("JSON_ARRAY")),
    Case("object over lines", b'{\n  "prompt": "p",\n  "completion": "c"\n}\n', one("JSON_SPREAD"), says="jq"),
    Case("csv named jsonl", b"prompt,completion\na,b\n", one("CSV_NAMED_JSONL"), says="prompt,completion"),
    Case("csv with semicolons", b'"prompt";"completion"\r\n"a";"b"\r\n', one("CSV_NAMED_JSONL")),
    Case("not parquet", GOOD, one("PARQUET_UNREADABLE", line=None), name="rows.parquet"),
    Case("broken parquet", b"PAR1 no table PAR1", one("PARQUET_UNREADABLE", line=None), name="rows.parquet"),
]

LINES = [
    Case("latin-1", b'{"prompt": "caf\xe9", "completion": "c"}\n', one("NOT_UTF8", 16), says="byte 16 of the line"),
    Case("latin-1 behind wide text", '{"prompt": "日本 '.encode() + b'\xfc"}\n', one("NOT_UTF8", 16), says="byte 20"),
    Case(
        "encoded surrogate",
        b'{"prompt": "\xed\xa0\x80", "completion": "c"}\n',
        one("NOT_UTF8", 13),
        says="half of a surrogate pair",
    ),
    Case("cut inside a character", GOOD + b'{"prompt": "\xe6\x97', one("TRUNCATED", 13, 2), 1, "inside a character"),
    Case("cut last line", GOOD + b'{"prompt": "p", "compl', one("TRUNCATED", 23, 2), 1, "22 bytes"),
    Case("cut inside a word", GOOD + b'{"prompt": tru', one("TRUNCATED", 15, 2), 1),
    Case("cut line in the middle", b'{"prompt": "p", "compl\n' + GOOD, one("ENDS_EARLY", 23), 1),
    Case("raw NUL", b'{"prompt": "a\x00", "completion": "c"}\n', one("NUL_CHARACTER", 14)),
    Case("raw NUL between rows", GOOD + b"\x00\n" + GOOD, one("NUL_CHARACTER", 1, 2), 2),
    Case("escaped NUL", rb'{"prompt": "a\u0000", "completion": "c"}', one("NUL_CHARACTER", 14)),
    Case("escaped NUL elsewhere", rb'{"prompt": "a", "completion": "c", "n": ["\u0000"]}', one("NUL_CHARACTER", 43)),
    Case("escaped NUL in a key", rb'{"prompt": "a", "completion": "c", "\u0000": 1}', one("NUL_CHARACTER", 37)),
    Case("too large", GOOD + row(prompt="p", completion="c" * MAX_ROW_BYTES) + GOOD, one("ROW_TOO_LARGE", 1, 2), 2),
    Case(
        "too deep",
        row(prompt="p", completion="c", x=json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)),
        one("TOO_DEEP", 72),
    ),
    Case("far too deep", b'{"prompt": ' + b"[" * 50_000, one("TOO_DEEP", 43)),
    Case(
        "too many keys",
        row(prompt="p", completion="c", **{f"k{i}": 1 for i in range(MAX_KEYS - 1)}),
        [(1, None, "TOO_MANY_KEYS")],
    ),
    Case("two objects", GOOD.strip() + b" " + GOOD, one("TWO_ROWS_ON_A_LINE", 36)),
    Case("CR alone", GOOD.strip() + b"\r" + GOOD.strip() + b"\r", one("TWO_ROWS_ON_A_LINE", 36), says="CR alone"),
    Case("text behind", GOOD.strip() + b" x\n" + GOOD, one("TEXT_AFTER_ROW", 36), 1),
    Case("comma behind", GOOD.strip() + b",\n" + GOOD, one("TEXT_AFTER_ROW", 35), 1),
    Case("key twice", b'{"prompt": "a", "completion": "c", "prompt": "b"}', one("DUPLICATE_KEY", 36), says='"prompt"'),
    Case("key twice, escaped", rb'{"prompt": "a", "completion": "c", "pr\u006fmpt": "b"}', one("DUPLICATE_KEY", 36)),
    Case(
        "key twice, hidden behind quotes",
        rb'{"prompt": "\u0022\u0022\u0022\u0022", "completion": "c", "prompt": "\u0022\u0022\u0022\u0022"}',
        one("DUPLICATE_KEY", 59),
    ),
    Case("key twice, numbers", b'{"prompt": 1, "prompt": "b", "completion": "c"}', one("DUPLICATE_KEY", 15)),
    Case("key twice, deep", b'{"prompt": "a", "completion": "c", "m": {"a": 1, "a": 2}}', one("DUPLICATE_KEY", 50)),
    Case("lone high surrogate", rb'{"prompt": "\ud83d", "completion": "c"}', one("LONE_SURROGATE", 13)),
    Case("lone low surrogate", rb'{"prompt": "x\ude00", "completion": "c"}', one("LONE_SURROGATE", 14)),
    Case("reversed pair", rb'{"prompt": "\ude00\ud83d", "completion": "c"}', one("LONE_SURROGATE", 13)),
    Case("NaN", b'{"prompt": "p", "completion": "c", "n": NaN}', one("NOT_FINITE", 41)),
    Case("-Infinity", b'{"prompt": "p", "completion": "c", "n": -Infinity}', one("NOT_FINITE", 41)),
    Case("1e400", b'{"prompt": "p", "completion": "c", "n": 1e400}', one("NUMBER_TOO_LARGE", 41), says="1e400"),
    Case("5,000 digits", b'{"prompt": "p", "completion": "c", "n": %b}' % (b"9" * 5000), one("NUMBER_TOO_LARGE", 41)),
    Case("leading zero", b'{"prompt": "p", "completion": "c", "n": 01}', one("BAD_NUMBER", 41)),
    Case("plus sign", b'{"prompt": "p", "completion": "c", "n": +1}', one("BAD_NUMBER", 41)),
    Case("single quotes", b"{'prompt': 'p', 'completion': 'c'}", one("WRONG_QUOTES", 2)),
    Case("curly quotes", "{“prompt”: “p”}".encode(), one("WRONG_QUOTES", 2), says="U+201C"),
    Case("python", b'{"prompt": "p", "completion": "c", "n": None}', one("PYTHON_LITERAL", 41), says="json.dumps"),
    Case("python true", b'{"prompt": True}', one("PYTHON_LITERAL", 12), says="true"),
    Case("comment", b'{"prompt": "p", // no\n' + GOOD, one("COMMENT", 17), 1),
    Case("comment line", GOOD + b"# rows\n", one("COMMENT", 1, 2), 1),
    Case("unquoted key", b'{prompt: "p"}', one("UNQUOTED_KEY", 2), says="prompt"),
    Case("trailing comma", b'{"prompt": "p", "completion": "c",}', one("TRAILING_COMMA", 35)),
    Case("trailing comma in a list", b'{"prompt": ["p",]}', one("TRAILING_COMMA", 17)),
    Case("raw tab", b'{"prompt": "a\tb", "completion": "c"}', one("CONTROL_CHARACTER", 14), says="U+0009"),
    Case("bad escape", rb'{"prompt": "C:\dir", "completion": "c"}', one("BAD_ESCAPE", 15)),
    Case("bad hex", rb'{"prompt": "\u12g4", "completion": "c"}', one("BAD_ESCAPE", 13)),
    Case("missing colon", b'{"prompt" "p"}', one("UNEXPECTED", 11)),
    Case("no-break space", '{"prompt":\u00a0"p"}'.encode(), one("UNEXPECTED", 11), says="NO-BREAK SPACE"),
    Case("mark in the middle", GOOD + b"\xef\xbb\xbf" + GOOD, one("UNEXPECTED", 1, 2), 1, "U+FEFF"),
    Case("plain text", b"hello world\n", one("UNEXPECTED", 1)),
    Case("a text", b'"hello"\n' + GOOD, one("NOT_AN_OBJECT", 1), 1, "a text"),
    Case("a number", b"12\n", one("NOT_AN_OBJECT", 1), says="a number"),
    Case("null", b"null\n", one("NOT_AN_OBJECT", 1), says="null"),
    Case("a boolean", b"true\n", one("NOT_AN_OBJECT", 1), says="a boolean"),
    Case("lists", b'["a"]\n["b"]\n', [(1, 1, "NOT_AN_OBJECT"), (2, 1, "NOT_AN_OBJECT")], says="a list"),
    Case("all are listed", b"x\n" + GOOD + b"{}\n", [(1, 1, "UNEXPECTED"), (3, 1, "NO_KNOWN_COLUMN")], 1),
]

ROWS = [
    Case("no prompt", row(completion="c"), one("MISSING_COLUMN", 1), says='"prompt"'),
    Case("no completion", row(prompt="p", completions="c"), one("MISSING_COLUMN", 1), says='mean "completions"'),
    Case("other case", row(prompt="p", Completion="c"), one("MISSING_COLUMN", 1), says='mean "Completion"'),
    Case("homoglyph", row(prompt="p", cоmpletion="c"), one("MISSING_COLUMN", 1), says="U+043E"),
    Case(
        "invisible in a key", row(**{"prompt": "p", "completion\u200b": "c"}), one("MISSING_COLUMN", 1), says="U+200B"
    ),
    Case("text only", row(text="t"), one("NO_KNOWN_COLUMN", 1), says='"text"'),
    Case("text only, the way out", row(text="t"), one("NO_KNOWN_COLUMN", 1), says="--columns prompt="),
    Case(
        "question and answer",
        row(question="q", answer="a"),
        one("NO_KNOWN_COLUMN", 1),
        says="--columns prompt=question,completion=answer",
    ),
    Case(
        "one object around the rows",
        row(version=1, data=[{"prompt": "a", "completion": "b"}]),
        one("NO_KNOWN_COLUMN", 1),
        says="""jq -c '.["data"][]'""",
    ),
    Case("capitals", row(Prompt="a", Completion="b"), one("NO_KNOWN_COLUMN", 1), says="prompt=Prompt,completion=Comp"),
    Case(
        "instruction with input",
        row(instruction="a", input="b", output="c"),
        one("NO_KNOWN_COLUMN", 1),
        says="Join `input` to the instruction",
    ),
    Case("sharegpt", row(conversations=[{"from": "human", "value": "x"}]), one("SHAREGPT", 2), says="human = user"),
    Case("number", row(prompt=3, completion="c"), one("WRONG_TYPE", 12), says="a number"),
    Case("null prompt", row(prompt=None, completion="c"), one("WRONG_TYPE", 12), says="null"),
    Case("list", row(prompt="p", completion=["c"]), one("WRONG_TYPE", 31), says="a list"),
    Case("object", row(prompt="p", completion={}), one("WRONG_TYPE", 31), says="an object"),
    Case("boolean", row(prompt="p", completion=True), one("WRONG_TYPE", 31), says="a boolean"),
    Case("empty completion", row(prompt="p", completion=""), one("EMPTY_COMPLETION", 31)),
    Case("blank completion", row(prompt="p", completion=" \n\u3000"), one("EMPTY_COMPLETION", 31), says="white space"),
    Case("mixed", GOOD + chat(USER, ANSWER) * 3 + GOOD, one("MIXED_KINDS", 1, 2), 2, "line 1"),
    Case("mixed the other way", b"\n" + chat(USER, ANSWER) + GOOD * 2, one("MIXED_KINDS", 1, 3), 1, "line 2"),
    Case("two kinds in a row", row(prompt="p", completion="c", messages=[]), one("TWO_KINDS_IN_A_ROW", 1)),
    Case("mapped, but absent", GOOD, one("MISSING_COLUMN", 1), says='"answer"', columns={"completion": "answer"}),
    Case("mapped messages absent", GOOD, one("MISSING_COLUMN", 1), says='"prompt"', columns={"messages": "talk"}),
]

CONVERSATIONS = [
    Case("messages no list", row(messages="hi"), one("WRONG_TYPE", 14), says="a list"),
    Case("a turn is text", row(messages=["hi"]), one("WRONG_TYPE", 15), says="messages[0]"),
    Case("no turns", chat(), one("NO_ASSISTANT", 14)),
    Case("no role", chat({"content": "x"}), one("MISSING_COLUMN", 15), says="role"),
    Case("sharegpt turns", chat({"from": "human", "value": "x"}), one("MISSING_COLUMN", 15), says="ShareGPT"),
    Case("role is a number", chat(turn(1)), one("WRONG_TYPE", 24), says="messages[0].role"),
    Case("unknown role", chat(turn("human"), ANSWER), one("UNKNOWN_ROLE", 24), says='Write "user"'),
    Case("role in capitals", chat(USER, turn("Assistant")), one("UNKNOWN_ROLE", 61), says='Write "assistant"'),
    Case("role from nowhere", chat(turn("narrator"), ANSWER), one("UNKNOWN_ROLE", 24), says="narrator"),
    Case("user twice", chat(USER, USER, ANSWER), one("ROLE_ORDER", 61)),
    Case("assistant twice", chat(USER, ANSWER, ANSWER), one("ROLE_ORDER", None)),
    Case("assistant first", chat(ANSWER, USER, ANSWER), one("ROLE_ORDER", 24)),
    Case("call not answered", chat(USER, turn("assistant", tool_calls=[call()]), USER, ANSWER), one("ROLE_ORDER")),
    Case("system late", chat(USER, turn("system"), ANSWER), one("SYSTEM_NOT_FIRST", 61)),
    Case("system twice", chat(turn("system"), turn("system"), USER, ANSWER), one("SYSTEM_TWICE", None)),
    Case("no assistant", chat(USER), one("NO_ASSISTANT", 14)),
    Case("user last", chat(USER, ANSWER, USER), one("LAST_NOT_ASSISTANT", None)),
    Case("empty content", chat(turn("user", ""), ANSWER), one("EMPTY_CONTENT", 43), says="messages[0].content"),
    Case("blank answer", chat(USER, turn("assistant", " ")), one("EMPTY_CONTENT", None), says="white space"),
    Case("no content", chat(USER, {"role": "assistant"}), one("MISSING_COLUMN", None), says="content"),
    Case("null content", chat(USER, turn("assistant", None)), one("WRONG_TYPE", None), says="null"),
    Case("content is a number", chat(turn("user", 5), ANSWER), one("WRONG_TYPE", 43)),
    Case("image", chat(turn("user", [{"type": "image_url", "image_url": {}}]), ANSWER), one("NOT_TEXT_PART", 44)),
    Case("part without text", chat(turn("user", [{"type": "text"}]), ANSWER), one("WRONG_TYPE", None)),
    Case("part is a text", chat(turn("user", ["x"]), ANSWER), one("WRONG_TYPE", 44)),
    Case("name is a number", chat(turn("user", name=3), ANSWER), one("WRONG_TYPE", None), says="name"),
    Case("weight 2", chat(USER, turn("assistant", weight=2)), one("BAD_WEIGHT", None), says="found 2"),
    Case("weight true", chat(USER, turn("assistant", weight=True)), one("BAD_WEIGHT", None)),
    Case("weight 0.5", chat(USER, turn("assistant", weight=0.5)), one("BAD_WEIGHT", None)),
    Case("weight of a user", chat(turn("user", weight=1), ANSWER), one("BAD_WEIGHT", None), says="user turn"),
    Case("all weights 0", chat(USER, turn("assistant", weight=0)), one("NOTHING_TO_LEARN", 14)),
    Case("call without id", chat(USER, turn("assistant", tool_calls=[call(None)])), one("BAD_TOOL_CALL"), says='"id"'),
    Case("call without name", chat(USER, turn("assistant", tool_calls=[call(name="")])), one("BAD_TOOL_CALL")),
    Case(
        "arguments not JSON",
        chat(USER, turn("assistant", tool_calls=[call(arguments="{x: 1}")])),
        one("BAD_TOOL_CALL"),
        says="arguments",
    ),
    Case("arguments a list", chat(USER, turn("assistant", tool_calls=[call(arguments="[1]")])), one("BAD_TOOL_CALL")),
    Case(
        "arguments with NaN",
        chat(USER, turn("assistant", tool_calls=[call(arguments='{"x": NaN}')])),
        one("BAD_TOOL_CALL"),
    ),
    Case("ids twice", chat(USER, turn("assistant", tool_calls=[call(), call()])), one("BAD_TOOL_CALL")),
    Case("user calls", chat(turn("user", tool_calls=[call()]), ANSWER), one("BAD_TOOL_CALL")),
    Case("tool without call", chat(USER, turn("tool"), ANSWER), one("TOOL_WITHOUT_CALL", 52)),
    Case(
        "tool answers another",
        chat(USER, turn("assistant", tool_calls=[call()]), turn("tool", tool_call_id="b"), ANSWER),
        one("TOOL_WITHOUT_CALL"),
        says='"a1"',
    ),
    Case("tools no list", chat(USER, ANSWER, tools={}), one("BAD_TOOLS")),
    Case("tool without name", chat(USER, ANSWER, tools=[{"type": "function"}]), one("BAD_TOOLS"), says="tools[0]"),
    Case("tools in broken text", chat(USER, ANSWER, tools="[{]"), one("BAD_TOOLS")),
]

CSV = "rows.csv"
TABLES = [
    Case("csv without rows", b"prompt,completion\n", one("EMPTY_FILE", line=None), name=CSV),
    Case("jsonl named csv", GOOD, one("BAD_HEADER"), says=".jsonl", name=CSV),
    Case("semicolons", b"prompt;completion\na;b\n", one("BAD_HEADER"), says="semicolons", name=CSV),
    Case(
        "spaces around both columns",
        b"prompt , completion\na,b\n",
        one("NO_KNOWN_COLUMN"),
        says="""--columns 'prompt="prompt ",completion=" completion"'""",
        name=CSV,
    ),
    Case("lines that end in CR", b"prompt,completion\ra,b\r", one("BAD_HEADER"), says="CR alone", name=CSV),
    Case("header of commas", b",\na,b\n", one("BAD_HEADER"), says="names no column", name=CSV),
    Case("column twice", b"prompt,completion,prompt\na,b,c\n", one("BAD_HEADER"), says='"prompt"', name=CSV),
    Case("header without columns", b"a,b\n1,2\n", one("NO_KNOWN_COLUMN"), says='"a", "b"', name=CSV),
    Case("header without one", b"prompt,answer\n1,2\n", one("MISSING_COLUMN"), says='"answer"', name=CSV),
    Case("messages in csv", b"messages\n[]\n", one("WRONG_TYPE"), says="JSONL", name=CSV),
    Case("too few fields", b"prompt,completion\na\nb,c\n", one("WRONG_FIELD_COUNT", line=2), 1, name=CSV),
    Case("too many fields", b'prompt,completion\n"x\ny",b\na,b,c\n', one("WRONG_FIELD_COUNT", line=4), 1, name=CSV),
    Case("quote inside", b'prompt,completion\n5" pipe,b\nb,c\n', one("BAD_QUOTE", 2, 2), 1, name=CSV),
    Case("quote behind", b'prompt,completion\n"a"b,"c"\nb,c\n', one("BAD_QUOTE", 4, 2), 1, name=CSV),
    Case("quote in a later line", b'prompt,completion\n"a\nb"c,"d"\nb,c\n', one("BAD_QUOTE", 3, 3), 1, name=CSV),
    Case("open quote", b'prompt,completion\na,b\nc,"d\ne,f\n', one("UNCLOSED_QUOTE", 3, 3), 1, name=CSV),
    Case(
        "open quote, far",
        b'prompt,completion\nc,"d\n' + (b"x" * 8191 + b"\n") * (MAX_ROW_BYTES // 8192 + 1),
        one("UNCLOSED_QUOTE", 3, 2),
        says="8 MB",
        name=CSV,
    ),
    Case("latin-1 in csv", b'prompt,completion\n"a\n\xe9",b\n', one("NOT_UTF8", 1, 3), name=CSV),
    Case("NUL in csv", b"prompt,completion\na,b\x00\nb,c\n", one("NUL_CHARACTER", 4, 2), 1, name=CSV),
    Case("empty field", b"prompt,completion\na,\nb,c\n", one("EMPTY_COMPLETION", line=2), 1, name=CSV),
    Case(
        "large row", b"prompt,completion\na,%b\nb,c\n" % (b"x" * MAX_ROW_BYTES), one("ROW_TOO_LARGE", 1, 2), 1, name=CSV
    ),
    Case(
        "mapped, no such column",
        b"a,b\n1,2\n",
        one("MISSING_COLUMN"),
        says='"a", "b"',
        name=CSV,
        columns={"prompt": "c"},
    ),
]

CASES = [*FILES, *LINES, *ROWS, *CONVERSATIONS, *TABLES]

# Shown by tests of their own: they need more than bytes.
CODES_ELSEWHERE = {"FILE_MISSING", "FILE_UNREADABLE", "NOT_A_FILE", "FILE_CHANGED", "PARQUET_NEEDS_PYARROW"}
