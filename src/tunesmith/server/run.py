"""Runs the service of one state folder until it is told to stop.

In: a home, an address and the host names that requests may carry. The state folder is locked by the system, not by a
file's being there, so that a killed server leaves no lock behind. In order at the end: no new requests, event streams,
the queue (workers run on and are followed by the next server), `server.json`, the lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn

from tunesmith.catalog.artifacts import finish_removals
from tunesmith.catalog.clock import now
from tunesmith.catalog.idempotency import forget
from tunesmith.errors import MachineCannot, UsageFault
from tunesmith.files import write_json
from tunesmith.jobs.home import Home
from tunesmith.jobs.launcher import process_started_at
from tunesmith.jobs.service import JobService
from tunesmith.jobs.state import State, open_state
from tunesmith.server.app import create_app
from tunesmith.server.auth import ensure_home_token
from tunesmith.server.guard import LimitedHttp
from tunesmith.server.log import logging_to
from tunesmith.server.service import Service, make_service

LOCK_NAME = "serve.lock"
ADDRESS_NAME = "server.json"
BACKLOG = 2048
KEPT_KEY_DAYS = 30  # of idempotency: nobody repeats a request after so long
LAST_REQUESTS_SECONDS = 10  # for answers under way at the end
LOG = logging.getLogger("tunesmith.server")


def serve(
    home: Home,
    *,
    environment: Mapping[str, str],
    host: str,
    port: int,
    allow_remote: bool,
    allowed_hosts: Sequence[str],
    tell: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT. tell: called with the URL once requests are answered.

    Raises UsageFault (REMOTE_NOT_ALLOWED), MachineCannot (SERVER_RUNNING, PORT_TAKEN).
    """
    refuse_remote(host, allow_remote=allow_remote, allowed_hosts=allowed_hosts)
    with locked(home), logging_to(home.logs), listening(host, port) as listener:
        url = url_of(host, listener.getsockname()[1])
        for unfinished in home.uploads.iterdir():  # what a killed server was receiving
            unfinished.unlink()
        state = open_state(home)
        ensure_home_token(home, state.database)
        queue = JobService(state, environment)
        service = make_service(state, environment, queue=queue)
        app = create_app(service, allowed_hosts=[host, *allowed_hosts])

        def begin() -> None:
            pid = os.getpid()
            # clients tell by the process's start that a pid was not given to another one since
            address = {"url": url, "pid": pid, "process_started_at": process_started_at(pid), "started_at": now()}
            write_json(home.root / ADDRESS_NAME, address)
            LOG.info("serving", extra={"fields": address})
            tell(url)

        queue.start()
        threading.Thread(target=tidy, args=(state, environment), name="tunesmith-tidy", daemon=True).start()
        try:
            _Server(_config(app), service=service, begin=begin).run(sockets=[listener])
        finally:
            queue.stop()
            (home.root / ADDRESS_NAME).unlink(missing_ok=True)
            LOG.info("stopped")
            state.database.close()


def tidy(state: State, environment: Mapping[str, str]) -> None:
    """What a killed server left half-done, and what nobody will ask for any more. Run beside the first requests."""
    try:
        for model_version in finish_removals(state.database, environment=environment):
            LOG.info("files removed", extra={"fields": {"model_version": model_version}})
        oldest = datetime.now(UTC) - timedelta(days=KEPT_KEY_DAYS)
        with state.database.write() as connection:
            forget(connection, before=oldest.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    except Exception:  # a store that does not answer today is asked at the next start
        LOG.exception("tidying up ended early")


def refuse_remote(host: str, *, allow_remote: bool, allowed_hosts: Sequence[str]) -> None:
    """Another machine reaches us only by explicit consent, and only under names that were given."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if is_loopback or (allow_remote and allowed_hosts):
        return
    raise UsageFault(
        "REMOTE_NOT_ALLOWED",
        f"--host {host} lets other machines reach this server, in clear text.",
        field="host",
        hint="If that is meant: add --allow-remote, and --allowed-host for each name or address that clients will use. "
        "Better: keep 127.0.0.1 behind a proxy that speaks TLS, or an SSH tunnel.",
    )


@contextmanager
def locked(home: Home) -> Generator[None]:
    """Hold the state folder. Raises MachineCannot (SERVER_RUNNING) naming the holder."""
    path = home.root / LOCK_NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise MachineCannot(
                "SERVER_RUNNING", f"The state folder {home.root} is served already, by {owner}.",
                field="TUNESMITH_HOME", hint="Use that server, stop it, or set TUNESMITH_HOME to another folder.",
            ) from error  # fmt: skip
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)  # the system frees the lock


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket]:
    """A bound socket. Raises MachineCannot (PORT_TAKEN)."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _no_address(host, port, error) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise _no_address(host, port, error) from error
        yield listener


def _no_address(host: str, port: int, error: OSError) -> MachineCannot:
    return MachineCannot(
        "PORT_TAKEN", f"{host} port {port} cannot be listened at: {error.strerror or error}.", field="port",
        hint="Choose another one with --port (0: any free one), or stop what uses it.",
    )  # fmt: skip


def url_of(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  # a name, no binding
    return f"http://{name}:{port}"


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=LimitedHttp, loop="uvloop", ws="none", lifespan="on", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, timeout_graceful_shutdown=LAST_REQUESTS_SECONDS,
    )  # fmt: skip


class _Server(uvicorn.Server):
    """uvicorn's server with a beginning and an end of ours."""

    def __init__(self, config: uvicorn.Config, *, service: Service, begin: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._begin = begin

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.feed.close()  # uvicorn waits for open streams before it ends the lifespan
        await asyncio.to_thread(self._service.serving.stop)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """A signal ends the server in order; uvicorn would raise it once more afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
