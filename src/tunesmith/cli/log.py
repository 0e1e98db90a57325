"""`tunesmith log list | show | search | download | uses | add | edit | delete`: named logs and what they keep."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    SearchOption,
    complete_log,
    connected,
    given,
    noun,
    tell_fields,
    tell_table,
    tell_uses,
)
from tunesmith.cli.output import Output

app = noun("Named logs of jobs: how much of them is kept, and how long.")
Log = Annotated[str, typer.Argument(metavar="LOG", help="Its name.", autocompletion=complete_log)]
Days = Annotated[
    int | None, typer.Option("--retention-days", help="A finished job's log is removed after this many days.")
]
Bytes = Annotated[int | None, typer.Option("--maximum-bytes", help="Of all its jobs' logs together.")]


@app.command("list")
def list_(search: SearchOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the named logs."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        logs = client.logs.list(search=search, limit=limit)
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
def search(
    log: Log,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Lines that hold it; upper and lower case are alike.")],
    lines: Annotated[int, typer.Option("--lines", min=1, max=10_000, help="At most so many, the newest.")] = 200,
    json_wanted: JsonOption = False,
) -> int:
    """Search what all the jobs of a named log wrote."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.logs.lines(log, lines=lines, search=text)
    for each in found:
        output.say(f"{each.job_id}  {each.line}")
    if not found:
        output.say("No line holds it.")
    output.result({"log": log, "lines": [each.as_json() for each in found]})
    return 0


@app.command()
def download(
    log: Log,
    target: Annotated[str | None, typer.Argument(metavar="FILE", help="A new file; default: LOG.log.")] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Write what a named log keeps of all its jobs into one file."""
    from tunesmith.client.export import require_new_file

    output = Output(json_wanted=json_wanted)
    path = require_new_file(target or f"{log}.log")
    with connected() as client:
        client.logs.download(log, path)
    size = path.stat().st_size
    output.say(f"Wrote {path} ({size:,} bytes)")
    output.result({"log": log, "path": str(path.absolute()), "bytes": size})
    return 0


@app.command()
def uses(log: Log, json_wanted: JsonOption = False) -> int:
    """List what uses it now, and so forbids deleting it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.logs.uses(log)
    if not json_wanted:
        tell_uses(output, found)
    output.result({"log": log, **found.as_json()})
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
