"""Every refusal of the service in one form, and the one table of HTTP statuses.

In: an error of any layer, or what the framework raised. Out: a response: `{"error": {code, message, field, hint}}`
under `/api`, OpenAI's form under `/v1`. A fault of ours tells a correlation id; its traceback stands in the log alone.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from tunesmith.errors import (
    Conflict,
    InputRefused,
    JobFailed,
    MachineCannot,
    NotPermitted,
    TunesmithError,
    Unknown,
    UsageFault,
)

STATUSES: dict[type[TunesmithError], int] = {
    TunesmithError: 500,
    UsageFault: 422,
    Unknown: 404,
    InputRefused: 422,
    Conflict: 409,
    MachineCannot: 503,
    JobFailed: 409,
    NotPermitted: 403,
}
# Where HTTP has a status of its own for a code, or the family's would mislead.
STATUSES_OF_CODES = {
    "BAD_PATH": 400,
    "BAD_HTTP": 400,
    "TOKEN_MISSING": 401,
    "TOKEN_WRONG": 401,
    "UNKNOWN_ROUTE": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "BODY_TOO_LARGE": 413,
    "CONTENT_TYPE": 415,
    "CONTENT_ENCODING": 415,
    "HOST_NOT_ALLOWED": 421,
    "HEADERS_TOO_LARGE": 431,
    "NOT_BUILT": 422,  # asked for by the caller, whatever the machine's state
    "JOB_BUSY": 409,
    # what a declared location is like: no fault of this server
    "LOCATION_UNREACHABLE": 409,
    "CREDENTIALS_REFUSED": 409,
    "LOCATION_NOT_READABLE": 409,
    "LOCATION_NOT_WRITABLE": 409,
}
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "server_error"}
SHOWN_CHARACTERS = 60
SHOWN_FAULTS = 20
HIDDEN_FIELDS = ("secret", "token", "password", "credential")


def status_of(error: TunesmithError) -> int:
    return STATUSES_OF_CODES.get(error.code) or STATUSES[type(error)]


def error_response(error: TunesmithError, *, path: str) -> Response:
    """The answer to a refused request. `path` chooses the form only."""
    status = status_of(error)
    if path.startswith("/v1/"):
        status = 400 if status == 422 else status
        kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        message = f"{error.message} {error.hint}" if error.hint else error.message
        form: Any = {"message": message, "type": kind, "param": error.field, "code": error.code}
    else:
        form = error.form()
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "5"} if status == 503 else {}
    return Response(_json({"error": form}), status, headers, media_type="application/json")


def fault_of_ours(request_id: str) -> TunesmithError:
    return TunesmithError(
        "INTERNAL", f"A fault of ours in request {request_id}.",
        hint="The server's log (logs/server.log of its state folder) has the details under this number; please report.",
    )  # fmt: skip


def disk_full(error: BaseException) -> TunesmithError | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineCannot(
            "DISK_FULL", "The disk of the server's state folder is full.", field="TUNESMITH_HOME",
            hint="Free some space there, then try again. Nothing was changed.",
        )  # fmt: skip
    return None


def invalid(faults: Sequence[Any]) -> UsageFault:
    """One error for all that pydantic found: each field once, with the value found and what is allowed."""
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
    shown = [" or ".join(told) if len(told) > 1 else told[0] for told in sentences.values()]
    more = len(shown) - SHOWN_FAULTS
    tail = f" And {more} more faults." if more > 0 else ""
    return UsageFault(
        codes[first],
        " ".join(f"{sentence}." for sentence in shown[:SHOWN_FAULTS]) + tail,
        field=first or None,
        hint="GET /openapi.json describes every field with its limits.",
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


def _json(value: Any) -> bytes:
    # a lone surrogate of a caller's text must not end the answer
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
