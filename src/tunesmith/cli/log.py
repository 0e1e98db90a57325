"""`tunesmith log list | show | add | edit | delete`: named logs, with how much and how long they keep."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    complete_log,
    connected,
    given,
    noun,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output

app = noun("Named logs of jobs: how much of them is kept, and how long.")
Log = Annotated[str, typer.Argument(metavar="LOG", help="Its name.", autocompletion=complete_log)]
Days = Annotated[
    int | None, typer.Option("--retention-days", help="A finished job's log is removed after this many days.")
]
Bytes = Annotated[int | None, typer.Option("--maximum-bytes", help="Of all its jobs' logs together.")]


@app.command("list")
def list_(limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the named logs."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        logs = client.logs.list(limit=limit)
    if not json_wanted:
        rows = [(each.name, each.retention_days, each.maximum_bytes, each.description) for each in logs]
        tell_table(
            output, ("name", "days", "bytes", "description"), rows, none="No named logs; each job has its own file."
        )
    output.result({"logs": [each.as_json() for each in logs]})
    return 0


@app.command()
def show(log: Log, json_wanted: JsonOption = False) -> int:
    """Show a named log. `tunesmith job logs` shows what a job wrote."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.logs.get(log)
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def add(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A name for it.")],
    retention_days: Days = None,
    maximum_bytes: Bytes = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Make a named log; jobs choose it with --log."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import NewLog

    output = Output(json_wanted=json_wanted)
    new = checked(NewLog, name=log, retention_days=retention_days, maximum_bytes=maximum_bytes, description=description)
    with connected() as client:
        view = client.logs.add(new)
    output.say(f"Log {view.name}: {view.retention_days} days, {view.maximum_bytes:,} bytes")
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    log: Log,
    retention_days: Days = None,
    maximum_bytes: Bytes = None,
    description: DescriptionOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change how much a named log keeps."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import LogChange

    output = Output(json_wanted=json_wanted)
    wanted = given(retention_days=retention_days, maximum_bytes=maximum_bytes, description=description)
    with connected() as client:
        view = client.logs.edit(log, checked(LogChange, **wanted))
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def delete(log: Log, json_wanted: JsonOption = False) -> int:
    """Delete a named log; refused while a job uses it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.logs.delete(log)
    output.say(f"Deleted the log {log}.")
    output.result({"deleted": log})
    return 0
