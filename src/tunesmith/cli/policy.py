"""`tunesmith policy list | show | create | edit | delete | check`: who may do what in which projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    SearchOption,
    complete_policy,
    complete_project,
    connected,
    given,
    noun,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output

if TYPE_CHECKING:
    from tunesmith.spec.access import PolicyView

app = noun("Policies: who may do what in which projects.")
Policy = Annotated[str, typer.Argument(metavar="NAME", help="Its name.", autocompletion=complete_policy)]
WHO = "A token's name, role:user (every token of that role) or * (every token); once for each."
MAY = "job.submit, job.*, read (to see everything) or use (all that fine-tuning takes); once for each."
IN = "A project's name or * (every project); once for each."


@app.command("list")
def list_(search: SearchOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the policies."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.policies.list(search=search, limit=limit)
    if not json_wanted:
        rows = [(each.name, each.who, each.may, each.projects, each.description) for each in found]
        tell_table(
            output, ("name", "who", "may", "in", "description"), rows, none="No policies: only administrators may."
        )
    output.result({"policies": [each.as_json() for each in found]})
    return 0


@app.command()
def show(name: Policy, json_wanted: JsonOption = False) -> int:
    """Show a policy: who may do what, and in which projects."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.policies.get(name)
    _tell(output, view)
    return 0


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, which stays as it is.")],
    who: Annotated[list[str], typer.Option("--who", metavar="WHO", help=WHO)],
    may: Annotated[list[str], typer.Option("--may", metavar="WHAT", help=MAY)],
    in_: Annotated[
        list[str] | None,
        typer.Option("--in", metavar="PROJECT", help=f"{IN} [default: default]", autocompletion=complete_project),
    ] = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Make a policy; it counts at once. What administers is granted by its whole name alone, as in location.add."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.access import NewPolicy

    output = Output(json_wanted=json_wanted)
    wanted = {"name": name, "who": who, "may": may, "description": description or ""}
    with connected() as client:
        view = client.policies.create(checked(NewPolicy, **wanted, **({"projects": in_} if in_ else {})))
    _tell(output, view)
    return 0


@app.command()
def edit(
    name: Policy,
    who: Annotated[list[str] | None, typer.Option("--who", metavar="WHO", help=WHO)] = None,
    may: Annotated[list[str] | None, typer.Option("--may", metavar="WHAT", help=MAY)] = None,
    in_: Annotated[
        list[str] | None, typer.Option("--in", metavar="PROJECT", help=IN, autocompletion=complete_project)
    ] = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change a policy; a list that is given replaces the whole one that was there."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.access import PolicyChange

    output = Output(json_wanted=json_wanted)
    wanted = given(who=who or None, may=may or None, projects=in_ or None, description=description)
    with connected() as client:
        view = client.policies.edit(name, checked(PolicyChange, **wanted))
    _tell(output, view)
    return 0


@app.command()
def delete(name: Policy, json_wanted: JsonOption = False) -> int:
    """Delete a policy: what it alone allowed is refused at once."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.policies.delete(name)
    output.say(f"Deleted the policy {name}.")
    output.result({"deleted": name})
    return 0


@app.command()
def check(
    who: Annotated[str, typer.Argument(metavar="WHO", help="A token's name.")],
    action: Annotated[str, typer.Argument(metavar="ACTION", help="A permission, as in job.submit.")],
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="NAME", help="Where; default: default.", autocompletion=complete_project),
    ] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Tell whether somebody may do something in a project, and by which policy. Ends with 6 where it is no."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.rights(who, project=project, action=action)
    [right] = found.rights
    for notice in found.notices:
        output.say(f"! {notice.message} {notice.hint or ''}".rstrip())
    by = {"*": "every token may", f"role:{found.role}": f"a token of the role {found.role}"}
    reasons = ", ".join(by.get(each, f"the policy {each}") for each in right.by)
    output.say(f"yes: {reasons}" if right.is_allowed else f"no: no policy lets {who} do {action} in {found.project}")
    told = {"who": who, "action": action, "project": found.project, "is_allowed": right.is_allowed, "by": right.by}
    output.result(told)
    return 0 if right.is_allowed else NOT_PERMITTED


NOT_PERMITTED = 6  # as in the table of exit codes


def _tell(output: Output, view: PolicyView) -> None:
    if not output.json_wanted:
        told = view.as_json()
        told["in"] = told.pop("projects")
        tell_fields(output, {name: told[name] for name in ("name", "description", "who", "may", "in", "changed_at")})
        for notice in view.notices:
            output.say(f"! {notice.message} {notice.hint or ''}".rstrip())
    output.result(view.as_json())
