"""Runs the service of one state folder until it is told to stop.

In: a home, an address and the host names that requests may carry. The state folder is locked by the system, not by a
file's being there, so that a killed server leaves no lock behind. In order at the end: no new requests, event streams,
the queue (workers run on and are followed by the next server), `server.json`, the lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.catalog.artifacts import finish_removals
from tunesmith.catalog.clock import now
from tunesmith.catalog.idempotency import forget
from tunesmith.catalog.quotas import recount
from tunesmith.errors import MachineCannot, UsageFault
from tunesmith.files import write_json
from tunesmith.jobs.deletion import finish_deletions
from tunesmith.jobs.downloads import DownloadService
from tunesmith.jobs.home import Home
from tunesmith.jobs.launcher import process_started_at
from tunesmith.jobs.retention import drop_old_logs
from tunesmith.jobs.service import JobService
from tunesmith.jobs.state import State, open_state
from tunesmith.server.app import create_app
from tunesmith.server.auth import ensure_home_token
from tunesmith.server.console import Console
from tunesmith.server.guard import OWN_USER, READ_IDLE_SECONDS, LimitedHttp
from tunesmith.server.log import logging_to
from tunesmith.server.service import ADDRESS_NAME, Service, make_service
from tunesmith.server.sessions import own_user_secret

LOCK_NAME = "serve.lock"
BACKLOG = 2048
LOG_LOOK_SECONDS = 600.0
KEPT_KEY_DAYS = 30  # of idempotency: nobody repeats a request after so long
DRAINED_BYTES = 128 << 20  # Jupyter's proxy takes 100 MB
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
    cpu_jobs: int,
    tell: Callable[[str, str], None],
    wait: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. tell: called with the URL, and a link that signs in once, as soon as requests
    are answered. wait: told who serves this state folder already; then its end is waited for (None: that is refused).

    Raises UsageFault (REMOTE_NOT_ALLOWED), MachineCannot (SERVER_RUNNING, PORT_TAKEN).
    """
    refuse_remote(host, allow_remote=allow_remote, allowed_hosts=allowed_hosts)
    with ExitStack() as held:
        held.enter_context(locked(home, wait=wait))
        held.enter_context(logging_to(home.logs))
        listener = held.enter_context(listening(host, port))
        own_listener = held.enter_context(listening_to_own_user(home))
        url = url_of(host, listener.getsockname()[1])
        for unfinished in home.uploads.iterdir():  # what a killed server was receiving
            unfinished.unlink()
        state = open_state(home)
        ensure_home_token(home, state.database)
        queue = JobService(state, environment, cpu_jobs=cpu_jobs)
        downloads = DownloadService(state, environment)
        service = make_service(state, environment, queue=queue, downloads=downloads)
        app = create_app(service, allowed_hosts=[host, *allowed_hosts], console=Console())
        own = OwnUser(app, secret=own_user_secret((home.root / "token").read_text(encoding="ascii")))

        def begin() -> None:
            pid = os.getpid()
            # clients tell by the process's start that a pid was not given to another one since
            address = {"url": url, "pid": pid, "process_started_at": process_started_at(pid), "started_at": now()}
            write_json(home.root / ADDRESS_NAME, address)
            LOG.info("serving", extra={"fields": address})
            tell(url, f"{url}/sign-in?code={service.links.make()}")

        queue.start()
        downloads.start()
        threading.Thread(target=tidy, args=(state, environment), name="tunesmith-tidy", daemon=True).start()
        ending = threading.Event()
        keeper = threading.Thread(target=keep_logs, args=(state, ending), name="tunesmith-logs", daemon=True)
        keeper.start()
        try:
            server = _Server(_config(app), service=service, begin=begin, own=own, own_listener=own_listener)
            server.run(sockets=[listener])
        finally:
            ending.set()
            downloads.stop()
            queue.stop()
            keeper.join()
            (home.root / ADDRESS_NAME).unlink(missing_ok=True)
            LOG.info("stopped")
            state.database.close()


def tidy(state: State, environment: Mapping[str, str]) -> None:
    """What a killed server left half-done, and what nobody will ask for any more. Run beside the first requests."""
    try:
        for model_version in finish_removals(state.database, environment=environment):
            LOG.info("files removed", extra={"fields": {"model_version": model_version}})
        for job_id in finish_deletions(state.home, state.database):
            LOG.info("folder of a deleted job removed", extra={"fields": {"job_id": job_id}})
        oldest = datetime.now(UTC) - timedelta(days=KEPT_KEY_DAYS)
        with state.database.write() as connection:
            forget(connection, before=oldest.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
            recount(connection)
    except Exception:  # a store that does not answer today is asked at the next start
        LOG.exception("tidying up ended early")


def keep_logs(state: State, ending: threading.Event, *, seconds: float = LOG_LOOK_SECONDS) -> None:
    """Hold named logs to their days and bytes, at the start and then now and again, until `ending`."""
    while True:
        try:
            for each in drop_old_logs(state.home, state.database):
                LOG.info("log dropped", extra={"fields": {"path": each.path, "reason": each.reason}})
        except Exception:  # a disk that fails today is asked again
            LOG.exception("logs could not be held to their limits")
        if ending.wait(seconds):
            return


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
def locked(home: Home, *, wait: Callable[[str], None] | None = None) -> Generator[None]:
    """Hold the state folder. Raises MachineCannot (SERVER_RUNNING) naming the holder, unless it is waited for."""
    path = home.root / LOCK_NAME
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            if wait is None:
                raise MachineCannot(
                    "SERVER_RUNNING", f"The state folder {home.root} is served already, by {owner}.",
                    field="TUNESMITH_HOME", hint="Use that server, stop it, or set TUNESMITH_HOME to another folder.",
                ) from error  # fmt: skip
            wait(owner)
            fcntl.flock(handle, fcntl.LOCK_EX)
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


@contextmanager
def listening_to_own_user(home: Home) -> Generator[socket.socket | None]:
    """The socket in the state folder; None where its path is longer than a socket's may be. The folder is held: what
    lies there was left by a server that is gone.
    """
    path = home.own_socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        try:
            listener.bind(str(path))
        except OSError as error:
            LOG.warning("no socket for a proxy", extra={"fields": {"path": str(path), "error": str(error)}})
            yield None
            return
        path.chmod(0o600)  # nobody can connect before `listen`
        listener.listen(BACKLOG)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


class OwnUser:
    """The application for what comes over that socket: its caller is the state folder's own user.

    The proxy there is Jupyter's, which takes an answer that comes before it has sent its body for a fault of ours: what
    a refusal left of the body is taken first. It holds no more than `DRAINED_BYTES` in its own memory.
    """

    def __init__(self, app: ASGIApp, *, secret: str) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_whole = False

        async def received() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                taken = 0
                with suppress(TimeoutError):
                    async with asyncio.timeout(READ_IDLE_SECONDS):
                        while not is_whole and taken < DRAINED_BYTES:
                            taken += len((await received()).get("body", b""))
            await send(message)

        await self._app({**scope, OWN_USER: self._secret}, received, sent)


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

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        service: Service,
        begin: Callable[[], None],
        own: OwnUser,
        own_listener: socket.socket | None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._begin = begin
        self._own = own
        self._own_listener = own_listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._own_listener is not None:
            config = _config(self._own)
            config.load()
            protocol = functools.partial(
                LimitedHttp, config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            loop = asyncio.get_running_loop()
            self.servers.append(await loop.create_unix_server(protocol, sock=self._own_listener))
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
