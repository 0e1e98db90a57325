"""What the routes work on: one running service with its state, its queue and its event feed.

In: an open state. Out: `Service`, and the `Call` that each handler gets beside its own arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from tunesmith.jobs.service import JobService
from tunesmith.jobs.serving import ServingPool
from tunesmith.jobs.slots import Devices
from tunesmith.jobs.state import State
from tunesmith.server.auth import Principal, Tokens
from tunesmith.server.feed import EventFeed
from tunesmith.spec.catalog import DEFAULT_PROJECT
from tunesmith.storage.database import Database

SIMULTANEOUS_INSPECTIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """queue: None in a process that starts no jobs (a client's own, where no server runs). serving: starts its workers
    on demand.
    """

    state: State
    environment: Mapping[str, str]
    tokens: Tokens
    feed: EventFeed
    queue: JobService | None
    serving: ServingPool
    devices: Devices
    inspections: threading.BoundedSemaphore


def make_service(state: State, environment: Mapping[str, str], *, queue: JobService | None) -> Service:
    return Service(
        state=state,
        environment=environment,
        tokens=Tokens(state.database),
        feed=EventFeed(state.database),
        queue=queue,
        serving=ServingPool(state, environment),
        devices=Devices(environment),
        inspections=threading.BoundedSemaphore(SIMULTANEOUS_INSPECTIONS),
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
    def project(self) -> str:
        """Projects of their own come with users and policies; until then there is one."""
        return DEFAULT_PROJECT


async def _call(request: Request) -> Call:
    return request.state.call


CallNow = Annotated[Call, Depends(_call)]
