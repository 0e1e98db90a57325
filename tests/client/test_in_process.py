"""The transports over small applications: streams in both directions, an application's faults, its lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tunesmith.client.in_process import AsyncInProcess, Host, InProcess


class Echo:
    """Answers each part of a body as it comes, after a first part that waits for none."""

    def __init__(self) -> None:
        self.lifespan: list[str] = []
        self.is_disconnected = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{word}"
                self.lifespan.append(word)
                await send({"type": f"lifespan.{word}.complete"})
            return
        if scope["path"] == "/fault":
            raise ValueError("of the application")
        if scope["path"] == "/silent":
            return
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-path", scope["path"].encode())]})
        await send({"type": "http.response.body", "body": scope["query_string"], "more_body": True})
        if scope["path"] == "/endless":
            number = 0
            try:
                while True:
                    number += 1
                    await send({"type": "http.response.body", "body": b"%d," % number, "more_body": True})
            finally:
                self.is_disconnected.set()
        while True:
            message = await receive()
            await send({"type": "http.response.body", "body": message["body"], "more_body": message["more_body"]})
            if not message["more_body"]:
                return


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def host(echo: Echo) -> Iterator[Host]:
    opened = Host(echo)
    yield opened
    opened.close()


def test_bodies_stream_in_both_directions(host: Host) -> None:
    with httpx2.Client(transport=InProcess(host), base_url="http://localhost") as client:
        answer = client.post("/path", params={"a": "b c"}, content=(each for each in [b"one", b"two"]))
        assert (answer.status_code, answer.headers["x-path"], answer.content) == (201, "/path", b"a=b+conetwo")


def test_an_answer_without_end_is_read_as_it_comes_and_left(host: Host, echo: Echo) -> None:
    client = httpx2.Client(transport=InProcess(host), base_url="http://localhost")
    with client.stream("GET", "/endless") as answer:
        parts = answer.iter_raw()
        assert [next(parts) for _ in range(100)][-1] == b"100,"
    host.run(asyncio.wait_for(echo.is_disconnected.wait(), 5))


def test_it_has_a_lifespan(echo: Echo) -> None:
    host = Host(echo)
    assert echo.lifespan == ["startup"]
    host.close()
    host.close()
    assert echo.lifespan == ["startup", "shutdown"]


def test_a_fault_of_the_application_is_raised(host: Host) -> None:
    client = httpx2.Client(transport=InProcess(host), base_url="http://localhost")
    with pytest.raises(ValueError, match="of the application"):
        client.get("/fault")
    with pytest.raises(httpx2.RemoteProtocolError):
        client.get("/silent")


def test_an_application_that_cannot_start_says_why() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("no start")

    with pytest.raises(ValueError, match="no start"):
        Host(broken)


def test_the_async_transport_does_the_same(host: Host) -> None:
    async def use() -> tuple[bytes, list[bytes]]:
        async def body() -> Any:
            yield b"one"
            yield b"two"

        client = httpx2.AsyncClient(transport=AsyncInProcess(host), base_url="http://localhost")
        whole = (await client.post("/path", content=body())).content
        parts: list[bytes] = []
        async with client.stream("GET", "/endless") as answer:
            async for part in answer.aiter_raw():
                parts.append(part)
                if len(parts) == 50:
                    break
        return whole, parts

    whole, parts = asyncio.run(use())
    assert whole == b"onetwo" and parts[0] == b"1,"
