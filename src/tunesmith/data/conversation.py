"""A conversation as training sees it: `Message`s from the value of a row's `messages`, or a fault with its place.

In: parsed JSON. Out: messages and tools, or `Fault` with the path to the value at fault (`messages[2].role`).
The order that is allowed: an optional system turn, then user and assistant in turn; an assistant's tool calls are each
answered by one tool turn before the next assistant turn. The last turn is the assistant's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import orjson

from tunesmith.data.findings import Fault, shown
from tunesmith.data.strict_json import parse_strict

ROLES = ("system", "user", "assistant", "tool")
_ROLE_HINTS = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
_KNOWN_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "weight"}
_TYPE_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """arguments: JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `learned`: an assistant turn whose weight is not 0."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    learned: bool = False


def type_name(value: Any) -> str:
    """`a list`, `null`: the JSON type of a value, for a message."""
    return "null" if value is None else _TYPE_NAMES.get(cast("type[Any]", type(value)), "something else")


def path_shown(path: tuple[str | int, ...]) -> str:
    """`messages[2].role`"""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{shown(part, 40)}"
    return text


def read_messages(value: Any, *, column: str, extra_keys: dict[str, None]) -> tuple[Message, ...]:
    """The messages of a row; keys of turns that training does not use are added to `extra_keys`."""
    if not isinstance(value, list):
        is_text = isinstance(value, str)
        hint = (
            "Write the turns themselves as a list, not a text that holds one; CSV cannot: use JSONL."
            if is_text
            else None
        )
        raise Fault(
            "WRONG_TYPE",
            f'"{shown(column)}" must be a list of turns, found {type_name(value)}.',
            path=(column,),
            hint=hint,
        )
    turns = cast("list[Any]", value)
    messages: list[Message] = []
    open_calls: dict[str, None] = {}
    for index, turn in enumerate(turns):
        path = (column, index)
        message = _read_turn(turn, path=path, extra_keys=extra_keys)
        _check_order(message, messages, open_calls=open_calls, path=path)
        messages.append(message)
    _check_whole(messages, column=column)
    return tuple(messages)


def read_tools(value: Any, *, column: str) -> tuple[JsonObject, ...]:
    """The tools of a row: a list of functions, or the JSON text of one, as tables keep it."""
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            value = parse_strict(value)
        except Fault as fault:
            _bad(
                "BAD_TOOLS",
                f'"{shown(column)}" is a text that is not JSON (its column {fault.column}: {fault.message})',
                (column,),
            )
    if not isinstance(value, list):
        _bad("BAD_TOOLS", f'"{shown(column)}" must be a list of functions, found {type_name(value)}.', (column,))
    tools: list[JsonObject] = []
    for index, tool in enumerate(cast("list[Any]", value)):
        path = (column, index)
        if not isinstance(tool, dict):
            _bad("BAD_TOOLS", f"{path_shown(path)} must be an object, found {type_name(tool)}.", path)
        described = cast("JsonObject", tool)
        function = described.get("function", described)
        name = cast("JsonObject", function).get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            _bad("BAD_TOOLS", f"{path_shown(path)} has no function with a name.", path)
        tools.append(described)
    return tuple(tools)


def _bad(code: str, message: str, path: tuple[str | int, ...], hint: str | None = None) -> NoReturn:
    raise Fault(code, message, path=path, hint=hint)


def _read_turn(turn: Any, *, path: tuple[str | int, ...], extra_keys: dict[str, None]) -> Message:
    if not isinstance(turn, dict):
        _bad("WRONG_TYPE", f"{path_shown(path)} must be an object, found {type_name(turn)}.", path)
    fields = cast("JsonObject", turn)
    if not fields.keys() <= _KNOWN_KEYS:
        extra_keys.update(dict.fromkeys(f"{path[0]}[].{key}" for key in fields if key not in _KNOWN_KEYS))
    role = _role(fields, path)
    calls = _tool_calls(fields.get("tool_calls"), role=role, path=(*path, "tool_calls"))
    content = _content(fields, role=role, has_calls=bool(calls), path=path)
    return Message(
        role=role,
        content=content,
        tool_calls=calls,
        name=_optional_text(fields, "name", path),
        tool_call_id=_optional_text(fields, "tool_call_id", path),
        learned=_is_learned(fields.get("weight"), role=role, path=(*path, "weight")),
    )


def _role(fields: JsonObject, path: tuple[str | int, ...]) -> str:
    if "role" not in fields:
        hint = 'Add "role": system, user, assistant or tool.'
        if "from" in fields and "value" in fields:
            hint = 'These look like ShareGPT turns: write "role" and "content" in place of "from" and "value".'
        _bad("MISSING_COLUMN", f'{path_shown(path)} has no "role".', path, hint)
    role = fields["role"]
    if isinstance(role, str) and role in ROLES:
        return role
    where = (*path, "role")
    if not isinstance(role, str):
        _bad("WRONG_TYPE", f"{path_shown(where)} must be a text, found {type_name(role)}.", where)
    other = _ROLE_HINTS.get(role.strip().casefold()) or next((r for r in ROLES if r == role.strip().casefold()), None)
    _bad(
        "UNKNOWN_ROLE",
        f'{path_shown(where)} is "{shown(role, 40)}"; roles are system, user, assistant and tool.',
        where,
        f'Write "{other}".' if other else None,
    )


def _content(fields: JsonObject, *, role: str, has_calls: bool, path: tuple[str | int, ...]) -> str:
    where = (*path, "content")
    content = fields.get("content")
    if isinstance(content, list):
        content = _joined(cast("list[Any]", content), where)
    if content is None:
        if has_calls:
            return ""
        if "content" not in fields:
            _bad("MISSING_COLUMN", f'{path_shown(path)} has no "content".', path, 'Add "content", or remove the turn.')
    if not isinstance(content, str):
        _bad("WRONG_TYPE", f"{path_shown(where)} must be a text or text parts, found {type_name(content)}.", where)
    # a tool may well answer nothing, and a turn that calls tools need not say anything
    if (not content or content.isspace()) and role != "tool" and not has_calls:
        _bad("EMPTY_CONTENT", f"{path_shown(where)} is empty{' but for white space' if content else ''}.", where)
    return content


def _joined(parts: list[Any], where: tuple[str | int, ...]) -> str:
    texts: list[str] = []
    for index, part in enumerate(parts):
        path = (*where, index)
        if not isinstance(part, dict):
            _bad("WRONG_TYPE", f"{path_shown(path)} must be an object, found {type_name(part)}.", path)
        fields = cast("JsonObject", part)
        kind = fields.get("type")
        if kind != "text":
            found = f'of type "{shown(kind, 40)}"' if isinstance(kind, str) else "without a type"
            _bad("NOT_TEXT_PART", f"{path_shown(path)} is a part {found}; only text can be learned.", path)
        text = fields.get("text")
        if not isinstance(text, str):
            _bad("WRONG_TYPE", f"{path_shown((*path, 'text'))} must be a text, found {type_name(text)}.", path)
        texts.append(text)
    return "".join(texts)


def _optional_text(fields: JsonObject, key: str, path: tuple[str | int, ...]) -> str | None:
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value
    where = (*path, key)
    _bad("WRONG_TYPE", f"{path_shown(where)} must be a text, found {type_name(value)}.", where)


def _is_learned(weight: Any, *, role: str, path: tuple[str | int, ...]) -> bool:
    if weight is None:
        return role == "assistant"
    if type(weight) is not int or weight not in (0, 1):
        found = weight if type(weight) in (int, float) else type_name(weight)
        _bad("BAD_WEIGHT", f"{path_shown(path)} must be 0 or 1, found {found}.", path)
    if weight == 1 and role != "assistant":
        _bad("BAD_WEIGHT", f"{path_shown(path)} is 1 in a {role} turn; only assistant turns are learned.", path)
    return weight == 1


def _tool_calls(value: Any, *, role: str, path: tuple[str | int, ...]) -> tuple[ToolCall, ...]:
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        _bad("BAD_TOOL_CALL", f"{path_shown(path)} must be a list, found {type_name(value)}.", path)
    if role != "assistant":
        _bad("BAD_TOOL_CALL", f"{path_shown(path)} stands in a {role} turn; only the assistant calls tools.", path)
    calls = [_tool_call(call, (*path, index)) for index, call in enumerate(cast("list[Any]", value))]
    if len({call.id for call in calls}) < len(calls):
        _bad("BAD_TOOL_CALL", f"{path_shown(path)} has two calls with the same id.", path)
    return tuple(calls)


def _tool_call(value: Any, path: tuple[str | int, ...]) -> ToolCall:
    if not isinstance(value, dict):
        _bad("BAD_TOOL_CALL", f"{path_shown(path)} must be an object, found {type_name(value)}.", path)
    call = cast("JsonObject", value)
    if call.get("type") not in (None, "function"):
        _bad("BAD_TOOL_CALL", f'{path_shown((*path, "type"))} must be "function".', (*path, "type"))
    call_id = call.get("id")
    if not isinstance(call_id, str) or not call_id:
        _bad("BAD_TOOL_CALL", f'{path_shown(path)} has no "id".', path)
    function = call.get("function")
    if not isinstance(function, dict):
        _bad("BAD_TOOL_CALL", f'{path_shown(path)} has no "function".', path)
    function = cast("JsonObject", function)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        _bad("BAD_TOOL_CALL", f'{path_shown((*path, "function"))} has no "name".', (*path, "function"))
    return ToolCall(id=call_id, name=name, arguments=_arguments(function, (*path, "function", "arguments")))


def _arguments(function: JsonObject, path: tuple[str | int, ...]) -> str:
    """The arguments as JSON text: as written if they are text, else written compactly."""
    value = function.get("arguments")
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        _bad(
            "BAD_TOOL_CALL",
            f"{path_shown(path)} must be JSON text or an object, found {type_name(value)}.",
            path if "arguments" in function else path[:-1],
        )
    try:
        parsed = parse_strict(value)
    except Fault as fault:
        _bad("BAD_TOOL_CALL", f"{path_shown(path)} is not JSON (its column {fault.column}: {fault.message})", path)
    if not isinstance(parsed, dict):
        _bad("BAD_TOOL_CALL", f"{path_shown(path)} must hold a JSON object, found {type_name(parsed)}.", path)
    return value


def _check_order(
    message: Message, before: list[Message], *, open_calls: dict[str, None], path: tuple[str | int, ...]
) -> None:
    """Raises if `message` may not follow those `before`. open_calls: calls not answered yet, kept up to date."""
    role = message.role
    where = (*path, "role")
    last = before[-1].role if before else None
    if role == "system":
        if any(earlier.role == "system" for earlier in before):
            _bad("SYSTEM_TWICE", f"{path_shown(where)} is a second system turn.", where)
        if before:
            _bad("SYSTEM_NOT_FIRST", f"{path_shown(where)} is system; only the first turn may be.", where)
    elif role == "tool":
        _check_tool(message, last=last, open_calls=open_calls, path=path)
    elif open_calls:
        waiting = ", ".join(shown(call, 40) for call in list(open_calls)[:3])
        _bad("ROLE_ORDER", f"{path_shown(where)} is {role}, but the tool call {waiting} has no tool turn yet.", where)
    elif role == "user" and last not in (None, "system", "assistant"):
        _bad("ROLE_ORDER", f"{path_shown(where)} is user and follows a {last} turn.", where)
    elif role == "assistant" and last not in ("user", "tool"):
        follows = "follows no user turn" if last in (None, "system") else f"follows an {last} turn"
        _bad("ROLE_ORDER", f"{path_shown(where)} is assistant and {follows}.", where)
    open_calls.update(dict.fromkeys(call.id for call in message.tool_calls))


def _check_tool(
    message: Message, *, last: str | None, open_calls: dict[str, None], path: tuple[str | int, ...]
) -> None:
    if last not in ("assistant", "tool") or not open_calls:
        _bad("TOOL_WITHOUT_CALL", f"{path_shown(path)} is a tool turn without an open tool call before it.", path)
    if message.tool_call_id not in open_calls:
        found = "none" if message.tool_call_id is None else f'"{shown(message.tool_call_id, 40)}"'
        calls = ", ".join(f'"{shown(call, 40)}"' for call in list(open_calls)[:3])
        where = (*path, "tool_call_id")
        _bad("TOOL_WITHOUT_CALL", f"{path_shown(where)} is {found}; the open calls are {calls}.", where)
    del open_calls[message.tool_call_id]


def _check_whole(messages: list[Message], *, column: str) -> None:
    if not any(message.role == "assistant" for message in messages):
        _bad("NO_ASSISTANT", f'"{shown(column)}" has no assistant turn, so nothing to learn.', (column,))
    last = messages[-1]
    if last.role != "assistant":
        where = (column, len(messages) - 1, "role")
        _bad("LAST_NOT_ASSISTANT", f"{path_shown(where)} is {last.role}; the last turn must be the assistant's.", where)
    if not any(message.learned for message in messages):
        _bad("NOTHING_TO_LEARN", f'Every assistant turn of "{shown(column)}" has weight 0.', (column,))


def canonical_messages(messages: tuple[Message, ...], tools: tuple[JsonObject, ...]) -> bytes:
    """Bytes that are equal exactly where training sees the same conversation."""
    listed = [
        [
            message.role,
            message.content,
            message.learned,
            message.name,
            message.tool_call_id,
            [[call.id, call.name, call.arguments] for call in message.tool_calls],
        ]
        for message in messages
    ]
    return orjson.dumps(listed) + json.dumps(tools).encode() if tools else orjson.dumps(listed)


def texts_of(messages: tuple[Message, ...]) -> str:
    """All that a reader of the row would see, for a look at its characters."""
    return "\n".join(
        part
        for message in messages
        for part in (message.content, *(call.name + call.arguments for call in message.tool_calls))
    )


def has_big_number(value: Mapping[str, Any] | list[Any] | Any) -> bool:
    """True if a value holds an integer that orjson has turned into a float (beyond 64 bits)."""
    if isinstance(value, dict):
        return any(has_big_number(member) for member in cast("JsonObject", value).values())
    if isinstance(value, list):
        return any(has_big_number(member) for member in cast("list[Any]", value))
    return isinstance(value, float) and abs(value) >= 2**63
