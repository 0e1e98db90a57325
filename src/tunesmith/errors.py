"""The package's errors: what went wrong, in which field, and the way out.

Each family is one kind of fault; the tables that turn a family into an exit code or an HTTP status
stand at the edges (`cli`, `server`). Nothing here prints, logs or exits.
"""

from __future__ import annotations

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

# The hint of a faulty request; whoever made it by a command is told of that command's --help instead.
REFERENCE = "GET /openapi.json describes every field with its limits."


class ErrorForm(TypedDict):
    """The one form in which an error crosses a boundary (REST, `--json`, events)."""

    code: str
    message: str
    field: str | None
    hint: str | None


class TunesmithError(Exception):
    """A fault with a stable code. A bare TunesmithError is a fault of ours.

    code: UPPER_SNAKE, stable, listed in `docs/guide/troubleshooting.md`.
    message: what, where, the value found and the limit. hint: the way out.
    field: the option, file or `line N` that is at fault.
    """

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint

    def form(self) -> ErrorForm:
        return {"code": self.code, "message": self.message, "field": self.field, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageFault(TunesmithError):
    """An option or argument is wrong, or two contradict each other."""


class Unknown(UsageFault):
    """There is no such object here, or none that the caller may see."""


class InputRefused(TunesmithError):
    """The data, the configuration or the model cannot be used as it is."""


class Conflict(TunesmithError):
    """The object's present state, or what uses it, forbids this: refused, nothing was changed."""


class MachineCannot(TunesmithError):
    """This machine, or this release, cannot do it: GPU, memory, disk, network, a feature not built yet."""


class JobFailed(TunesmithError):
    """The job ran and failed, or its model is not usable."""


class NotPermitted(TunesmithError):
    """The caller may not do this."""


FAMILIES: dict[str, type[TunesmithError]] = {
    family.__name__: family
    for family in (
        TunesmithError,
        UsageFault,
        Unknown,
        InputRefused,
        Conflict,
        MachineCannot,
        JobFailed,
        NotPermitted,
    )
}


def from_form(form: ErrorForm, family: str) -> TunesmithError:
    """Rebuild an error that a worker reported, with the family's name as it stood in its event."""
    return FAMILIES.get(family, TunesmithError)(form["code"], form["message"], field=form["field"], hint=form["hint"])
