"""`tunesmith state show | backup | restore | clean`: the state folder as a whole, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import Output

if TYPE_CHECKING:
    from tunesmith.spec.state import Reconciliation, StateFolder

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
    help="Show, back up, restore and clean the state folder.",
)  # fmt: skip

JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")]
SHOWN_ENTRIES = 20


@app.callback()
def state() -> None:
    """Show, back up, restore and clean the state folder."""


@app.command()
def show(json_wanted: JsonOption = False) -> int:
    """Show what the state folder holds, and where its database and the disk disagree."""
    from tunesmith.jobs.backup import view_state
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.state import open_state

    output = Output(json_wanted=json_wanted)
    opened = open_state(open_home(os.environ))
    view = view_state(opened.home, opened.database)
    output.say(f"home      {view.home}")
    output.say(f"database  {_size(view.database_bytes)}, revision {view.revision}")
    output.say(f"jobs      {_counts(view.jobs)}")
    output.say(f"versions  {_counts(view.versions)}")
    _tell_folders(output, view.folders)
    _tell_found(output, view.found)
    output.result(view.as_json())
    return 0


@app.command()
def backup(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new folder, or a new file that ends in .zip.")],
    json_wanted: JsonOption = False,
) -> int:
    """Copy the database, at any time. The folders that it names are yours to copy with it."""
    from tunesmith.jobs.backup import make_backup
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.state import open_state

    output = Output(json_wanted=json_wanted)
    opened = open_state(open_home(os.environ))
    about = make_backup(opened.home, opened.database, Path(target).expanduser().absolute())
    output.say(f"{target}: the database with {about.jobs:,} jobs and {about.versions:,} model versions")
    output.say("Not in it; copy them with your own tool:")
    _tell_folders(output, about.folders)
    for place in about.other_places[:SHOWN_ENTRIES]:
        output.say(f"  {place}")
    if len(about.other_places) > SHOWN_ENTRIES:
        output.say(f"  and {len(about.other_places) - SHOWN_ENTRIES:,} more places")
    output.result(about.as_json())
    return 0


@app.command()
def restore(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A backup: its folder or its .zip file.")],
    json_wanted: JsonOption = False,
) -> int:
    """Put a backup in place of the database of a stopped state folder; what was there is kept beside it."""
    from tunesmith.jobs.backup import restore_backup
    from tunesmith.jobs.home import open_home

    output = Output(json_wanted=json_wanted)
    home = open_home(os.environ)
    restored = restore_backup(home, Path(source).expanduser().absolute())
    made = restored.backup
    output.say(f"{home.root}: the state of {made.created_at}, {made.jobs:,} jobs and {made.versions:,} model versions")
    if restored.replaced is not None:
        output.say(f"The database that was there is kept as {restored.replaced}.")
    _tell_found(output, restored.found)
    output.result(restored.as_json())
    return 0


@app.command()
def clean(
    older_than: Annotated[float, typer.Option("--older-than", min=0, metavar="DAYS", help="Only what is older.")] = 7,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this nothing is removed.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """List what may go: checkpoints of finished jobs, caches, uploads that no dataset names, logs over their limits."""
    from tunesmith.catalog import audit
    from tunesmith.catalog.artifacts import finish_removals
    from tunesmith.jobs.deletion import finish_deletions
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.retention import find_waste, remove
    from tunesmith.jobs.state import open_state

    output = Output(json_wanted=json_wanted)
    opened = open_state(open_home(os.environ))
    waste = find_waste(opened.home, opened.database, older_than_days=older_than)
    total = sum(each.bytes for each in waste)
    for each in waste[:SHOWN_ENTRIES]:
        output.say(f"{_size(each.bytes):>10}  {each.kind.value:<15}  {each.path}  ({each.reason})")
    if len(waste) > SHOWN_ENTRIES:
        output.say(f"and {len(waste) - SHOWN_ENTRIES:,} more")
    if yes:
        for model_version in finish_removals(opened.database, environment=os.environ):
            output.say(f"The files of {model_version}, which was deleted with them, are gone.")
        for job_id in finish_deletions(opened.home, opened.database):
            output.say(f"The folder of {job_id}, which was deleted, is gone.")
    if yes and waste:
        for each in waste:
            remove(each)
        with opened.database.write() as connection:
            audit.record(connection, "local", "state.clean", "home", {"removed": len(waste), "bytes": total})
    if not waste:
        output.say("Nothing may go.")
    else:
        output.say(
            f"{'Removed' if yes else 'May go'}: {len(waste):,} entries, {_size(total)}"
            + ("" if yes else "; nothing was removed. --yes removes them.")
        )
    output.result({"removed": yes, "bytes": total, "entries": [each.as_json() for each in waste]})
    return 0


def _tell_folders(output: Output, folders: list[StateFolder]) -> None:
    for folder in folders:
        output.say(f"{_size(folder.bytes):>10}  {folder.path}  ({folder.what})")


def _tell_found(output: Output, found: Reconciliation) -> None:
    for entries, what in (
        (found.unknown_artifacts, "artifacts that the database does not know; they stay as they are"),
        (found.missing_artifacts, "ACTIVE model versions whose files are not there"),
        (found.unknown_jobs, "folders of jobs that the database does not know; they stay as they are"),
        (found.missing_jobs, "unfinished jobs without their folder"),
    ):
        if entries:
            output.say(f"! {len(entries):,} {what}:")
            for entry in entries[:SHOWN_ENTRIES]:
                output.say(f"    {entry}")
            if len(entries) > SHOWN_ENTRIES:
                output.say(f"    and {len(entries) - SHOWN_ENTRIES:,} more")
    if found.is_clean():
        output.say("The database and the disk agree.")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "none"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
