"""`tunesmith shape list | show`: the machines that jobs may run on, with what is free on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.connected import JsonOption, connected, noun, tell_fields, tell_table
from tunesmith.cli.output import Output
from tunesmith.errors import Unknown

if TYPE_CHECKING:
    from tunesmith.spec.api import ShapeView

app = noun("Machines that jobs may run on.")


@app.command("list")
def list_(json_wanted: JsonOption = False) -> int:
    """List the shapes, with what is free now."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        shapes = client.shapes()
    if not json_wanted:
        rows = [
            (
                each.name,
                each.accelerator or each.processor,
                len(each.devices),
                sum(not one.jobs for one in each.devices),
            )
            for each in shapes
        ]
        tell_table(output, ("shape", "computes on", "devices", "without a job"), rows, none="No shapes.")
    output.result({"shapes": [each.as_json() for each in shapes]})
    return 0


@app.command()
def show(
    shape: Annotated[str, typer.Argument(metavar="[SHAPE]", help="Its name.")] = "local",
    json_wanted: JsonOption = False,
) -> int:
    """Show a shape: processor, memory, devices, and the jobs on them."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = _named(client.shapes(), shape)
    if not json_wanted:
        tell_fields(output, {name: value for name, value in found.as_json().items() if name != "devices"})
        rows = [
            (each.name, each.model, f"{each.free_bytes / 1e9:,.1f} GB", f"{each.total_bytes / 1e9:,.1f} GB", each.jobs)
            for each in found.devices
        ]
        tell_table(output, ("device", "model", "free", "memory", "jobs"), rows, none="No devices.")
    output.result(found.as_json())
    return 0


def _named(shapes: list[ShapeView], name: str) -> ShapeView:
    found = next((each for each in shapes if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in shapes)
        raise Unknown(
            "UNKNOWN_SHAPE", f"There is no shape {name[:80]!r} here.", field="shape", hint=f"The shapes are: {known}."
        )
    return found
