"""`tunesmith version-set list | show | edit`: the sets that model versions join."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import (
    JsonOption,
    LimitOption,
    SearchOption,
    complete_version_set,
    connected,
    noun,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output

app = noun("Sets of model versions, with their aliases.")
VersionSet = Annotated[str, typer.Argument(metavar="SET", help="Its name.", autocompletion=complete_version_set)]


@app.command("list")
def list_(search: SearchOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the version sets."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        sets = client.version_sets.list(search=search, limit=limit)
    if not json_wanted:
        rows = [
            (each.name, each.versions, [f"{one.alias}={one.number}" for one in each.aliases] or None, each.description)
            for each in sets
        ]
        tell_table(
            output, ("set", "versions", "aliases", "description"), rows,
            none="No version sets. A job makes the one that it names with --version-set.",
        )  # fmt: skip
    output.result({"version_sets": [each.as_json() for each in sets]})
    return 0


@app.command()
def show(version_set: VersionSet, json_wanted: JsonOption = False) -> int:
    """Show a version set with its aliases."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.version_sets.get(version_set)
    if not json_wanted:
        tell_fields(output, {"set": view.name, "description": view.description, "versions": view.versions})
        rows = [(each.alias, each.model_version, each.changed_at[:19]) for each in view.aliases]
        tell_table(output, ("alias", "version", "changed"), rows, none="No aliases.")
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    version_set: VersionSet,
    description: Annotated[str, typer.Option("--description", help="Free text.")],
    json_wanted: JsonOption = False,
) -> int:
    """Change the description of a version set."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.version_sets.edit(version_set, description=description)
    output.say(f"{view.name}: {view.description}")
    output.result(view.as_json())
    return 0
