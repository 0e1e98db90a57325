"""The nouns of the service but for jobs: one class each, one method a route.

Lists follow the server's pages: all of them, or the first `limit`. A method that changes a noun returns it as it is
then. Names, ids and paths go into addresses quoted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx2

from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.export import ExportFolder, is_zip
from tunesmith.client.streams import FileBody, Progress, async_sleep
from tunesmith.spec.access import NewPolicy, NewProject, PolicyChange, PolicyView, ProjectChange, ProjectView
from tunesmith.spec.answers import DEFAULT_TOKENS, Answer, AnswerList
from tunesmith.spec.api import (
    DatasetPreview,
    DatasetRow,
    DatasetRowPage,
    DatasetUses,
    NamedLogLine,
    NamedLogLines,
    Uses,
)
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest
from tunesmith.spec.catalog import (
    AliasView,
    AuditView,
    BaseModelChange,
    BaseModelView,
    Comparison,
    DatasetView,
    LineageGraph,
    LocationChange,
    LocationView,
    LogChange,
    LogView,
    NetworkChange,
    NetworkView,
    NewBaseModel,
    NewLocation,
    NewLog,
    NewNetwork,
    NewToken,
    NewVersion,
    NounChange,
    TokenView,
    VersionDetail,
    VersionMetrics,
    VersionSetView,
    VersionView,
)
from tunesmith.spec.datasets import DatasetReport
from tunesmith.spec.explorer import ExplorerQuery, ModelCard, ModelDetail, ScannedLocation, TemplatePreview
from tunesmith.spec.faults import checked
from tunesmith.spec.hub import ENDED, DownloadView, HubModel, HubModelDetail, HubModels, HubQuery, NewDownload
from tunesmith.spec.quotas import EVERYBODY, QuotaChange, QuotaView

LOOK_SECONDS = 0.5
PathLike = str | os.PathLike[str]
ANSWERS_TIMEOUT = httpx2.Timeout(None, connect=5.0)  # a large model loads for minutes, then each prompt takes its time


def part(text: str) -> str:
    """One part of an address; `set:3` and `set@prod` stay as they read."""
    return quote(text, safe=":@")


class _Noun:
    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire


class AsyncModels(_Noun):
    """Base models: those of the catalog, and in the explorer well-known ones too."""

    async def explore(self, search: str | None = None, *, limit: int | None = None, **filters: Any) -> list[ModelCard]:
        """Cards of what is here and what is known. filters: as `ExplorerQuery` has them (label, family, sort, ...)."""
        query = checked(ExplorerQuery, {"search": search, **filters}).model_dump(mode="json", exclude_unset=True)
        return await self._wire.pages(ModelCard, "/api/explorer", "cards", query=query, limit=limit)

    async def detail(self, name: str) -> ModelDetail:
        """All about one model that is here or known: facts and sources, memory needed here, fine-tuned versions."""
        return await self._wire.fetch(ModelDetail, "GET", f"/api/explorer/model/{quote(name)}")

    async def template(self, name: str) -> TemplatePreview:
        """A short conversation as the model reads it."""
        return await self._wire.fetch(TemplatePreview, "GET", f"/api/explorer/template/{quote(name)}")

    async def list(
        self, *, search: str | None = None, tag: str | None = None, limit: int | None = None
    ) -> list[BaseModelView]:
        query = {"search": search, "tag": tag}
        return await self._wire.pages(BaseModelView, "/api/models", "models", query=query, limit=limit)

    async def get(self, name: str) -> BaseModelView:
        return await self._wire.fetch(BaseModelView, "GET", f"/api/models/{quote(name)}")

    async def register(
        self,
        name: str,
        path: PathLike,
        *,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        licence_note: str = "",
    ) -> BaseModelView:
        """A folder on the server's machine, `LOCATION:path` or `s3://bucket/prefix`, under a name."""
        fields = {"name": name, "path": os.fspath(path), "description": description, "tags": dict(tags or {})}
        new = checked(NewBaseModel, {**fields, "licence_note": licence_note})
        return await self._wire.fetch(BaseModelView, "POST", "/api/models", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: BaseModelChange) -> BaseModelView:
        return await self._wire.fetch(BaseModelView, "PATCH", f"/api/models/{quote(name)}", body=_given(change))

    async def delete(self, name: str) -> None:
        """Forget it; its folder stays as it is."""
        await self._wire.send("DELETE", f"/api/models/{quote(name)}")


class AsyncHub(_Noun):
    """The Hugging Face Hub, as the server reaches it."""

    async def search(self, search: str | None = None, **filters: Any) -> list[HubModel]:
        """filters: as `HubQuery` has them (author, task, licence, minimum_parameters, limit, ...)."""
        query = checked(HubQuery, {"search": search, **filters}).model_dump(mode="json", exclude_unset=True)
        return (await self._wire.fetch(HubModels, "GET", "/api/hub/models", query=query)).models

    async def look(self, hub_id: str, **wishes: Any) -> HubModelDetail:
        """What a download of the same wishes would bring; nothing is downloaded."""
        new = checked(NewDownload, {"hub_id": hub_id, **wishes})
        return await self._wire.fetch(
            HubModelDetail, "POST", "/api/hub/look", body=new.model_dump(mode="json", exclude_unset=True)
        )


class AsyncDownloads(_Noun):
    """Base models on their way from the hub."""

    async def start(self, hub_id: str, **wishes: Any) -> DownloadView:
        """wishes: as `NewDownload` has them (revision, name, location, include, exclude, description, tags)."""
        body = checked(NewDownload, {"hub_id": hub_id, **wishes}).model_dump(mode="json", exclude_unset=True)
        return await self._wire.fetch(DownloadView, "POST", "/api/downloads", body=body, creates=True)

    async def list(self, *, state: str | None = None, limit: int | None = None) -> list[DownloadView]:
        query = {"state": state}
        return await self._wire.pages(DownloadView, "/api/downloads", "downloads", query=query, limit=limit)

    async def get(self, download_id: str) -> DownloadView:
        return await self._wire.fetch(DownloadView, "GET", f"/api/downloads/{part(download_id)}")

    async def wait(
        self, download_id: str, *, progress: Progress | None = None, waits: Callable[[str], None] | None = None
    ) -> DownloadView:
        """Until it ended, whatever the end. waits: told why it stands still, once for each reason."""
        reason: str | None = None
        while (view := await self.get(download_id)).state not in ENDED:
            if progress is not None:
                progress(view.bytes_done, view.bytes_total)
            if view.waiting_reason not in (None, reason) and waits is not None:
                waits(view.waiting_reason)
            reason = view.waiting_reason
            await async_sleep(LOOK_SECONDS)
        return view

    async def cancel(self, download_id: str) -> DownloadView:
        return await self._wire.fetch(DownloadView, "POST", f"/api/downloads/{part(download_id)}/cancel")

    async def resume(self, download_id: str) -> DownloadView:
        return await self._wire.fetch(DownloadView, "POST", f"/api/downloads/{part(download_id)}/resume")


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
        self,
        dataset_id: str,
        model: str,
        *,
        render: Literal["auto", "chat", "plain"] = "auto",
        lines: Sequence[int] = (),
        spans: bool = False,
    ) -> DatasetPreview:
        """Some rows as this model would learn them, in pieces of text learned or not.

        lines: rows by the lines at which they start; without any the longest, the shortest and two others.
        spans: token by token, too.
        """
        query: dict[str, Any] = {"model": model, "render": render}
        query |= {"lines": ",".join(str(line) for line in lines)} if lines else {}
        query |= {"spans": "true"} if spans else {}
        return await self._wire.fetch(DatasetPreview, "GET", f"/api/datasets/{part(dataset_id)}/preview", query=query)

    async def rows(self, dataset_id: str, *, after: int = 0, limit: int = 20) -> list[DatasetRow]:
        """Rows behind line `after`, with what the check found in each."""
        path = f"/api/datasets/{part(dataset_id)}/rows"
        page = await self._wire.fetch(DatasetRowPage, "GET", path, query={"after": after, "limit": limit})
        return page.rows

    async def uses(self, dataset_id: str) -> DatasetUses:
        """What was trained on it, and its other versions."""
        return await self._wire.fetch(DatasetUses, "GET", f"/api/datasets/{part(dataset_id)}/uses")

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

    async def register(
        self,
        path: PathLike,
        version_set: str,
        *,
        base: str | None = None,
        render: Literal["auto", "chat", "plain"] = "auto",
        name: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
        metrics: VersionMetrics | None = None,
        results: str | None = None,
    ) -> VersionDetail:
        """An adapter in PEFT's format that was trained elsewhere: a folder on the server's machine, `LOCATION:path` or
        `s3://bucket/prefix`.
        """
        fields: dict[str, Any] = {
            "path": os.fspath(path), "version_set": version_set, "base": base, "render": render, "name": name,
            "description": description, "tags": dict(tags or {}), "metrics": metrics, "results": results,
        }  # fmt: skip
        new = checked(NewVersion, fields)
        return await self._wire.fetch(VersionDetail, "POST", "/api/versions", body=new.as_json(), creates=True)

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

    async def lineage(self, version: str) -> LineageGraph:
        """Its base, its datasets, the versions it went on from, and those that went on from it."""
        return await self._wire.fetch(LineageGraph, "GET", _version(version) + "/lineage")

    async def answers(
        self,
        models: Sequence[str],
        prompts: Sequence[str],
        *,
        temperature: float = 0.0,
        max_tokens: int = DEFAULT_TOKENS,
        seed: int | None = None,
    ) -> list[Answer]:
        """The same prompts to up to four versions or bases, prompt by prompt, the models in their order."""
        body = {"models": list(models), "prompts": list(prompts), "temperature": temperature, "max_tokens": max_tokens}
        body |= {} if seed is None else {"seed": seed}
        found = await self._wire.fetch(AnswerList, "POST", "/api/answers", body=body, timeout=ANSWERS_TIMEOUT)
        return found.answers

    async def export(self, version: str, target: PathLike, *, progress: Progress | None = None) -> Path:
        """The whole artifact: one zip file where `target` ends in .zip, else a folder; there when it is complete."""
        path = Path(target)
        if is_zip(path):
            return await self._wire.download(_version(version) + "/export", path, progress=progress)
        manifest = await self._wire.fetch(Manifest, "GET", f"{_version(version)}/files/{MANIFEST_NAME}")
        files = f"{_version(manifest.model_version)}/files"  # an alias may move meanwhile
        with ExportFolder(path, manifest, progress=progress) as folder:
            for file in manifest.files:
                await self._wire.download(f"{files}/{quote(file.path)}", folder.place(file), progress=folder.told)
                folder.check(file)
        return path

    async def download(self, version: str, path: str, target: PathLike) -> Path:
        """One file of the artifact."""
        return await self._wire.download(f"{_version(version)}/files/{quote(path)}", Path(target))


class AsyncVersionSets(_Noun):
    async def list(self, *, search: str | None = None, limit: int | None = None) -> list[VersionSetView]:
        return await self._wire.pages(
            VersionSetView, "/api/version-sets", "version_sets", query={"search": search}, limit=limit
        )

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

    async def list(self, *, search: str | None = None, limit: int | None = None) -> list[LocationView]:
        return await self._wire.pages(
            LocationView, "/api/locations", "locations", query={"search": search}, limit=limit
        )

    async def get(self, name: str) -> LocationView:
        return await self._wire.fetch(LocationView, "GET", f"/api/locations/{part(name)}")

    async def uses(self, name: str) -> Uses:
        """Datasets that were registered from it, and unfinished jobs that need it."""
        return await self._wire.fetch(Uses, "GET", f"/api/locations/{part(name)}/uses")

    async def add(self, new: NewLocation) -> LocationView:
        return await self._wire.fetch(LocationView, "POST", "/api/locations", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: LocationChange) -> LocationView:
        """How it is reached, or its description; its URI while nothing uses it."""
        return await self._wire.fetch(LocationView, "PATCH", f"/api/locations/{part(name)}", body=_given(change))

    async def check(self, name: str) -> dict[str, Any]:
        """Whether it answers, can be written and keeps versions. Raises the refusal that a job would meet."""
        return await self._wire.document("POST", f"/api/locations/{part(name)}/check")

    async def browse(self, name: str, path: str = "", *, limit: int | None = None) -> list[dict[str, Any]]:
        """What lies under a path of the location."""
        query = {"path": path or None}
        return await self._wire.rows(f"/api/locations/{part(name)}/browse", "entries", query=query, limit=limit)

    async def scan(self, name: str) -> ScannedLocation:
        """Models that lie in it; nothing is registered."""
        return await self._wire.fetch(ScannedLocation, "GET", f"/api/locations/{part(name)}/models")

    async def delete(self, name: str) -> None:
        await self._wire.send("DELETE", f"/api/locations/{part(name)}")


class AsyncLogs(_Noun):
    """Named logs: how long and how much of their jobs' logs is kept."""

    async def list(self, *, search: str | None = None, limit: int | None = None) -> list[LogView]:
        return await self._wire.pages(LogView, "/api/logs", "logs", query={"search": search}, limit=limit)

    async def get(self, name: str) -> LogView:
        return await self._wire.fetch(LogView, "GET", f"/api/logs/{part(name)}")

    async def uses(self, name: str) -> Uses:
        """Unfinished jobs that write to it."""
        return await self._wire.fetch(Uses, "GET", f"/api/logs/{part(name)}/uses")

    async def lines(self, name: str, *, lines: int = 200, search: str | None = None) -> list[NamedLogLine]:
        """The newest lines of all its jobs together, or those of them that hold a text."""
        query = {"lines": lines, "search": search}
        return (await self._wire.fetch(NamedLogLines, "GET", f"/api/logs/{part(name)}/lines", query=query)).lines

    async def download(self, name: str, target: PathLike) -> Path:
        """What it keeps of all its jobs, as one file."""
        return await self._wire.download(f"/api/logs/{part(name)}/download", Path(target))

    async def add(self, new: NewLog) -> LogView:
        return await self._wire.fetch(LogView, "POST", "/api/logs", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: LogChange) -> LogView:
        return await self._wire.fetch(LogView, "PATCH", f"/api/logs/{part(name)}", body=_given(change))

    async def delete(self, name: str) -> None:
        await self._wire.send("DELETE", f"/api/logs/{part(name)}")


class AsyncNetworks(_Noun):
    async def list(self, *, search: str | None = None, limit: int | None = None) -> list[NetworkView]:
        return await self._wire.pages(NetworkView, "/api/networks", "networks", query={"search": search}, limit=limit)

    async def get(self, name: str) -> NetworkView:
        return await self._wire.fetch(NetworkView, "GET", f"/api/networks/{part(name)}")

    async def uses(self, name: str) -> Uses:
        """Unfinished jobs that name it."""
        return await self._wire.fetch(Uses, "GET", f"/api/networks/{part(name)}/uses")

    async def edit(self, name: str, change: NetworkChange) -> NetworkView:
        return await self._wire.fetch(NetworkView, "PATCH", f"/api/networks/{part(name)}", body=_given(change))

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


class AsyncProjects(_Noun):
    """What jobs, datasets and versions belong to; those that the caller sees."""

    async def list(self, *, search: str | None = None, limit: int | None = None) -> list[ProjectView]:
        return await self._wire.pages(ProjectView, "/api/projects", "projects", query={"search": search}, limit=limit)

    async def get(self, name: str) -> ProjectView:
        return await self._wire.fetch(ProjectView, "GET", f"/api/projects/{part(name)}")

    async def create(self, new: NewProject) -> ProjectView:
        return await self._wire.fetch(ProjectView, "POST", "/api/projects", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: ProjectChange) -> ProjectView:
        return await self._wire.fetch(ProjectView, "PATCH", f"/api/projects/{part(name)}", body=_given(change))

    async def delete(self, name: str) -> None:
        """Of an empty one that no policy names."""
        await self._wire.send("DELETE", f"/api/projects/{part(name)}")


class AsyncPolicies(_Noun):
    """Who may do what in which projects; `Client.rights` tells what comes of them."""

    async def list(self, *, search: str | None = None, limit: int | None = None) -> list[PolicyView]:
        return await self._wire.pages(PolicyView, "/api/policies", "policies", query={"search": search}, limit=limit)

    async def get(self, name: str) -> PolicyView:
        return await self._wire.fetch(PolicyView, "GET", f"/api/policies/{part(name)}")

    async def create(self, new: NewPolicy) -> PolicyView:
        return await self._wire.fetch(PolicyView, "POST", "/api/policies", body=new.as_json(), creates=True)

    async def edit(self, name: str, change: PolicyChange) -> PolicyView:
        return await self._wire.fetch(PolicyView, "PATCH", f"/api/policies/{part(name)}", body=_given(change))

    async def delete(self, name: str) -> None:
        await self._wire.send("DELETE", f"/api/policies/{part(name)}")


class AsyncQuotas(_Noun):
    """What principals may take up, and what they do; `*` stands for everybody without quotas of his own."""

    async def list(self, *, limit: int | None = None) -> list[QuotaView]:
        return await self._wire.pages(QuotaView, "/api/quotas", "quotas", limit=limit)

    async def get(self, principal: str = EVERYBODY) -> QuotaView:
        return await self._wire.fetch(QuotaView, "GET", f"/api/quotas/{quote(principal)}")

    async def edit(self, principal: str, change: QuotaChange) -> QuotaView:
        return await self._wire.fetch(QuotaView, "PATCH", f"/api/quotas/{quote(principal)}", body=_given(change))

    async def reset(self, principal: str) -> None:
        """Back to everybody's limits; everybody's go back to the defaults."""
        await self._wire.send("DELETE", f"/api/quotas/{quote(principal)}")


class AsyncAudit(_Noun):
    """Who did what; the newest first."""

    async def list(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        object: str | None = None,
        limit: int | None = None,
    ) -> list[AuditView]:
        """action: a whole one, as in `version.delete`, or a noun for all of its."""
        query = {"actor": actor, "action": action, "object": object}
        return await self._wire.pages(AuditView, "/api/audit", "audit", query=query, limit=limit)


def _version(version: str) -> str:
    return f"/api/versions/{part(version)}"


def _given(change: Any) -> dict[str, Any]:
    """The fields that the caller set; the others stay as they are."""
    return change.model_dump(mode="json", exclude_unset=True)


def _columns(columns: Mapping[str, str] | None) -> str | None:
    if not columns:
        return None
    # in quotes a name keeps the spaces around it
    return ",".join(
        f"{ours}={theirs}" if theirs == theirs.strip() else f'{ours}="{theirs}"' for ours, theirs in columns.items()
    )
