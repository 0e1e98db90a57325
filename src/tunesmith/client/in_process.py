"""The server's application inside this process, for a client where no server runs.

In: an ASGI application. Out: transports for httpx2's two clients. The application runs in an event loop of its own
thread, with its lifespan; bodies stream in both directions (httpx2's own ASGI transport gathers the whole answer first,
so that an event stream would never begin). No socket is opened.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import httpx2

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

CHUNKS_AHEAD = 16  # of an answer, before the application waits for its reader


class Host:
    """Runs one application; closed by `close`. Safe to use from many threads and event loops."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tunesmith-in-process", daemon=True)
        self._thread.start()
        try:
            self._lifespan = self.run(self._start())
        except BaseException:
            self._end()
            raise

    def run(self, work: Any) -> Any:
        """The result of a coroutine in the application's loop, for a caller in another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def later(self, work: Any) -> asyncio.Future[Any]:
        """The same for a caller in another event loop."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _start(self) -> Lifespan:
        lifespan = Lifespan(self._application)
        await lifespan.start()
        return lifespan

    def close(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self.run(self._lifespan.stop())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def begin(self, request: httpx2.Request) -> Exchange:
        exchange = Exchange(request)
        await exchange.begin(self._application)
        return exchange


class Lifespan:
    """The application's start and end, as a server would tell it of them."""

    def __init__(self, application: Application) -> None:
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        scope: Message = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._task = asyncio.ensure_future(application(scope, self._told.get, self._answers.put))

    async def start(self) -> None:
        await self._told.put({"type": "lifespan.startup"})
        answer = asyncio.ensure_future(self._answers.get())
        await asyncio.wait((answer, self._task), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self._task.result()  # the application's own exception; one without a lifespan just returns
        elif answer.result()["type"] == "lifespan.startup.failed":
            await self._task

    async def stop(self) -> None:
        if not self._task.done():
            await self._told.put({"type": "lifespan.shutdown"})
            await self._task


class Exchange:
    """One request and its answer; all of it happens in the application's loop."""

    def __init__(self, request: httpx2.Request) -> None:
        self._request = request
        self._body = _chunks(request)
        self._is_sent = False
        self._is_over = asyncio.Event()
        self._head: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS_AHEAD)

    async def begin(self, application: Application) -> None:
        self._task = asyncio.ensure_future(application(_scope(self._request), self._receive, self._send))
        await asyncio.wait((self._head, self._task), return_when=asyncio.FIRST_COMPLETED)
        if not self._head.done():
            self._task.result()
            raise httpx2.RemoteProtocolError("The application ended without an answer.")

    @property
    def status(self) -> int:
        return self._head.result()["status"]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self._head.result().get("headers", ()))

    async def chunk(self) -> bytes | None:
        """The next part of the answer's body; None at its end."""
        taken = asyncio.ensure_future(self._chunks.get())
        await asyncio.wait((taken, self._task), return_when=asyncio.FIRST_COMPLETED)
        if taken.done():
            return taken.result()
        taken.cancel()
        if not self._chunks.empty():
            return self._chunks.get_nowait()
        self._task.result()
        return None

    async def end(self) -> None:
        """The reader is gone or has all: the application sees a disconnect and is ended."""
        self._is_over.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _receive(self) -> Message:
        if self._is_sent:
            await self._is_over.wait()
            return {"type": "http.disconnect"}
        chunk = await anext(self._body, None)
        self._is_sent = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": not self._is_sent}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head.set_result(message)
        elif message["type"] == "http.response.body":
            if body := message.get("body", b""):
                await self._chunks.put(body)
            if not message.get("more_body", False):
                await self._chunks.put(None)


def _scope(request: httpx2.Request) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port or 80),
        "client": ("127.0.0.1", 0),
        "root_path": "",
    }


async def _chunks(request: httpx2.Request) -> AsyncIterator[bytes]:
    if isinstance(request.stream, httpx2.AsyncByteStream):
        async for chunk in request.stream:
            yield chunk
        return
    assert isinstance(request.stream, httpx2.SyncByteStream)
    iterator = iter(request.stream)
    while (chunk := await asyncio.to_thread(next, iterator, None)) is not None:
        yield chunk


class InProcess(httpx2.BaseTransport):
    """For `httpx2.Client`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = self._host.run(self._host.begin(request))
        return httpx2.Response(exchange.status, headers=exchange.headers, stream=_Body(self._host, exchange))

    def close(self) -> None:
        self._host.close()


class _Body(httpx2.SyncByteStream):
    def __init__(self, host: Host, exchange: Exchange) -> None:
        self._host, self._exchange = host, exchange

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._host.run(self._exchange.chunk())) is not None:
            yield chunk

    def close(self) -> None:
        self._host.run(self._exchange.end())


class AsyncInProcess(httpx2.AsyncBaseTransport):
    """For `httpx2.AsyncClient`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = await self._host.later(self._host.begin(request))
        return httpx2.Response(exchange.status, headers=exchange.headers, stream=_AsyncBody(self._host, exchange))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._host.close)


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, host: Host, exchange: Exchange) -> None:
        self._host, self._exchange = host, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._host.later(self._exchange.chunk())) is not None:
            yield chunk

    async def aclose(self) -> None:
        await self._host.later(self._exchange.end())
