"""What the nouns of the service share: a client, tables of plain text, tags, the completion of ids.

In: the environment (which server, see `client/connection.py`). Out: a `Client` and text. Ids and names come from
others: all of them pass `Output.say`, which lets no character act on the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.chosen import asked_project
from tunesmith.cli.output import Output
from tunesmith.errors import UsageFault
from tunesmith.text import visible

if TYPE_CHECKING:
    from tunesmith.client.synchronous.client import Client
    from tunesmith.spec.api import Uses

MAXIMUM_CELL = 60
MAXIMUM_COMPLETIONS = 50

JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many; default: all.")]
SearchOption = Annotated[str | None, typer.Option("--search", help="Only those whose name or description holds it.")]
DescriptionOption = Annotated[str | None, typer.Option("--description", help="Free text.")]
NameOption = Annotated[str | None, typer.Option("--name", help="What it is called.")]
TagOption = Annotated[str | None, typer.Option("--tag", metavar="KEY[=VALUE]", help="Only with this tag.")]
TagsOption = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A tag; once for each.")]


def noun(what: str) -> typer.Typer:
    """The app of one noun; its verbs follow. `what` is its help."""
    app = typer.Typer(
        rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True, help=what
    )

    @app.callback(help=what)
    def group() -> None:  # pyright: ignore[reportUnusedFunction]  # typer has it; without it one verb alone is no group
        return None

    return app


@contextmanager
def connected() -> Generator[Client]:
    """A client of the server that runs, or of the same state without one."""
    from tunesmith.client.synchronous.client import Client  # its libraries cost 0.3 s

    with Client(project=asked_project()) as client:
        yield client


def tell_table(output: Output, headings: Sequence[str], rows: Sequence[Sequence[Any]], *, none: str) -> None:
    """Rows in columns as wide as they need; `none` where there is no row."""
    if not rows:
        output.say(none)
        return
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[place]) for row in [list(headings), *cells]) for place in range(len(headings))]
    for row in [list(headings), *cells]:
        output.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def tell_fields(output: Output, fields: dict[str, Any]) -> None:
    """One field a line; what is absent is left out."""
    shown = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        output.say(f"{name:<{width}}  {_words(value)}")


def tell_uses(output: Output, uses: Uses) -> None:
    """What uses an object, one a line."""
    for each in (*uses.datasets, *uses.jobs):
        output.say(each)
    if uses.of_other_projects:
        output.say(f"{uses.of_other_projects:,} of other projects")
    elif not uses.datasets and not uses.jobs:
        output.say("Nothing uses it now.")


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in cast(Mapping[str, Any], value).items())
    if isinstance(value, list | tuple):
        return ", ".join(str(each) for each in cast(Sequence[Any], value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cell(value: Any) -> str:
    text = visible("-" if value is None else _words(value))
    return text if len(text) <= MAXIMUM_CELL else text[: MAXIMUM_CELL - 1] + "…"


def read_tags(texts: Sequence[str] | None) -> dict[str, str] | None:
    """`KEY=VALUE` each; None where none is given. Raises UsageFault."""
    if texts is None:
        return None
    tags: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageFault(
                "BAD_OPTION", f"--tag: {text[:MAXIMUM_CELL]!r} is not of the form KEY=VALUE.", field="tag",
                hint="For example --tag team=support.",
            )  # fmt: skip
        tags[key] = value
    return tags


def given(**fields: Any) -> dict[str, Any]:
    """The fields that the user named. Raises UsageFault where that is none: there is nothing to change."""
    named = {name: value for name, value in fields.items() if value is not None}
    if not named:
        raise UsageFault("NOTHING_TO_CHANGE", "No option says what to change.", hint="See this command's --help.")
    return named


@contextmanager
def bytes_bar(output: Output) -> Generator[Callable[[int, int], None] | None]:
    """A bar of bytes on a terminal; nothing elsewhere."""
    if not output.human.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from tunesmith.cli.report import console

    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console(output), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


# ---- the completion of ids: short, and silent whatever happens


def completing(find: Callable[[Client], Sequence[str]]) -> Callable[[str], list[str]]:
    """A completion that asks the service; no error of it ever reaches the shell."""

    def complete(incomplete: str) -> list[str]:
        from tunesmith.client.connection import find_endpoint
        from tunesmith.jobs.home import home_path
        from tunesmith.storage.database import FILE_NAME

        try:
            is_in_process = find_endpoint(None, None, environment=os.environ).is_in_process
            if is_in_process and not Path(home_path(os.environ) / FILE_NAME).exists():
                return []  # nothing is made by a press of the tabulator
            with connected() as client:
                return [text for text in find(client) if text.startswith(incomplete) and text == visible(text)]
        except Exception:  # noqa: BLE001  # the edge: a shell that completes has no place for an error
            return []

    return complete


complete_job = completing(lambda client: [each.job_id for each in client.jobs.list(limit=MAXIMUM_COMPLETIONS)])
complete_model = completing(lambda client: [each.name for each in client.models.list(limit=MAXIMUM_COMPLETIONS)])
complete_dataset = completing(
    lambda client: [each.dataset_id for each in client.datasets.list(limit=MAXIMUM_COMPLETIONS)]
)
complete_version = completing(
    lambda client: [each.model_version for each in client.versions.list(limit=MAXIMUM_COMPLETIONS)]
)
complete_version_set = completing(
    lambda client: [each.name for each in client.version_sets.list(limit=MAXIMUM_COMPLETIONS)]
)
complete_location = completing(lambda client: [each.name for each in client.locations.list(limit=MAXIMUM_COMPLETIONS)])
complete_log = completing(lambda client: [each.name for each in client.logs.list(limit=MAXIMUM_COMPLETIONS)])
complete_network = completing(lambda client: [each.name for each in client.networks.list(limit=MAXIMUM_COMPLETIONS)])
complete_project = completing(lambda client: [each.name for each in client.projects.list(limit=MAXIMUM_COMPLETIONS)])
complete_policy = completing(lambda client: [each.name for each in client.policies.list(limit=MAXIMUM_COMPLETIONS)])
complete_token = completing(lambda client: [each.token_id for each in client.tokens.list(limit=MAXIMUM_COMPLETIONS)])
