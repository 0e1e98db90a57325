"""`tunesmith project list | show | create | edit | delete`: what jobs, datasets and model versions belong to."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    SearchOption,
    complete_project,
    connected,
    given,
    noun,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output

app = noun("Projects: what jobs, datasets and model versions belong to.")
Target = Annotated[str, typer.Argument(metavar="NAME", help="Its name.", autocompletion=complete_project)]


@app.command("list")
def list_(search: SearchOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the projects that you see, with how much is in them."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.projects.list(search=search, limit=limit)
    if not json_wanted:
        rows = [(each.name, each.jobs, each.datasets, each.versions, each.description) for each in found]
        headings = ("name", "unfinished jobs", "datasets", "versions", "description")
        tell_table(output, headings, rows, none="No project names you: ask an administrator for a policy.")
    output.result({"projects": [each.as_json() for each in found]})
    return 0


@app.command()
def show(name: Target, json_wanted: JsonOption = False) -> int:
    """Show a project, and how much is in it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.projects.get(name)
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, which stays as it is.")],
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Make a project. Administrators see it; others as soon as a policy names it."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.access import NewProject

    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.projects.create(checked(NewProject, name=name, description=description or ""))
    output.say(f"Made the project {view.name}.")
    output.say(f"Next: tunesmith policy create NAME --who TOKEN --may use --in {view.name}")
    output.result(view.as_json())
    return 0


@app.command()
def edit(name: Target, description: DescriptionOption = None, json_wanted: JsonOption = False) -> int:
    """Change a project's description."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.access import ProjectChange

    output = Output(json_wanted=json_wanted)
    wanted = given(description=description)
    with connected() as client:
        view = client.projects.edit(name, checked(ProjectChange, **wanted))
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def delete(name: Target, json_wanted: JsonOption = False) -> int:
    """Delete an empty project that no policy names. Its name is not given again."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.projects.delete(name)
    output.say(f"Deleted the project {name}.")
    output.result({"deleted": name})
    return 0
