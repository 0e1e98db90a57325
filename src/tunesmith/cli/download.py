"""`tunesmith download list | show | cancel | resume`, and `model download`: models on their way from the hub.

A server does the work and goes on without this command; where none runs, the command does it itself, in the foreground.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    TagsOption,
    bytes_bar,
    complete_location,
    completing,
    connected,
    noun,
    read_tags,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output
from tunesmith.errors import Conflict, JobFailed
from tunesmith.spec.hub import DownloadState, DownloadView, HubModelDetail, NewDownload

if TYPE_CHECKING:
    from tunesmith.client.synchronous.client import Client

app = noun("Downloads of base models from the hub.")
complete_download = completing(lambda client: [each.download_id for each in client.downloads.list(limit=50)])
Download = Annotated[str, typer.Argument(metavar="DOWNLOAD", help="Its id.", autocompletion=complete_download)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Tell size, room and files; download nothing.")]
DetachOption = Annotated[bool, typer.Option("--detach", help="Do not wait for the server to finish it.")]


@app.command("list")
def list_(
    state: Annotated[DownloadState | None, typer.Option(help="Only those in this state.")] = None,
    limit: LimitOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """List downloads, the newest first."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        views = client.downloads.list(state=state, limit=limit)
    if not json_wanted:
        rows = [(each.download_id, each.state, _share(each), each.hub_id, each.name, each.created_at) for each in views]
        tell_table(output, ("download", "state", "done", "model", "name", "since"), rows, none="There is no download.")
    output.result({"downloads": [each.as_json() for each in views]})
    return 0


@app.command()
def show(download: Download, json_wanted: JsonOption = False) -> int:
    """Show how far a download is, and what was left out."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.downloads.get(download)
    _tell(output, view)
    output.result(view.as_json())
    return 0


@app.command()
def cancel(download: Download, json_wanted: JsonOption = False) -> int:
    """End a download; what had come of it is removed."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.downloads.cancel(download)
    output.say(f"{view.download_id} {'is being cancelled' if view.is_cancel_wanted else 'is cancelled'}.")
    output.result(view.as_json())
    return 0


@app.command()
def resume(download: Download, detach: DetachOption = False, json_wanted: JsonOption = False) -> int:
    """Go on with a download that waits, failed or was cancelled; whole files are kept."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        if client.wire.endpoint.is_in_process:
            view = _resume_here(client, download, output)
        else:
            view = _followed(client, client.downloads.resume(download), output, detach=detach)
    return _ended(output, view)


def download_model(
    hub_id: Annotated[str, typer.Argument(metavar="HUB_ID", help="OWNER/NAME on the hub.")],
    revision: Annotated[str, typer.Option(help="A commit, a branch or a tag; it is pinned by its commit.")] = "main",
    name: Annotated[str | None, typer.Option("--name", help="In the catalog; default: the hub id.")] = None,
    location: Annotated[
        str | None,
        typer.Option(help="A declared location; default: the state folder.", autocompletion=complete_location),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Only files like this, as in *.json; once for each.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="No files like this.")] = None,
    description: DescriptionOption = None,
    tag: TagsOption = None,
    dry_run: DryRunOption = False,
    detach: DetachOption = False,
    json_wanted: JsonOption = False,
) -> int:
    """Download a model from the hub and register it: size and room are told first, a broken download goes on.

    Weights in pickles are never downloaded. A gated model needs HF_TOKEN in the server's environment.
    """
    wishes: dict[str, Any] = {
        "hub_id": hub_id, "revision": revision, "name": name, "location": location, "include": include or [],
        "exclude": exclude or [], "description": description or "", "tags": read_tags(tag) or {},
    }  # fmt: skip
    return bring(wishes, output=Output(json_wanted=json_wanted), dry_run=dry_run, detach=detach)


def bring(wishes: dict[str, Any], *, output: Output, dry_run: bool = False, detach: bool = False) -> int:
    """`model download`, and `model register NAME HUB_ID`."""
    from tunesmith.cli.checked import checked

    new = checked(NewDownload, **wishes)
    given = new.model_dump(exclude={"hub_id"})
    with connected() as client:
        detail = client.hub.look(new.hub_id, **given)
        _tell_look(output, detail)
        if dry_run:
            output.result(detail.as_json())
            return 0
        if client.wire.endpoint.is_in_process:
            view = _start_here(client, new, output)
        else:
            view = _followed(client, client.downloads.start(new.hub_id, **given), output, detach=detach)
    return _ended(output, view)


def _tell_look(output: Output, detail: HubModelDetail) -> None:
    from tunesmith.cli.report import gigabytes

    room = f"; {gigabytes(detail.free_bytes)} are free there" if detail.free_bytes is not None else ""
    output.say(
        f"{detail.model.hub_id} at {detail.revision[:12]}: {gigabytes(detail.bytes)} to {detail.target_uri}{room}"
    )
    output.say(f"licence: {detail.model.licence or 'not stated'}" + (" (gated)" if detail.model.is_gated else ""))
    for notice in detail.notices:
        output.say(f"! {notice.message}")


def _followed(client: Client, view: DownloadView, output: Output, *, detach: bool) -> DownloadView:
    if detach:
        return view
    output.say(f"{view.download_id}; interrupting this command does not end it.")
    with bytes_bar(output) as progress:
        return client.downloads.wait(
            view.download_id, progress=progress, waits=lambda reason: output.say(f"Waiting: {reason}")
        )


def _start_here(client: Client, new: NewDownload, output: Output) -> DownloadView:
    from tunesmith.jobs.downloads import accept, look
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.state import open_state
    from tunesmith.spec.catalog import LOCAL_USER

    state = open_state(open_home(os.environ))
    wanted = look(new, state=state, environment=os.environ)
    download_id = accept(wanted, state=state, actor=LOCAL_USER)
    return _run_here(client, download_id, output)


def _resume_here(client: Client, download_id: str, output: Output) -> DownloadView:
    from tunesmith.catalog.downloads import resume_download
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.state import open_state
    from tunesmith.spec.catalog import LOCAL_USER

    state = open_state(open_home(os.environ))
    view = client.downloads.get(download_id)
    if view.state is not DownloadState.RUNNING:  # one that a killed command left is gone on with
        with state.database.write() as connection:
            resume_download(connection, download_id, actor=LOCAL_USER)
    return _run_here(client, download_id, output)


def _run_here(client: Client, download_id: str, output: Output) -> DownloadView:
    from tunesmith.jobs.downloads import run_download
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.state import open_state

    output.say(f"{download_id}; no server runs, so this command does it.")
    state = open_state(open_home(os.environ))
    with bytes_bar(output) as progress:
        if not run_download(download_id, state=state, environment=os.environ, progress=progress):
            raise Conflict("DOWNLOAD_RUNNING", f"Another process is at {download_id}.", field="download_id")
    return client.downloads.get(download_id)


def _ended(output: Output, view: DownloadView) -> int:
    """Raises the download's own failure."""
    if view.state is DownloadState.FAILED and view.failure is not None:
        form = view.failure
        raise JobFailed(form["code"], form["message"], field=form["field"], hint=form["hint"])
    if view.state is DownloadState.CANCELED:
        raise JobFailed(
            "DOWNLOAD_CANCELED", f"The download {view.download_id} was canceled.", field="download_id",
            hint=f"`tunesmith download resume {view.download_id}` begins it anew.",
        )  # fmt: skip
    if view.state is DownloadState.WAITING and view.waiting_reason is not None:
        output.say(f"{view.download_id} waits: {view.waiting_reason}")
    elif view.state is DownloadState.SUCCEEDED:
        output.say(f"Model {view.name}: {view.target_uri}")
    else:
        output.say(f"{view.download_id} is {view.state}.")
    output.result(view.as_json())
    return 0


def _share(view: DownloadView) -> str:
    return f"{100 * view.bytes_done // max(1, view.bytes_total)}%"


def _tell(output: Output, view: DownloadView) -> None:
    fields = view.as_json()
    fields |= {"left_out": [each.path for each in view.left_out], "done": _share(view)}
    fields["failure"] = view.failure["message"] if view.failure is not None else None
    tell_fields(output, fields)
