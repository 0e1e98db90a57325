"""`tunesmith audit list`: who changed what."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import JsonOption, LimitOption, connected, noun, tell_table
from tunesmith.cli.output import Output

app = noun("Who changed what.")


@app.command("list")
def list_(
    actor: Annotated[str | None, typer.Option("--actor", help="Only what this token's name did.")] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only this, as in version.delete; or a noun for all of its.")
    ] = None,
    object: Annotated[str | None, typer.Option("--object", help="Only what was done to this object.")] = None,
    limit: LimitOption = 50,
    json_wanted: JsonOption = False,
) -> int:
    """List the audit's entries, the newest first."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        entries = client.audit.list(actor=actor, action=action, object=object, limit=limit)
    if not json_wanted:
        rows = [(each.time[:19], each.actor, each.action, each.object) for each in entries]
        tell_table(output, ("time", "who", "what", "object"), rows, none="No entries.")
    output.result({"audit": [each.as_json() for each in entries]})
    return 0
