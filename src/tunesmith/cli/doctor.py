"""`tunesmith doctor`: what this machine has, what is wrong with it, and the one command that mends it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, Any

import typer

from tunesmith import __version__
from tunesmith.cli.output import Output
from tunesmith.cli.report import gigabytes
from tunesmith.errors import MachineCannot, TunesmithError
from tunesmith.jobs.home import home_path, open_home
from tunesmith.plan.machine import Machine, machine_notices, this_machine

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "orjson", "typer", "rich")


@app.command()
def doctor(
    json_wanted: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")] = False,
) -> int:
    """Show versions, cores, free memory, free disk and GPUs; exit code 4 if something keeps jobs from running."""
    output = Output(json_wanted=json_wanted)
    examined = examine(os.environ)
    if json_wanted:
        output.result(examined)
    else:
        tell(examined, output=output)
    return 4 if any(problem["stops"] for problem in examined["problems"]) else 0


def examine(environment: Mapping[str, str]) -> dict[str, Any]:
    machine = this_machine(environment)
    home, home_error = home_path(environment), None
    try:
        open_home(environment)
    except MachineCannot as error:
        home_error = error
    existing = next(path for path in (home, *home.parents) if path.exists())
    free_disk = shutil.disk_usage(existing).free
    libraries = {name: _version(name) for name in LIBRARIES}
    found = problems(machine, libraries=libraries, free_disk=free_disk, home_error=home_error)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "system": machine.system,
        "processor": machine.processor,
        "cores": machine.cores,
        "memory": {"total_bytes": machine.total_memory_bytes, "free_bytes": machine.free_memory_bytes},
        "home": {"path": str(home), "is_writable": home_error is None, "free_bytes": free_disk},
        "device": machine.device,
        "gpus": [
            {"index": gpu.index, "name": gpu.name, "total_bytes": gpu.total_bytes, "free_bytes": gpu.free_bytes,
             "driver": gpu.driver}
            for gpu in machine.gpus
        ],
        "torch": {"version": machine.torch_version, "has_cuda": machine.has_cuda_torch},
        "libraries": libraries,
        "problems": found,
        "command": next((problem["command"] for problem in found if problem["command"]), None),
    }  # fmt: skip


def problems(
    machine: Machine, *, libraries: Mapping[str, str | None], free_disk: int, home_error: TunesmithError | None
) -> list[dict[str, Any]]:
    """What is wrong, the worst first; each with the command that mends it, where one does."""
    found: list[dict[str, Any]] = []

    def add(code: str, message: str, *, command: str | None, stops: bool) -> None:
        found.append({"code": code, "message": message, "command": command, "stops": stops})

    missing = [name for name, version in libraries.items() if version is None]
    if missing:
        add(
            "LIBRARY_MISSING",
            f"Not installed: {', '.join(missing)}.",
            command="python -m pip install --upgrade tunesmith",
            stops=True,
        )
    if home_error is not None:
        add(
            home_error.code,
            home_error.message,
            command="export TUNESMITH_HOME=$HOME/tunesmith",
            stops=True,
        )
    for notice in machine_notices(machine, free_disk_bytes=free_disk):
        add(notice.code, notice.message, command=notice.hint, stops=False)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tell(examined: Mapping[str, Any], *, output: Output) -> None:
    memory, home = examined["memory"], examined["home"]
    output.say(f"tunesmith  {examined['version']} on Python {examined['python']}, {examined['system']}")
    output.say(f"processor  {examined['processor']}, {examined['cores']} cores")
    output.say(f"memory     {gigabytes(memory['free_bytes'])} free of {gigabytes(memory['total_bytes'])}")
    output.say(f"home       {home['path']}, {gigabytes(home['free_bytes'])} of disk free")
    for gpu in examined["gpus"]:
        output.say(
            f"GPU {gpu['index']}      {gpu['name']}, {gigabytes(gpu['free_bytes'])} free of "
            f"{gigabytes(gpu['total_bytes'])}, driver {gpu['driver']}"
        )
    if not examined["gpus"]:
        output.say("GPU        none found: jobs run on the CPU")
    output.say("libraries  " + ", ".join(f"{name} {version or '-'}" for name, version in examined["libraries"].items()))
    for problem in examined["problems"]:
        output.say(f"! {problem['message']} ({problem['code']})")
    if examined["command"]:
        output.say(f"Mend it with:  {examined['command']}")
    elif not examined["problems"]:
        output.say("All is well.")
