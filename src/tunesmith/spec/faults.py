"""What pydantic found, in our words: the one place for REST, the command line and the client.

In: the faults of a `ValidationError`. Out: one UsageFault that names each field once, with the value found and what is
allowed. What a name may be is told by its own `spec.names.Spelling`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunesmith.errors import UsageFault

SHOWN_CHARACTERS = 60
SHOWN_FAULTS = 20
HIDDEN_FIELDS = ("secret", "token", "password", "credential")
Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], fields: Mapping[str, Any], *, hint: str | None = None) -> Model:
    """`model` of these fields. Raises UsageFault."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(), hint=hint) from None


def invalid(faults: Sequence[Any], *, hint: str | None = None) -> UsageFault:
    """One error for all that pydantic found."""
    sentences: dict[str, list[str]] = {}
    codes: dict[str, str] = {}
    for fault in faults:
        field = _field(fault["loc"])
        code, sentence = _sentence(field, fault)
        codes.setdefault(field, code)
        told = sentences.setdefault(field, [])
        if sentence not in told:
            told.append(sentence)
    first = next(iter(sentences))
    found = [" or ".join(told) if len(told) > 1 else told[0] for told in sentences.values()]
    more = len(found) - SHOWN_FAULTS
    tail = f" And {more} more faults." if more > 0 else ""
    return UsageFault(
        codes[first],
        " ".join(f"{sentence}." for sentence in found[:SHOWN_FAULTS]) + tail,
        field=first or None,
        hint=hint,
    )


def _field(location: Sequence[Any]) -> str:
    """`("body", "settings", "epochs")` as `settings.epochs`; the branches of a union are left out."""
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    kept = [part for part in parts[:4] if part.replace("_", "").replace("-", "").isalnum() or len(parts) == 1]
    return shown(".".join(kept))[1:-1] if kept else ""


def _sentence(field: str, fault: Any) -> tuple[str, str]:
    kind, message = fault["type"], str(fault["msg"])
    name = field or "The body"
    if kind == "extra_forbidden":
        return "UNKNOWN_FIELD", f"{name} is no field of this request"
    if kind == "missing":
        return "MISSING_FIELD", f"{name} is missing"
    message = message.removeprefix("Value error, ").rstrip(".")
    if kind == "value_error":
        return "INVALID_FIELD", message if message.startswith(f"{name}:") else f"{name}: {message}"
    message = message.replace("Input should", "It should").replace("String should", "It should")
    if any(word in name.lower() for word in HIDDEN_FIELDS):
        return "INVALID_FIELD", f"{name} is not valid. {message}"
    return "INVALID_FIELD", f"{name} is {shown(fault.get('input'))}. {message}"


def shown(value: Any) -> str:
    """A caller's value as it may stand in a message: short, and without a character that acts."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)[: SHOWN_CHARACTERS + 1]
    text = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return repr(text) if isinstance(value, str) else text
