"""The nouns of the service but for jobs: one class each, one method a route.

Lists follow the server's pages: all of them, or the first `limit`. A method that changes a noun returns it as it is
then. Names, ids and paths go into addresses quoted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.streams import FileBody, Progress
from tunesmith.spec.api import DatasetPreview
from tunesmith.spec.catalog import (
    AliasView,
    AuditView,
    BaseModelChange,
    BaseModelView,
    Comparison,
    DatasetView,
    LocationView,
    LogChange,
    LogView,
    NetworkView,
    NewBaseModel,
    NewLocation,
    NewLog,
    NewNetwork,
    NewToken,
    NounChange,
    TokenView,
    VersionDetail,
    VersionMetrics,
    VersionSetView,
    VersionView,
)
from tunesmith.spec.datasets import DatasetReport

PathLike = str | os.PathLike[str]


def part(text: str) -> str:
    """One part of an address; `set:3` and `set@prod` stay as they read."""
    return quote(text, safe=":@")


class _Noun:
    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire


class AsyncModels(_Noun):
    """Base models of the catalog."""

    async def list(
        self, *, search: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> list[BaseModelView]:
        query = {"search": search, "tag": tag}
        return await self._wire.pages(BaseModelView, "/api/models", "models", query=query, limit=limit)

    async def get(self, name: str) -> BaseModelView:
        return await self._wire.fetch(BaseModelView, "GET", f"/api/models/{quote(name)}")

    async def register(
        self, name: str, path: PathLike, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> BaseModelView:
        """A folder on the server's machine, under a name."""
        new = NewBaseModel(name=name, path=os.fspath(path), description=description, tags=dict(tags or {}))
        return await self._wire.fetch(BaseModelView, "POST", "/api/models", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: BaseModelChange) -> BaseModelView:
        return await self._wire.fetch(BaseModelView, "PATCH", f"/api/models/{quote(name)}", body=_given(change))

    async def delete(self, name: str) -> None:
        """Forget it; its folder stays as it is."""
        await self._wire.send("DELETE", f"/api/models/{quote(name)}")


class AsyncDatasets(_Noun):
    """Datasets: uploaded, or registered where they lie in a declared location."""

    async def list(
        self, *, search: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> list[DatasetView]:
        query = {"search": search, "tag": tag}
        return await self._wire.pages(DatasetView, "/api/datasets", "datasets", query=query, limit=limit)

    async def get(self, dataset_id: str) -> DatasetView:
        return await self._wire.fetch(DatasetView, "GET", f"/api/datasets/{part(dataset_id)}")

    async def upload(
        self,
        path: PathLike,
        *,
        name: str | None = None,
        columns: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> DatasetView:
        """Send a file of this machine. It streams from the disk, and is checked while it arrives."""
        file = FileBody(Path(path), progress)
        query = {"name": name or file.path.stem, "filename": file.path.name, "columns": _columns(columns)}
        return await self._wire.fetch(DatasetView, "POST", "/api/datasets", query=query, file=file, creates=True)

    async def register(
        self, location: str, path: str, *, name: str | None = None, columns: Mapping[str, str] | None = None
    ) -> DatasetView:
        """An object of a declared location, pinned by its version."""
        body: dict[str, Any] = {"name": name or path.rpartition("/")[2], "location": location, "path": path}
        body |= {"columns": dict(columns)} if columns else {}
        return await self._wire.fetch(DatasetView, "POST", "/api/datasets", body=body, creates=True)

    async def edit(self, dataset_id: str, change: NounChange) -> DatasetView:
        return await self._wire.fetch(DatasetView, "PATCH", f"/api/datasets/{part(dataset_id)}", body=_given(change))

    async def report(self, dataset_id: str) -> DatasetReport:
        return await self._wire.fetch(DatasetReport, "GET", f"/api/datasets/{part(dataset_id)}/report")

    async def preview(
        self, dataset_id: str, model: str, *, render: Literal["auto", "chat", "plain"] = "auto"
    ) -> DatasetPreview:
        """Some rows as this model would learn them, in pieces of text learned or not."""
        query = {"model": model, "render": render}
        return await self._wire.fetch(DatasetPreview, "GET", f"/api/datasets/{part(dataset_id)}/preview", query=query)

    async def delete(self, dataset_id: str) -> None:
        await self._wire.send("DELETE", f"/api/datasets/{part(dataset_id)}")


class AsyncVersions(_Noun):
    """Model versions, by `set:number` or `set@alias`."""

    async def list(
        self,
        *,
        search: str | None = None,
        version_set: str | None = None,
        state: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> list[VersionView]:
        query = {"search": search, "set": version_set, "state": state, "tag": tag}
        return await self._wire.pages(VersionView, "/api/versions", "versions", query=query, limit=limit)

    async def get(self, version: str) -> VersionDetail:
        return await self._wire.fetch(VersionDetail, "GET", _version(version))

    async def edit(self, version: str, change: NounChange) -> VersionView:
        return await self._wire.fetch(VersionView, "PATCH", _version(version), body=_given(change))

    async def delete(self, version: str, *, with_bytes: bool) -> None:
        """Refused while an alias points at it. with_bytes: the artifact goes too, not only its entry."""
        await self._wire.send("DELETE", _version(version), query={"bytes": str(with_bytes).lower()})

    async def metrics(self, version: str) -> VersionMetrics:
        return await self._wire.fetch(VersionMetrics, "GET", _version(version) + "/metrics")

    async def compare(self, left: str, right: str) -> Comparison:
        return await self._wire.fetch(Comparison, "GET", "/api/compare", query={"left": left, "right": right})

    async def export(self, version: str, target: PathLike, *, progress: Progress | None = None) -> Path:
        """The whole artifact as one zip file at `target`, there when it is complete."""
        return await self._wire.download(_version(version) + "/export", Path(target), progress=progress)

    async def download(self, version: str, path: str, target: PathLike) -> Path:
        """One file of the artifact."""
        return await self._wire.download(f"{_version(version)}/files/{quote(path)}", Path(target))


class AsyncVersionSets(_Noun):
    async def list(self, *, limit: int | None = None) -> list[VersionSetView]:
        return await self._wire.pages(VersionSetView, "/api/version-sets", "version_sets", limit=limit)

    async def get(self, name: str) -> VersionSetView:
        return await self._wire.fetch(VersionSetView, "GET", f"/api/version-sets/{part(name)}")

    async def edit(self, name: str, *, description: str) -> VersionSetView:
        return await self._wire.fetch(
            VersionSetView, "PATCH", f"/api/version-sets/{part(name)}", body={"description": description}
        )

    async def set_alias(self, name: str, alias: str, number: int) -> AliasView:
        """Point an alias at a version; one that was there is moved."""
        return await self._wire.fetch(
            AliasView, "PUT", f"/api/version-sets/{part(name)}/aliases/{part(alias)}", body={"number": number}
        )

    async def delete_alias(self, name: str, alias: str) -> None:
        await self._wire.send("DELETE", f"/api/version-sets/{part(name)}/aliases/{part(alias)}")


class AsyncLocations(_Noun):
    """Declared places of datasets and results."""

    async def list(self, *, limit: int | None = None) -> list[LocationView]:
        return await self._wire.pages(LocationView, "/api/locations", "locations", limit=limit)

    async def get(self, name: str) -> LocationView:
        return await self._wire.fetch(LocationView, "GET", f"/api/locations/{part(name)}")

    async def add(self, new: NewLocation) -> LocationView:
        return await self._wire.fetch(LocationView, "POST", "/api/locations", body=new.as_json(), creates=True)

    async def check(self, name: str) -> dict[str, Any]:
        """Whether it answers, can be written and keeps versions. Raises the refusal that a job would meet."""
        return await self._wire.document("POST", f"/api/locations/{part(name)}/check")

    async def browse(self, name: str, path: str = "", *, limit: int | None = None) -> list[dict[str, Any]]:
        """What lies under a path of the location."""
        query = {"path": path or None}
        return await self._wire.rows(f"/api/locations/{part(name)}/browse", "entries", query=query, limit=limit)

    async def delete(self, name: str) -> None:
        await self._wire.send("DELETE", f"/api/locations/{part(name)}")


class AsyncLogs(_Noun):
    """Named logs: how long and how much of their jobs' logs is kept."""

    async def list(self, *, limit: int | None = None) -> list[LogView]:
        return await self._wire.pages(LogView, "/api/logs", "logs", limit=limit)

    async def get(self, name: str) -> LogView:
        return await self._wire.fetch(LogView, "GET", f"/api/logs/{part(name)}")

    async def add(self, new: NewLog) -> LogView:
        return await self._wire.fetch(LogView, "POST", "/api/logs", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: LogChange) -> LogView:
        return await self._wire.fetch(LogView, "PATCH", f"/api/logs/{part(name)}", body=_given(change))

    async def delete(self, name: str) -> None:
        await self._wire.send("DELETE", f"/api/logs/{part(name)}")


class AsyncNetworks(_Noun):
    async def list(self, *, limit: int | None = None) -> list[NetworkView]:
        return await self._wire.pages(NetworkView, "/api/networks", "networks", limit=limit)

    async def get(self, name: str) -> NetworkView:
        return await self._wire.fetch(NetworkView, "GET", f"/api/networks/{part(name)}")

    async def add(self, new: NewNetwork) -> NetworkView:
        return await self._wire.fetch(NetworkView, "POST", "/api/networks", body=new.as_json(), creates=True)

    async def delete(self, name: str) -> None:
        await self._wire.send("DELETE", f"/api/networks/{part(name)}")


class AsyncTokens(_Noun):
    async def list(self, *, limit: int | None = None) -> list[TokenView]:
        return await self._wire.pages(TokenView, "/api/tokens", "tokens", limit=limit)

    async def create(self, new: NewToken) -> dict[str, Any]:
        """A new token with its text, which is told this once."""
        return await self._wire.document("POST", "/api/tokens", body=new.as_json(), creates=True)

    async def revoke(self, token_id: str) -> None:
        await self._wire.send("DELETE", f"/api/tokens/{part(token_id)}")


class AsyncAudit(_Noun):
    """Who did what; the newest first."""

    async def list(self, *, limit: int | None = None) -> list[AuditView]:
        return await self._wire.pages(AuditView, "/api/audit", "audit", limit=limit)


def _version(version: str) -> str:
    return f"/api/versions/{part(version)}"


def _given(change: Any) -> dict[str, Any]:
    """The fields that the caller set; the others stay as they are."""
    return change.model_dump(mode="json", exclude_unset=True)


def _columns(columns: Mapping[str, str] | None) -> str | None:
    return ",".join(f"{ours}={theirs}" for ours, theirs in columns.items()) if columns else None
