"""`tunesmith system show | permissions`: the server that is talked to, and who may do what on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.cli.connected import JsonOption, connected, noun, tell_fields, tell_table
from tunesmith.cli.output import Output

if TYPE_CHECKING:
    from tunesmith.spec.api import Allowance

app = noun("The server that commands talk to.")


@app.command()
def show(json_wanted: JsonOption = False) -> int:
    """Show which server answers, its release, disk, devices and unfinished jobs."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        system, endpoint = client.system(), client.wire.endpoint
    where = "none; this command worked on the state folder itself" if endpoint.is_in_process else endpoint.url
    machine = system.machine
    if not json_wanted:
        tell_fields(
            output,
            {
                "server": where,
                "release": system.version,
                "disk": f"{system.disk_free_bytes / 1e9:,.1f} GB free of {system.disk_total_bytes / 1e9:,.1f} GB",
                "jobs": {state.value: count for state, count in system.jobs.items()},
                "since": system.started_at[:19],
                "processor": f"{machine.processor}, {machine.cores} cores",
                "memory": f"{machine.free_memory_bytes / 1e9:,.1f} GB free of "
                f"{machine.total_memory_bytes / 1e9:,.1f} GB",
                "database": f"{system.database_bytes / 1e6:,.1f} MB",
                "trains on": machine.trains_on,
                "torch": machine.torch_version,
                "answering": system.answering,
            },
        )
        for gpu in machine.gpus:
            output.say(
                f"GPU {gpu.index}: {gpu.name}, {gpu.free_bytes / 1e9:,.1f} GB free of {gpu.total_bytes / 1e9:,.1f} GB, "
                f"driver {gpu.driver}"
            )
        rows = [(each.name, f"{each.free_bytes / 1e9:,.1f} GB", each.jobs) for each in system.devices]
        tell_table(output, ("device", "free", "jobs"), rows, none="No devices are told.")
        for notice in system.notices:
            output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
    output.result({"server": None if endpoint.is_in_process else endpoint.url, **system.as_json()})
    return 0


@app.command()
def permissions(json_wanted: JsonOption = False) -> int:
    """Show who may do what: every permission, who has it and by which policies, and the requests that it opens."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.permissions()
    if not json_wanted:
        rows = [
            (
                each.permission,
                [*each.who, *(_allowance(by, where=each.is_of_project) for by in each.policies)],
                [route.summary for route in each.routes],
            )
            for each in found
        ]
        tell_table(output, ("permission", "who", "what it opens"), rows, none="No permissions.")
    output.result({"permissions": [each.as_json() for each in found]})
    return 0


def _allowance(by: Allowance, *, where: bool) -> str:
    return f"{by.policy} in {' '.join(by.projects)}" if where else by.policy
