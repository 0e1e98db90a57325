"""`AsyncClient`: one connection to a server, with a noun for each part of the service."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from tunesmith.client import local, notebook
from tunesmith.client.asynchronous.jobs import AsyncJobs
from tunesmith.client.asynchronous.nouns import (
    AsyncAudit,
    AsyncDatasets,
    AsyncDownloads,
    AsyncHub,
    AsyncLocations,
    AsyncLogs,
    AsyncModels,
    AsyncNetworks,
    AsyncPolicies,
    AsyncProjects,
    AsyncQuotas,
    AsyncTokens,
    AsyncVersions,
    AsyncVersionSets,
    PathLike,
)
from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.connection import find_endpoint
from tunesmith.client.notebook import PlanDocument
from tunesmith.spec.access import Rights
from tunesmith.spec.api import Permission, PermissionList, ShapePage, ShapeView, SystemView


class AsyncClient:
    """The whole service. A context manager; `aclose` ends its connections.

    url, token: of the server; without them TUNESMITH_URL and TUNESMITH_TOKEN, else the server that runs on this
    machine's state folder, else the same application in this process (reading and administering; it runs no jobs).
    project: whose jobs, datasets and versions are meant; without it TUNESMITH_PROJECT, else the project `default`.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, project: str | None = None) -> None:
        endpoint = find_endpoint(url, token, environment=os.environ, project=project)
        if endpoint.is_in_process:
            self._open(local.async_wire(os.environ, project=endpoint.project))
        else:
            self._open(AsyncWire(endpoint))

    @classmethod
    def over(cls, wire: AsyncWire) -> AsyncClient:
        """A client over a connection that is there already."""
        client = cls.__new__(cls)
        client._open(wire)
        return client

    def _open(self, wire: AsyncWire) -> None:
        notebook.register()
        self.wire = wire
        self.models = AsyncModels(wire)
        self.hub = AsyncHub(wire)
        self.downloads = AsyncDownloads(wire)
        self.datasets = AsyncDatasets(wire)
        self.jobs = AsyncJobs(wire)
        self.versions = AsyncVersions(wire)
        self.version_sets = AsyncVersionSets(wire)
        self.locations = AsyncLocations(wire)
        self.logs = AsyncLogs(wire)
        self.networks = AsyncNetworks(wire)
        self.tokens = AsyncTokens(wire)
        self.projects = AsyncProjects(wire)
        self.policies = AsyncPolicies(wire)
        self.quotas = AsyncQuotas(wire)
        self.audit = AsyncAudit(wire)

    async def plan(self, model: str, dataset: PathLike, **settings: Any) -> PlanDocument:
        """What a job of the same model, dataset and settings would do and cost; nothing is started."""
        return await self.jobs.plan(model, dataset, **settings)

    async def system(self) -> SystemView:
        """The server's release, disk, devices and queue."""
        return await self.wire.fetch(SystemView, "GET", "/api/system")

    async def shapes(self) -> list[ShapeView]:
        """The machines that jobs may run on, with what is free on them."""
        return (await self.wire.fetch(ShapePage, "GET", "/api/shapes")).shapes

    async def permissions(self) -> list[Permission]:
        """Who may do what: every permission, who has it and by which policies, and what it opens."""
        return (await self.wire.fetch(PermissionList, "GET", "/api/permissions")).permissions

    async def rights(self, who: str | None = None, *, project: str | None = None, action: str | None = None) -> Rights:
        """What one may do in a project, and by which policy: the caller, or for an administrator anybody by name."""
        query = {"who": who, "project": project, "action": action}
        return await self.wire.fetch(Rights, "GET", "/api/rights", query=query)

    async def aclose(self) -> None:
        await self.wire.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
