"""The real application of a home of the test's own, in this process, with clients over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.jobs.conftest import home, job, state, worker
from tests.server.conftest import app_over
from tunesmith.client import AsyncClient, Client
from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.connection import IN_PROCESS_URL, Endpoint, home_token
from tunesmith.client.in_process import AsyncInProcess, Host, InProcess
from tunesmith.client.synchronous.wire import Wire
from tunesmith.jobs.home import Home
from tunesmith.jobs.state import State
from tunesmith.server.auth import ensure_home_token
from tunesmith.server.service import make_service

__all__ = ["home", "job", "state", "worker"]


@pytest.fixture
def host(state: State) -> Iterator[Host]:
    ensure_home_token(state.home, state.database)
    opened = Host(app_over(make_service(state, {"TUNESMITH_HOME": str(state.home.root)}, queue=None)))
    yield opened
    opened.close()


@pytest.fixture
def endpoint(host: Host, home: Home) -> Endpoint:
    """As a server on this machine has it: its jobs are accepted, and none is started."""
    return Endpoint(url=IN_PROCESS_URL, token=home_token(home.root))


@pytest.fixture
def client(host: Host, endpoint: Endpoint) -> Iterator[Client]:
    with Client.over(Wire(endpoint, transport=InProcess(host))) as opened:
        yield opened


@pytest.fixture
def async_client(host: Host, endpoint: Endpoint) -> Callable[[], AsyncClient]:
    """Makes one inside the event loop that uses it."""
    return lambda: AsyncClient.over(AsyncWire(endpoint, transport=AsyncInProcess(host)))
