"""How requests go to the server and answers come back: retries, pages, event streams, downloads.

In: an `Endpoint`. Out: spec models, or the package's own errors. A request is sent again after a lost connection where
that cannot do a thing twice: it changes nothing, sets what it sets, or carries an Idempotency-Key, by which the server
answers a repeated creation with the object that the first one made. What the server added since this release is
skipped, not refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError

from tunesmith import __version__
from tunesmith.client.connection import PROJECT_HEADER, Endpoint
from tunesmith.client.errors import error_of, lost, unreadable
from tunesmith.client.events import NumberedEvent, is_last, read_event
from tunesmith.client.streams import (
    RETRY_SECONDS,
    Download,
    EarlyAnswer,
    FileBody,
    Progress,
    async_sleep,
    retry_delay,
)

TIMEOUT = httpx2.Timeout(60.0, connect=5.0)
PAGE = 200
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})
NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

DOCUMENT = TypeAdapter(dict[str, Any])
Model = TypeVar("Model", bound=BaseModel)
Query = Mapping[str, Any]


class AsyncWire:
    """One connection pool to one server."""

    def __init__(self, endpoint: Endpoint, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.endpoint, self._transport = endpoint, transport
        self._http = self._new_http()

    def _new_http(self) -> httpx2.AsyncClient:
        endpoint = self.endpoint
        headers = {"User-Agent": f"tunesmith-client/{__version__}", "Accept": "application/json"}
        if endpoint.token is not None:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        if endpoint.project is not None:
            headers[PROJECT_HEADER] = endpoint.project
        return httpx2.AsyncClient(
            base_url=endpoint.url,
            headers=headers,
            timeout=TIMEOUT,
            transport=self._transport,
            trust_env=not endpoint.is_loopback,  # what stays on this machine goes through no proxy
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def fetch(self, model: type[Model], method: str, path: str, **request: Any) -> Model:
        """The answer as a spec model."""
        return self.parsed(model, (await self.send(method, path, **request)).content)

    def parsed(self, model: type[Model], body: bytes | Mapping[str, Any]) -> Model:
        try:
            if isinstance(body, bytes):
                return model.model_validate_json(body, extra="ignore")
            return model.model_validate(body, extra="ignore")
        except ValidationError as error:
            raise unreadable(self.endpoint.url) from error

    async def pages(
        self, model: type[Model], path: str, plural: str, *, query: Query | None = None, limit: int | None = None
    ) -> list[Model]:
        """A list, page after page: the first `limit` objects, or all of them."""
        return [self.parsed(model, each) for each in await self.rows(path, plural, query=query, limit=limit)]

    async def rows(
        self, path: str, plural: str, *, query: Query | None = None, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """The same as plain JSON."""
        found: list[dict[str, Any]] = []
        after: Any = None
        while limit is None or len(found) < limit:
            wanted = PAGE if limit is None else min(PAGE, limit - len(found))
            page = await self.document("GET", path, query={**(query or {}), "limit": wanted, "after": after})
            found += page.get(plural, ())
            after = page.get("next")
            if after is None:
                break
        return found

    async def document(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The answer as plain JSON, for what no spec model describes."""
        answer = await self.send(method, path, **request)
        if not answer.content:
            return {}
        try:
            return DOCUMENT.validate_json(answer.content)
        except ValidationError as error:
            raise unreadable(self.endpoint.url) from error

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        file: FileBody | None = None,
        creates: bool = False,
        timeout: httpx2.Timeout = TIMEOUT,
    ) -> httpx2.Response:
        """The whole answer to one request. creates: it makes an object, so it carries an Idempotency-Key."""
        headers = {"Idempotency-Key": uuid4().hex} if creates else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if file is not None:
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(file.size)}
        is_repeatable = creates or method in REPEATABLE
        may_have_arrived = False
        for attempt in range(len(RETRY_SECONDS) + 1):
            is_last_try = attempt == len(RETRY_SECONDS)
            content = None if body is None else json.dumps(body).encode()
            request: dict[str, Any] = {"params": _present(query), "headers": headers, "timeout": timeout}
            try:
                if file is None:
                    answer = await self._http.request(method, path, content=content, **request)
                else:
                    answer = await self._upload(method, path, file, **request)
            except httpx2.TransportError as error:
                was_sent = not isinstance(error, NOT_SENT)
                may_have_arrived |= was_sent
                if is_last_try or (was_sent and not is_repeatable):
                    raise lost(error, url=self.endpoint.url) from error
                await async_sleep(retry_delay(attempt))
                continue
            if answer.status_code == 404 and method == "DELETE" and may_have_arrived:
                return answer  # the try whose answer was lost did it
            if answer.status_code < 300:
                return answer
            error = error_of(answer.status_code, answer.content, url=self.endpoint.url)
            if is_last_try or not error.code.endswith("BUSY") or answer.status_code != 503:
                raise error
            await async_sleep(retry_delay(attempt))  # refused for now, and not begun
        raise AssertionError("the last try answers or raises")

    async def _upload(self, method: str, path: str, file: FileBody, **request: Any) -> httpx2.Response:
        """Over a connection of its own, on which an answer is seen while the file is still on its way."""
        early = EarlyAnswer()
        http = self._http if self._transport is not None else self._new_http()
        try:
            return await http.request(
                method, path, content=file.async_chunks(early), extensions={"trace": early.async_trace}, **request
            )
        finally:
            if http is not self._http:
                await http.aclose()

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: Any = None,
        timeout: httpx2.Timeout = TIMEOUT,
    ) -> AsyncGenerator[httpx2.Response]:
        """The answer to one request, whose body is read by the caller."""
        given = dict(headers or {}) | ({} if body is None else {"Content-Type": "application/json"})
        content = None if body is None else json.dumps(body).encode()
        async with self._http.stream(
            method, path, params=_present(query), headers=given, content=content, timeout=timeout
        ) as answer:
            if answer.status_code >= 300:
                raise error_of(answer.status_code, await answer.aread(), url=self.endpoint.url)
            yield answer

    async def download(
        self, path: str, target: Path, *, query: Query | None = None, progress: Progress | None = None
    ) -> Path:
        """The body of a GET as a file, which appears under its name when it is whole."""
        try:
            async with self.stream(path, query=query, headers={"Accept": "*/*"}) as answer:
                size = int(answer.headers.get("Content-Length", 0))
                with Download(target, size=size, progress=progress) as download:
                    async for chunk in answer.aiter_bytes():
                        download.write(chunk)
        except httpx2.TransportError as error:
            raise lost(error, url=self.endpoint.url) from error
        return target

    async def events(self, job_id: str, *, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """A job's events as they come, from number `after` + 1 to its end, over lost connections and restarts."""
        failures = 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            try:
                async with self.stream(f"/api/jobs/{job_id}/events", query={"after": after}, headers=headers) as answer:
                    if answer.status_code == 204:  # the job is over, and all of it was told
                        return
                    async for message in httpx2.EventSource(answer):
                        if message.event == "end":
                            return
                        found = read_event(message.data)
                        if found is None or found.number <= after:
                            continue
                        after, failures = found.number, 0
                        yield found
                        if is_last(found.event):
                            return
            except httpx2.ReadTimeout:
                continue  # not even a sign of life for a minute
            except httpx2.SSEError as error:
                raise unreadable(self.endpoint.url) from error
            except httpx2.TransportError as error:
                failures += 1
                if failures > len(RETRY_SECONDS):
                    raise lost(error, url=self.endpoint.url) from error
            await async_sleep(retry_delay(failures))


def _present(query: Query | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}
