"""What every request passes before a route is looked for: pure ASGI, nothing here reads a body.

In: a raw request. Out: the same request with deadlines around its reading and writing, or a refusal; and the answer
with security headers, a correlation id and a line in the log. Hosts, origins and methods are allow-lists: a page of
another site (also one whose name was re-bound to our address) gets no further than here.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Collection
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tunesmith.errors import MachineCannot, NotPermitted, TunesmithError, UsageFault
from tunesmith.server.errors import disk_full, error_response, fault_of_ours
from tunesmith.server.prefix import STATE_KEY, relative, told_prefix

LOG = logging.getLogger("tunesmith.server")
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::([0-9]{1,5}))?")
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
OWN_USER = "tunesmith.own_user"  # in the scope of what came over the socket of the state folder: the session's secret
# The byte caps of hazards S32: more than any client of ours sends by two powers of ten.
MAXIMUM_HEADER_BYTES = 32 * 1024
MAXIMUM_HEADERS = 100
MAXIMUM_PATH_BYTES = 4096
HEADER_SECONDS = 10.0  # from a request's first byte to the end of its headers
READ_IDLE_SECONDS = 30.0  # without one byte of an expected body
WRITE_IDLE_SECONDS = 60.0  # of a reader that takes nothing
MAXIMUM_REQUESTS = 1000  # at the same time, streams among them
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class ReaderGone(Exception):
    """The caller takes nothing of its answer; its request ends."""


class Guard:
    """Wraps the whole application; the last edge at which an exception ends."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str] = ()) -> None:
        self._app = app
        self._hosts = LOOPBACK_HOSTS | {host.lower() for host in allowed_hosts}
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets; the server is started without them
        answer = _Answer(scope, send)
        self._requests += 1
        try:
            await self._answer(scope, receive, answer)
        finally:
            self._requests -= 1
            answer.log()

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            if self._requests > MAXIMUM_REQUESTS:
                raise MachineCannot("BUSY", "The server has its hands full.", hint="Try again in a few seconds.")
            self._check(scope)
            await self._app(scope, _with_deadline(receive), answer.send)
        except TunesmithError as error:
            await self._refuse(error, scope, receive, answer)
        except ReaderGone:
            LOG.info("a reader took nothing", extra={"fields": {"request_id": answer.request_id}})
        except Exception as error:  # the edge of a request
            full = disk_full(error)
            if full is None:
                LOG.exception("a fault of ours", extra={"fields": {"request_id": answer.request_id}})
            await self._refuse(full or fault_of_ours(answer.request_id), scope, receive, answer)

    async def _refuse(self, error: TunesmithError, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if answer.status is None:
            await error_response(error, path=scope["path"])(scope, receive, answer.send)

    def _check(self, scope: Scope) -> None:
        headers = scope["headers"]
        if len(headers) > MAXIMUM_HEADERS or sum(len(name) + len(value) for name, value in headers) > (
            MAXIMUM_HEADER_BYTES
        ):
            raise headers_too_large()
        host = self._host(headers, is_own_user=OWN_USER in scope)
        scope["state"][STATE_KEY] = told_prefix(headers)
        if scope["method"] not in METHODS:
            raise UsageFault(
                "METHOD_NOT_ALLOWED", f"The method {scope['method'][:20]} is not served.",
                hint=f"The methods are {', '.join(sorted(METHODS))}.",
            )  # fmt: skip
        self._check_site(scope["method"], headers, host)
        path: str = scope["path"]
        if len(scope.get("raw_path", b"")) > MAXIMUM_PATH_BYTES or _is_odd(path):
            raise UsageFault(
                "BAD_PATH", "The path holds a backslash, a control character, or a part `.` or `..`, or is too long.",
                hint="Names in a path are ids and names as the lists give them.",
            )  # fmt: skip
        if _values(headers, b"content-encoding") not in ([], [b"identity"]):
            raise UsageFault(
                "CONTENT_ENCODING", "The body is compressed; it is read as it comes.", field="Content-Encoding",
                hint="Send it uncompressed.",
            )  # fmt: skip

    def _host(self, headers: Any, *, is_own_user: bool) -> str:
        """The one Host header, if it names us; decided before anything else looks at the request.

        is_own_user: no browser reaches that socket. A proxy of our user does, under whatever name it is called by.
        """
        values = _values(headers, b"host")
        text = values[0].decode("latin-1") if len(values) == 1 else ""
        found = HOST.fullmatch(text)
        if found is None or (found[1].lower() not in self._hosts and not is_own_user):
            raise UsageFault(
                "HOST_NOT_ALLOWED", "The Host header does not name this server.", field="Host",
                hint="Use the URL that `tunesmith serve` printed; other names are allowed with --allowed-host.",
            )  # fmt: skip
        return text.lower()

    def _check_site(self, method: str, headers: Any, host: str) -> None:
        origins = _values(headers, b"origin")
        own = {f"http://{host}".encode(), f"https://{host}".encode()}
        sites = _values(headers, b"sec-fetch-site")
        foreign = any(site not in (b"same-origin", b"none") for site in sites) and method != "GET"
        if foreign or len(origins) > 1 or any(origin.lower() not in own for origin in origins):
            raise NotPermitted(
                "ORIGIN_NOT_ALLOWED", "The request comes from a page of another site.", field="Origin",
                hint="Call the API from a program, or from a page that this server itself serves.",
            )  # fmt: skip


class _Answer:
    """The way back: headers that every answer has, a deadline on each write, and the line in the log."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started = time.monotonic()
        self._bytes = 0
        self.status: int | None = None
        self.request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            headers += [header for header in SECURITY_HEADERS if header[0] not in names]
            headers = [self._located(name, value) for name, value in headers]
            if b"cache-control" not in names:
                headers.append((b"cache-control", b"no-store"))
            headers.append((b"x-request-id", self.request_id.encode()))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
        try:
            async with asyncio.timeout(WRITE_IDLE_SECONDS):
                await self._send(message)
        except TimeoutError as error:
            raise ReaderGone from error

    def _located(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        """Where to go next, for a browser that sees us below a prefix."""
        prefix = self._scope["state"].get(STATE_KEY, "")
        if prefix and name == b"location":
            value = relative(value.decode("latin-1"), self._scope["raw_path"]).encode("latin-1")
        elif prefix and name == b"hx-redirect" and value.startswith(b"/"):
            value = prefix.encode() + value
        return name, value

    def log(self) -> None:
        """One line a request. The query is left out: whatever a caller put there by mistake stays with the caller."""
        scope = self._scope
        fields = {
            "request_id": self.request_id,
            "client": (scope.get("client") or ("-",))[0],
            "actor": scope["state"].get("actor", "-"),
            "method": scope["method"][:20],
            "path": scope["path"][:500],
            "status": self.status,
            "bytes": self._bytes,
            "milliseconds": round(1000 * (time.monotonic() - self._started), 1),
        }
        LOG.info("request", extra={"fields": fields})


def _with_deadline(receive: Receive) -> Receive:
    is_whole = False

    async def limited() -> Message:
        nonlocal is_whole
        if is_whole:  # what is waited for now is the end of the connection
            return await receive()
        try:
            async with asyncio.timeout(READ_IDLE_SECONDS):
                message = await receive()
        except TimeoutError as error:
            raise UsageFault(
                "REQUEST_TIMEOUT", f"No byte of the body came for {READ_IDLE_SECONDS:g} seconds.", hint="Send it again."
            ) from error
        is_whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    return limited


def _values(headers: Any, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]


def _is_odd(path: str) -> bool:
    if "\\" in path or any(ord(character) < 32 or ord(character) == 127 for character in path):
        return True
    return "/." in path and any(part in (".", "..") for part in path.split("/"))


def headers_too_large() -> UsageFault:
    return UsageFault(
        "HEADERS_TOO_LARGE",
        f"The request's headers have more than {MAXIMUM_HEADERS} lines or {MAXIMUM_HEADER_BYTES:,} bytes.",
        hint="Leave out what is not needed, such as cookies.",
    )


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's own protocol, with a cap and a deadline on headers, which it lacks, and refusals in our form."""

    _header_bytes = 0
    _header_deadline: asyncio.TimerHandle | None = None
    _in_headers = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._header_deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_headers:  # still, after all of `data`
            self._header_bytes += len(data)
            if self._header_bytes > MAXIMUM_HEADER_BYTES:
                self._refuse(headers_too_large())

    def on_message_begin(self) -> None:
        self._in_headers = True
        if self._header_deadline is None:
            self._header_deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._header_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(UsageFault("BAD_HTTP", "This is no valid HTTP request."))

    def _too_late(self) -> None:
        self._refuse(UsageFault("REQUEST_TIMEOUT", f"The headers did not come within {HEADER_SECONDS:g} seconds."))

    def _stop_waiting(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None

    def _refuse(self, error: TunesmithError) -> None:
        self._stop_waiting()
        if self.transport.is_closing():
            return
        response = error_response(error, path="/")
        body = cast(bytes, response.body)
        lines = [f"HTTP/1.1 {response.status_code} Refused", "content-type: application/json", "connection: close"]
        lines += [f"content-length: {len(body)}", "cache-control: no-store"]
        lines += [f"{name.decode()}: {value.decode()}" for name, value in SECURITY_HEADERS]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
