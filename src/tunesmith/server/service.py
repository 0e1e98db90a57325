"""What the routes work on: one running service with its state, its queue and its event feed.

In: an open state. Out: `Service`, and the `Call` that each handler gets beside its own arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from tunesmith.catalog.clock import now
from tunesmith.catalog.curves import CurveReader
from tunesmith.jobs.downloads import DownloadService
from tunesmith.jobs.results_check import ResultsChecks
from tunesmith.jobs.service import JobService
from tunesmith.jobs.serving import ServingPool
from tunesmith.jobs.slots import Devices
from tunesmith.jobs.state import State
from tunesmith.server.auth import Principal, Tokens
from tunesmith.server.feed import EventFeed
from tunesmith.server.forms import Form
from tunesmith.server.policies import Policies
from tunesmith.server.sessions import Sessions, SignInLinks
from tunesmith.storage.database import Database

SIMULTANEOUS_INSPECTIONS = 2


ADDRESS_NAME = "server.json"  # in the state folder: where its server answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """queue, downloads: None in a process that starts no jobs (a client's own, where no server runs). serving: starts
    its workers on demand.
    """

    state: State
    environment: Mapping[str, str]
    tokens: Tokens
    sessions: Sessions
    policies: Policies
    links: SignInLinks
    feed: EventFeed
    curves: CurveReader
    queue: JobService | None
    downloads: DownloadService | None
    serving: ServingPool
    devices: Devices
    results_checks: ResultsChecks
    inspections: threading.BoundedSemaphore
    started_at: str


def make_service(
    state: State,
    environment: Mapping[str, str],
    *,
    queue: JobService | None,
    downloads: DownloadService | None = None,
) -> Service:
    return Service(
        state=state,
        environment=environment,
        tokens=Tokens(state.database),
        sessions=Sessions(state.database),
        policies=Policies(state.database),
        links=SignInLinks(),
        feed=EventFeed(state.database),
        curves=CurveReader(),
        queue=queue,
        downloads=downloads,
        serving=ServingPool(state, environment),
        devices=Devices(environment),
        results_checks=ResultsChecks(environment),
        inspections=threading.BoundedSemaphore(SIMULTANEOUS_INSPECTIONS),
        started_at=now(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, its caller known and permitted."""

    service: Service
    principal: Principal
    request: Request

    @property
    def database(self) -> Database:
        return self.service.state.database

    @property
    def state(self) -> State:
        return self.service.state

    @property
    def actor(self) -> str:
        return self.principal.actor

    @property
    def form(self) -> Form:
        """Of a route whose body is a form."""
        return self.request.form_values  # type: ignore[attr-defined]  # a StrictRequest of `routes.py`

    @property
    def project(self) -> str:
        """The one that the request means: what it reads and makes is of that project."""
        return self.principal.project


async def _call(request: Request) -> Call:
    return request.state.call


CallNow = Annotated[Call, Depends(_call)]
