"""`--project`: whose jobs, datasets and versions a command means.

In: the option, which every command has that speaks of such things, and TUNESMITH_PROJECT. Out: the project's name for
the client, or for a command that works on this machine's own state. The option is added here to all of them at once.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tunesmith.jobs.state import State

VARIABLE = "TUNESMITH_PROJECT"
_asked: ContextVar[str | None] = ContextVar("project", default=None)


def asked_project() -> str | None:
    """By the option, else by the environment; None: by neither."""
    return _asked.get() or os.environ.get(VARIABLE) or None


def forget_project() -> None:
    """Before another command of this process."""
    _asked.set(None)


def own_project(state: State) -> str:
    """For a command on this machine's state. Raises Unknown (UNKNOWN_PROJECT)."""
    from tunesmith.spec.catalog import DEFAULT_PROJECT  # here: every command's --help would wait for pydantic

    name = asked_project() or DEFAULT_PROJECT
    if name != DEFAULT_PROJECT:  # that one is always there, and looking takes the database
        from tunesmith.catalog.projects import find_project

        with state.database.read() as connection:
            find_project(connection, name)
    return name


def with_project(command: Any) -> Any:
    """The command, or each verb of a noun, with the option; one that has it for itself keeps its own."""
    for each in getattr(command, "commands", {"": command}).values():
        if not any("--project" in parameter.opts for parameter in each.params):
            each.params.append(_option())
    return command


def _choose(value: str | None) -> str | None:
    if value is not None:
        _asked.set(value)
    return value


def _option() -> Any:
    """As typer makes it; the command itself is not passed its value."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def one(  # pyright: ignore[reportUnusedFunction]  # typer has it
        project: Annotated[
            str | None,
            typer.Option(
                "--project",
                metavar="NAME",
                help=f"Whose jobs, datasets and versions are meant; default: {VARIABLE}, else default.",
                callback=_choose,
                expose_value=False,
            ),
        ] = None,
    ) -> None:
        return None

    return typer.main.get_command(app).params[0]
