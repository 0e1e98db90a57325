"""The client's way without a server: the server's own application in this process, over the same state folder.

It reads and administers; it runs no job, since a job belongs to a process that stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.connection import IN_PROCESS_URL, Endpoint, home_token
from tunesmith.client.in_process import AsyncInProcess, Host, InProcess
from tunesmith.client.synchronous.wire import Wire
from tunesmith.jobs.home import open_home


def wire(environment: Mapping[str, str], *, project: str | None) -> Wire:
    host, endpoint = _host(environment, project)
    return Wire(endpoint, transport=InProcess(host))


def async_wire(environment: Mapping[str, str], *, project: str | None) -> AsyncWire:
    host, endpoint = _host(environment, project)
    return AsyncWire(endpoint, transport=AsyncInProcess(host))


def _host(environment: Mapping[str, str], project: str | None) -> tuple[Host, Endpoint]:
    # the server's libraries cost 0.4 s; a client of a running server needs none of them
    from tunesmith.jobs.state import open_state
    from tunesmith.server.app import create_app
    from tunesmith.server.auth import ensure_home_token
    from tunesmith.server.service import make_service

    home = open_home(environment)
    state = open_state(home)
    ensure_home_token(home, state.database)
    host = Host(create_app(make_service(state, environment, queue=None)))
    endpoint = Endpoint(url=IN_PROCESS_URL, token=home_token(home.root), is_in_process=True, project=project)
    return host, endpoint
