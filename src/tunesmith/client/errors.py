"""From an answer of the server, or the lack of one, to the package's own errors.

In: a status and a body, or what httpx2 raised. Out: an error of `tunesmith.errors`, so that a caller of the client, of
the command line and of our own functions catches the same families. The one table of statuses for clients stands here.
"""

from __future__ import annotations

import httpx2
from pydantic import ValidationError

from tunesmith.errors import (
    Conflict,
    ErrorForm,
    InputRefused,
    MachineCannot,
    NotPermitted,
    TunesmithError,
    Unknown,
    UsageFault,
)
from tunesmith.spec.api import ErrorAnswer, OpenAIErrorAnswer

OTHER_RELEASE = "Are client and server of releases that fit? `tunesmith --version` and /healthz tell theirs."
FAMILY_OF_STATUS: dict[int, type[TunesmithError]] = {
    400: InputRefused,
    401: NotPermitted,
    403: NotPermitted,
    404: Unknown,
    405: UsageFault,
    408: MachineCannot,
    409: Conflict,
    411: InputRefused,
    413: InputRefused,
    415: UsageFault,
    421: NotPermitted,
    422: InputRefused,
    429: MachineCannot,
    502: MachineCannot,
    503: MachineCannot,
    504: MachineCannot,
    507: MachineCannot,
}
# A 422 is the fault of a dataset or model, but for these: an option is wrong, and the exit code says so.
USAGE_CODES = frozenset({
    "BAD_OPTION", "OPTIONS_EXCLUDE", "UNKNOWN_FIELD", "MISSING_FIELD", "INVALID_FIELD", "BAD_ALIAS", "BAD_CURSOR",
    "BAD_VERSION_NAME", "BASE_NOT_NAMED", "TEMPLATE_MISSING", "UNKNOWN_COLUMN", "EMPTY_COLUMN", "SAME_COLUMN_TWICE",
    "COLUMNS_OF_TWO_KINDS",
})  # fmt: skip
# What the server's machine or release cannot, where the status says that the request, not the server, is at fault.
MACHINE_CODES = frozenset({
    "NOT_BUILT", "ARCHITECTURE_NOT_SUPPORTED", "JOB_BUSY", "HUB_UNREACHABLE", "HUB_OFFLINE", "LOCATION_UNREACHABLE",
    "LOCATION_NOT_READABLE", "LOCATION_NOT_WRITABLE", "CREDENTIALS_REFUSED",
})  # fmt: skip


def error_of(status: int, body: bytes, *, url: str) -> TunesmithError:
    """The error that an answer with a status from 400 tells."""
    form = _form(body)
    if form is None:
        return MachineCannot(
            "UNEXPECTED_ANSWER",
            f"{url} answered with status {status}, and not in the form of a Tunesmith server.",
            field="TUNESMITH_URL",
            hint="Is this the address of `tunesmith serve`, and no proxy in between?",
        )
    if form["code"] == "UNKNOWN_ROUTE":
        form["hint"] = OTHER_RELEASE
    family = FAMILY_OF_STATUS.get(status, TunesmithError)
    if status == 422 and form["code"] in USAGE_CODES:
        family = UsageFault
    elif form["code"] in MACHINE_CODES:
        family = MachineCannot
    return family(form["code"], form["message"], field=form["field"], hint=form["hint"])


def lost(error: httpx2.TransportError, *, url: str) -> MachineCannot:
    """What a caller is told when the connection could not be made, or broke, and no retry helped."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return MachineCannot(
            "SERVER_UNREACHABLE",
            f"No server answers at {url}.",
            field="TUNESMITH_URL",
            hint="Start one with `tunesmith serve`, or check the address.",
        )
    return MachineCannot(
        "CONNECTION_LOST",
        f"The connection to {url} was lost ({type(error).__name__}) and could not be made again.",
        field="TUNESMITH_URL",
        hint="Try again; what the server accepted before is kept.",
    )


def unreadable(url: str) -> MachineCannot:
    """A success whose body is not what this release knows."""
    return MachineCannot(
        "UNEXPECTED_ANSWER",
        f"{url} answered with something that this release of the client does not understand.",
        field="TUNESMITH_URL",
        hint=OTHER_RELEASE,
    )


def _form(body: bytes) -> ErrorForm | None:
    try:
        return ErrorAnswer.model_validate_json(body, extra="ignore").error
    except ValidationError:
        return _openai_form(body)


def _openai_form(body: bytes) -> ErrorForm | None:
    """That of `/v1`, whose message holds the hint."""
    try:
        told = OpenAIErrorAnswer.model_validate_json(body, extra="ignore").error
    except ValidationError:
        return None
    return {"code": told["code"] or "UNKNOWN", "message": told["message"], "field": told["param"], "hint": None}
