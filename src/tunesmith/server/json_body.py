"""A request's JSON, read strictly: depth, keys that stand twice, and what no database or log should hold are refused.

In: the bytes of a body whose size was capped. Out: plain values for a model to validate. Raises UsageFault.
"""

from __future__ import annotations

import json
from typing import Any

from tunesmith.errors import UsageFault
from tunesmith.spec.datasets import MAX_DEPTH
from tunesmith.spec.faults import shown


def read_json(body: bytes, *, may_hold_nul: bool = False) -> Any:
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _bad(f"The body is not UTF-8 (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise _bad(f"The body is no JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise _bad("The body holds a number of thousands of digits.") from error
    _check(value, 0, "" if may_hold_nul else "\0")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageFault("BAD_JSON", f"The key {shown(twice)} stands twice in one object.", field=twice[:60])
    return found


def _no_constant(text: str) -> Any:
    raise _bad(f"The body holds {text}, which is no JSON number.")


def _check(value: Any, depth: int, forbidden: str) -> None:
    if isinstance(value, str):
        if (forbidden and forbidden in value) or any("\ud800" <= character <= "\udfff" for character in value):
            raise _bad("A text of the body holds a NUL character or half a surrogate pair.")
    elif isinstance(value, dict):
        if depth >= MAX_DEPTH:
            raise _too_deep()
        for name, inner in value.items():  # type: ignore[misc]  # JSON's own types
            _check(name, depth, forbidden)
            _check(inner, depth + 1, forbidden)
    elif isinstance(value, list):
        if depth >= MAX_DEPTH:
            raise _too_deep()
        for inner in value:  # type: ignore[misc]
            _check(inner, depth + 1, forbidden)


def _too_deep() -> UsageFault:
    return _bad(f"Objects and lists of the body are nested deeper than {MAX_DEPTH}.")


def _bad(message: str) -> UsageFault:
    return UsageFault("BAD_JSON", message, hint="Send one JSON object in UTF-8.")
