# Made from client/asynchronous/client.py by scripts/make_sync_client.py; do not edit.
"""`Client`: one connection to a server, with a noun for each part of the service."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from tunesmith.client import local, notebook
from tunesmith.client.connection import find_endpoint
from tunesmith.client.notebook import PlanDocument
from tunesmith.client.synchronous.jobs import Jobs
from tunesmith.client.synchronous.nouns import (
    Audit,
    Datasets,
    Downloads,
    Hub,
    Locations,
    Logs,
    Models,
    Networks,
    PathLike,
    Policies,
    Projects,
    Quotas,
    Tokens,
    Versions,
    VersionSets,
)
from tunesmith.client.synchronous.wire import Wire
from tunesmith.spec.access import Rights
from tunesmith.spec.api import Permission, PermissionList, ShapePage, ShapeView, SystemView


class Client:
    """The whole service. A context manager; `close` ends its connections.

    url, token: of the server; without them TUNESMITH_URL and TUNESMITH_TOKEN, else the server that runs on this
    machine's state folder, else the same application in this process (reading and administering; it runs no jobs).
    project: whose jobs, datasets and versions are meant; without it TUNESMITH_PROJECT, else the project `default`.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, project: str | None = None) -> None:
        endpoint = find_endpoint(url, token, environment=os.environ, project=project)
        if endpoint.is_in_process:
            self._open(local.wire(os.environ, project=endpoint.project))
        else:
            self._open(Wire(endpoint))

    @classmethod
    def over(cls, wire: Wire) -> Client:
        """A client over a connection that is there already."""
        client = cls.__new__(cls)
        client._open(wire)
        return client

    def _open(self, wire: Wire) -> None:
        notebook.register()
        self.wire = wire
        self.models = Models(wire)
        self.hub = Hub(wire)
        self.downloads = Downloads(wire)
        self.datasets = Datasets(wire)
        self.jobs = Jobs(wire)
        self.versions = Versions(wire)
        self.version_sets = VersionSets(wire)
        self.locations = Locations(wire)
        self.logs = Logs(wire)
        self.networks = Networks(wire)
        self.tokens = Tokens(wire)
        self.projects = Projects(wire)
        self.policies = Policies(wire)
        self.quotas = Quotas(wire)
        self.audit = Audit(wire)

    def plan(self, model: str, dataset: PathLike, **settings: Any) -> PlanDocument:
        """What a job of the same model, dataset and settings would do and cost; nothing is started."""
        return self.jobs.plan(model, dataset, **settings)

    def system(self) -> SystemView:
        """The server's release, disk, devices and queue."""
        return self.wire.fetch(SystemView, "GET", "/api/system")

    def shapes(self) -> list[ShapeView]:
        """The machines that jobs may run on, with what is free on them."""
        return (self.wire.fetch(ShapePage, "GET", "/api/shapes")).shapes

    def permissions(self) -> list[Permission]:
        """Who may do what: every permission, who has it and by which policies, and what it opens."""
        return (self.wire.fetch(PermissionList, "GET", "/api/permissions")).permissions

    def rights(self, who: str | None = None, *, project: str | None = None, action: str | None = None) -> Rights:
        """What one may do in a project, and by which policy: the caller, or for an administrator anybody by name."""
        query = {"who": who, "project": project, "action": action}
        return self.wire.fetch(Rights, "GET", "/api/rights", query=query)

    def close(self) -> None:
        self.wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
