"""The hub: search it, look at a model before it is downloaded, download it, and what became of that."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy as sa
from fastapi import Body, Query
from starlette.responses import Response

from tunesmith.catalog import downloads
from tunesmith.catalog.models import all_models
from tunesmith.errors import MachineCannot
from tunesmith.jobs.downloads import DownloadService, look
from tunesmith.server.once import IdempotencyKey, once
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import DownloadPage, DownloadQuery
from tunesmith.spec.hub import (
    DownloadView,
    HubModelDetail,
    HubModels,
    HubQuery,
    NewDownload,
)
from tunesmith.storage.hub import Hub


def search_hub(call: CallNow, query: Annotated[HubQuery, Query()]) -> HubModels:
    """Models of the hub by name, author, task, licence and size."""
    found = Hub(call.service.environment).search(query)
    with call.database.read() as connection:
        here = {(each.hub_id or each.name).lower() for each in all_models(connection)}
    return HubModels(models=[each.model_copy(update={"is_here": each.hub_id.lower() in here}) for each in found])


def look_at_hub_model(call: CallNow, new: Annotated[NewDownload, Body()]) -> HubModelDetail:
    """What a download would bring: the commit, its files and their size, what is left out and why, the room there is.

    Nothing is downloaded; what the download would be refused for is refused here.
    """
    return look(new, state=call.state, environment=call.service.environment).detail


def start_download(
    call: CallNow, new: Annotated[NewDownload, Body()], idempotency_key: IdempotencyKey = None
) -> Response:
    """Download a model, pinned by its commit, into a location, and register it. It goes on after a killed server."""
    service = _service(call)
    wanted = look(new, state=call.state, environment=call.service.environment)

    def make(connection: sa.Connection) -> str:
        return downloads.add_download(
            connection, new, name=wanted.name, revision=wanted.detail.revision, target_uri=wanted.detail.target_uri,
            plan=wanted.detail.plan, actor=call.actor,
        )  # fmt: skip

    download_id, is_new = once(call, idempotency_key, new, route="POST /api/downloads", make=make)
    service.wake()
    return created(show_download(call, download_id), is_new=is_new)


def list_downloads(call: CallNow, query: Annotated[DownloadQuery, Query()]) -> DownloadPage:
    """The newest first."""
    with call.database.read() as connection:
        page = downloads.list_downloads(connection, state=query.state, after=query.after, limit=query.limit)
    return DownloadPage(downloads=page.items, next=page.next)


def show_download(call: CallNow, download_id: str) -> DownloadView:
    """Its state and how far it is."""
    with call.database.read() as connection:
        return downloads.find_download(connection, download_id)


def cancel_download(call: CallNow, download_id: str) -> DownloadView:
    """End it; what had come of it is removed."""
    return call.database.write_grouped(
        lambda connection: downloads.cancel_download(connection, download_id, actor=call.actor)
    )


def resume_download(call: CallNow, download_id: str) -> DownloadView:
    """Go on with one that waits, failed or was cancelled; files that are whole are kept."""
    show_download(call, download_id)
    service = _service(call)
    view = call.database.write_grouped(
        lambda connection: downloads.resume_download(connection, download_id, actor=call.actor)
    )
    service.wake()
    return view


def _service(call: Call) -> DownloadService:
    if call.service.downloads is None:
        raise MachineCannot(
            "SERVER_NEEDED", "No server runs here: this process ends before a download would.", field="hub_id",
            hint="Start `tunesmith serve`, or download in the foreground: `tunesmith model download HUB_ID`.",
        )  # fmt: skip
    return call.service.downloads


EXAMPLE = {"hub_id": "Qwen/Qwen3-0.6B", "revision": "main", "location": "team-models"}
DOWNLOAD = "/api/downloads/{download_id}"
ROUTES = [
    Route(
        method="GET", path="/api/hub/models", handler=search_hub, permission="hub.read", summary="Search the hub",
        answer=HubModels, refusals=(409,),
    ),
    Route(
        method="POST", path="/api/hub/look", handler=look_at_hub_model, permission="hub.read",
        summary="Look at a model of the hub", answer=HubModelDetail, refusals=(404, 409), body="json",
        request_example=EXAMPLE,
    ),
    Route(
        method="GET", path="/api/downloads", handler=list_downloads, permission="download.read",
        summary="List downloads", answer=DownloadPage,
    ),
    Route(
        method="POST", path="/api/downloads", handler=start_download, permission="model.download",
        summary="Download a model", answer=DownloadView, status=201, statuses=(200,), refusals=(404, 409),
        body="json", request_example=EXAMPLE,
    ),
    Route(
        method="GET", path=DOWNLOAD, handler=show_download, permission="download.read", summary="Show a download",
        answer=DownloadView, refusals=(404,),
    ),
    Route(
        method="POST", path=f"{DOWNLOAD}/cancel", handler=cancel_download, permission="download.cancel",
        summary="Cancel a download", answer=DownloadView, refusals=(404, 409),
    ),
    Route(
        method="POST", path=f"{DOWNLOAD}/resume", handler=resume_download, permission="model.download",
        summary="Resume a download", answer=DownloadView, refusals=(404, 409),
    ),
]  # fmt: skip
