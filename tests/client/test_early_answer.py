"""An upload that the server refuses before it has all of it: real sockets, since that is where it goes wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.connection import Endpoint
from tunesmith.client.streams import FileBody
from tunesmith.client.synchronous.wire import Wire
from tunesmith.errors import InputRefused, MachineCannot

FILE_BYTES = 400 << 20  # sparse; far more than the sockets' buffers hold
FORM = {"code": "BODY_TOO_LARGE", "message": "Too large.", "field": "body", "hint": "Send less."}
Manner = Literal["reads on", "hangs up", "hangs up without a word"]


class Refusing:
    """Answers 413 as soon as the headers are there; then reads on as uvicorn does, or closes as many proxies do."""

    def __init__(self, manner: Manner) -> None:
        self.manner, self.received, self.requests = manner, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.requests += 1
                with connection, suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        if self.manner == "hangs up without a word":
            return
        body = json.dumps({"error": FORM}).encode()
        connection.sendall(b"HTTP/1.1 413 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        while self.manner == "reads on" and (data := connection.recv(1 << 20)):
            self.received += len(data)
        time.sleep(0.1)  # the answer is on its way before the reset is


@contextmanager
def refusing(manner: Manner) -> Generator[Refusing]:
    server = Refusing(manner)
    yield server
    server.listener.close()


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as handle:
        handle.truncate(FILE_BYTES)
    return path


def upload(url: str, path: Path, *, is_async: bool) -> int:
    """Sends it; returns the bytes that went out."""
    sent = 0

    def progress(done: int, _all: int) -> None:
        nonlocal sent
        sent = done

    request = {"file": FileBody(path, progress), "creates": True}
    try:
        if is_async:

            async def send() -> None:
                wire = AsyncWire(Endpoint(url=url, token="token"))
                try:
                    await wire.send("POST", "/api/datasets", **request)
                finally:
                    await wire.aclose()

            asyncio.run(send())
        else:
            Wire(Endpoint(url=url, token="token")).send("POST", "/api/datasets", **request)
    finally:
        assert sent < FILE_BYTES // 4, f"{sent:,} bytes of {FILE_BYTES:,} were sent to a server that had refused them"
    return sent


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("manner", ["reads on", "hangs up"])
def test_a_refusal_ends_the_sending_and_is_what_is_told(manner: Manner, is_async: bool, huge: Path) -> None:
    with refusing(manner) as server, pytest.raises(InputRefused) as caught:
        upload(server.url, huge, is_async=is_async)
    assert caught.value.form() == FORM
    if manner == "reads on":
        assert server.requests == 1, "a refusal is no lost connection"
    # A server that hangs up in the middle of a write may take its answer with it: then it is asked again.


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_server_that_hangs_up_without_a_word_is_a_lost_connection(
    is_async: bool, huge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("synchronous", "asynchronous"):
        monkeypatch.setattr(f"tunesmith.client.{name}.wire.RETRY_SECONDS", (0.01,))
    with refusing("hangs up without a word") as server, pytest.raises(MachineCannot) as caught:
        upload(server.url, huge, is_async=is_async)
    assert caught.value.code == "CONNECTION_LOST" and server.requests == 2
