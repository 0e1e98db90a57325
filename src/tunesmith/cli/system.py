"""`tunesmith system show`: the server that is talked to."""

from __future__ import annotations

from tunesmith.cli.connected import JsonOption, connected, noun, tell_fields, tell_table
from tunesmith.cli.output import Output

app = noun("The server that commands talk to.")


@app.command()
def show(json_wanted: JsonOption = False) -> int:
    """Show which server answers, its release, disk, devices and unfinished jobs."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        system, endpoint = client.system(), client.wire.endpoint
    where = "none; this command worked on the state folder itself" if endpoint.is_in_process else endpoint.url
    if not json_wanted:
        tell_fields(
            output,
            {
                "server": where,
                "release": system.version,
                "disk": f"{system.disk_free_bytes / 1e9:,.1f} GB free of {system.disk_total_bytes / 1e9:,.1f} GB",
                "jobs": {state.value: count for state, count in system.jobs.items()},
            },
        )
        rows = [(each.name, f"{each.free_bytes / 1e9:,.1f} GB", each.jobs) for each in system.devices]
        tell_table(output, ("device", "free", "jobs"), rows, none="No devices are told.")
    output.result({"server": None if endpoint.is_in_process else endpoint.url, **system.as_json()})
    return 0
