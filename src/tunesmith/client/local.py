"""The client's way without a server: the server's own application in this process, over the same state folder.

It reads and administers; it runs no job, since a job belongs to a process that stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.connection import IN_PROCESS_URL, Endpoint
from tunesmith.client.in_process import AsyncInProcess, Host, InProcess
from tunesmith.client.synchronous.wire import Wire


def wire(environment: Mapping[str, str]) -> Wire:
    host, endpoint = _host(environment)
    return Wire(endpoint, transport=InProcess(host))


def async_wire(environment: Mapping[str, str]) -> AsyncWire:
    host, endpoint = _host(environment)
    return AsyncWire(endpoint, transport=AsyncInProcess(host))


def _host(environment: Mapping[str, str]) -> tuple[Host, Endpoint]:
    raise NotImplementedError
