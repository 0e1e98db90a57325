"""`tunesmith quota list | show | edit | reset`: what a principal may take up, and what it does."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunesmith.cli.connected import JsonOption, LimitOption, connected, given, noun, tell_table
from tunesmith.cli.output import Output

app = noun("Quotas: what a principal may take up, and what it does.")
Principal = Annotated[
    str,
    typer.Argument(metavar="[PRINCIPAL]", help="A token's name; absent: everybody without quotas of his own."),
]


@app.command("list")
def list_(limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List everybody's quotas, and those who use something or have quotas of their own."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.quotas.list(limit=limit)
    for view in found:
        _tell(output, view)
    output.result({"quotas": [view.as_json() for view in found]})
    return 0


@app.command()
def show(principal: Principal = "*", json_wanted: JsonOption = False) -> int:
    """Show the quotas that hold for a principal, and what it uses."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.quotas.get(principal)
    _tell(output, view)
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    principal: Principal = "*",
    queued_jobs: Annotated[int | None, typer.Option("--queued-jobs", help="Unfinished jobs at a time.")] = None,
    versions: Annotated[int | None, typer.Option("--versions", help="Model versions that were not deleted.")] = None,
    datasets: Annotated[int | None, typer.Option("--datasets", help="Registered datasets.")] = None,
    uploaded_bytes: Annotated[
        int | None, typer.Option("--uploaded-bytes", help="Bytes of uploaded datasets together.")
    ] = None,
    log_bytes: Annotated[
        int | None, typer.Option("--log-bytes", help="Of what one job's workers write; the newest are kept.")
    ] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change quotas of a principal, or everybody's. Nothing that is there is taken away."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.quotas import QuotaChange

    output = Output(json_wanted=json_wanted)
    wanted = given(
        queued_jobs=queued_jobs, versions=versions, datasets=datasets, uploaded_bytes=uploaded_bytes,
        log_bytes=log_bytes,
    )  # fmt: skip
    with connected() as client:
        view = client.quotas.edit(principal, checked(QuotaChange, **wanted))
    _tell(output, view)
    output.result(view.as_json())
    return 0


@app.command()
def reset(principal: Principal = "*", json_wanted: JsonOption = False) -> int:
    """Give a principal everybody's quotas; everybody's go back to the defaults."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.quotas.reset(principal)
        view = client.quotas.get(principal)
    _tell(output, view)
    output.result(view.as_json())
    return 0


def _tell(output: Output, view: Any) -> None:
    output.say("everybody" if view.principal == "*" else view.principal)
    used: dict[str, int] = view.used.as_json()
    rows = [
        (f"  {name}", used.get(name), limit, "own" if name in view.own else "")
        for name, limit in view.limits.as_json().items()
    ]
    tell_table(output, ("  quota", "used", "limit", ""), rows, none="")
