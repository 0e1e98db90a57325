"""Every refusal of the service in one form, and the one table of HTTP statuses.

In: an error of any layer, or what the framework raised. Out: a response: `{"error": {code, message, field, hint}}`
under `/api`, OpenAI's form under `/v1`. A fault of ours tells a correlation id; its traceback stands in the log alone.
"""

from __future__ import annotations

import errno
import json
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
    "ARCHITECTURE_NOT_SUPPORTED": 422,
    "JOB_BUSY": 409,
    "HUB_UNREACHABLE": 409,  # no fault of this server
    "HUB_OFFLINE": 409,
    # what a declared location is like: no fault of this server
    "LOCATION_UNREACHABLE": 409,
    "CREDENTIALS_REFUSED": 409,
    "LOCATION_NOT_READABLE": 409,
    "LOCATION_NOT_WRITABLE": 409,
}
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "server_error"}


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


def _json(value: Any) -> bytes:
    # a lone surrogate of a caller's text must not end the answer
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
