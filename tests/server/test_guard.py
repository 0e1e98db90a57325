"""What a request meets before any route: hosts, origins, methods, paths, sizes, deadlines."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from tests.server.conftest import HOST, ask_raw, form_of
from tunesmith.server import guard
from tunesmith.server.app import create_app
from tunesmith.server.guard import Guard, ReaderGone
from tunesmith.server.service import Service

WRITING = ("POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("host", ["127.0.0.1:8440", "127.0.0.1", "localhost:8440", "LOCALHOST", "[::1]:8440"])
def test_our_own_names_are_served(app: ASGIApp, host: str) -> None:
    assert ask_raw(app, "GET", "/healthz", [(b"host", host.encode())]).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:8440", "127.0.0.1:8440/x", "127.0.0.1?x", "a@127.0.0.1", "", " ",
     "127.0.0.1:999999", "169.254.169.254", "localhost,evil.example", "127.0.0.1\\@evil"],
)  # fmt: skip
def test_any_other_host_is_refused_on_every_route(app: ASGIApp, host: str) -> None:
    for path in ("/healthz", "/api/jobs", "/nowhere"):
        answer = ask_raw(app, "GET", path, [(b"host", host.encode())])
        assert (answer.status, form_of(json.loads(answer.body))["code"]) == (421, "HOST_NOT_ALLOWED")


def test_no_host_and_two_hosts_are_refused(app: ASGIApp) -> None:
    assert ask_raw(app, "GET", "/healthz", []).status == 421
    assert ask_raw(app, "GET", "/healthz", [HOST, HOST]).status == 421


def test_a_name_that_the_administrator_gave_is_served(service: Service) -> None:
    app = create_app(service, allowed_hosts=["tune.example"])
    assert ask_raw(app, "GET", "/healthz", [(b"host", b"tune.example:8440")]).status == 200


@pytest.mark.parametrize("method", WRITING)
@pytest.mark.parametrize(
    "headers",
    [
        [(b"origin", b"https://evil.example")],
        [(b"origin", b"null")],
        [(b"origin", b"http://127.0.0.1:9999")],
        [(b"origin", b"http://localhost:8440")],  # another name is another site
        [(b"origin", b"http://127.0.0.1:8440"), (b"origin", b"https://evil.example")],
        [(b"sec-fetch-site", b"cross-site")],
        [(b"sec-fetch-site", b"same-site")],
        [(b"origin", b"http://127.0.0.1:8440"), (b"sec-fetch-site", b"cross-site")],
    ],
)
def test_a_page_of_another_site_cannot_change_anything_even_with_a_token(
    app: ASGIApp, token: str, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    path = "/api/version-sets/x/aliases/y" if method == "PUT" else "/api/logs/x"
    answer = ask_raw(app, method, path, [HOST, (b"authorization", b"Bearer " + token.encode()), *headers])
    assert (answer.status, form_of(json.loads(answer.body))["code"]) == (403, "ORIGIN_NOT_ALLOWED")


@pytest.mark.parametrize(
    "headers", [[], [(b"origin", b"http://127.0.0.1:8440")], [(b"sec-fetch-site", b"same-origin")]]
)
def test_our_own_page_and_a_program_pass(app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> None:
    assert ask_raw(app, "DELETE", "/api/logs/x", [HOST, *headers]).status == 401  # the token is looked at next


def test_a_foreign_origin_reads_nothing_either(app: ASGIApp) -> None:
    assert ask_raw(app, "GET", "/healthz", [HOST, (b"origin", b"https://evil.example")]).status == 403


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "HEAD", "get", "X" * 300])
def test_methods_beyond_the_five_are_refused(app: ASGIApp, method: str) -> None:
    answer = ask_raw(app, method, "/api/jobs", [HOST])
    assert (answer.status, form_of(json.loads(answer.body))["code"]) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    "path",
    ["/api/../etc/passwd", "/api/versions/a:1/files/../../../token", "/api/versions/a:1/files/..", "/api/./jobs",
     "/api/versions/a:1/files/..\\..\\token", "/api/jobs/a\x00b", "/api/jobs/a\r\nb", "/api/jobs/a\x7f"],
)  # fmt: skip
def test_a_path_that_climbs_or_acts_is_refused(app: ASGIApp, token: str, path: str) -> None:
    answer = ask_raw(app, "GET", path, [HOST, (b"authorization", b"Bearer " + token.encode())])
    assert (answer.status, form_of(json.loads(answer.body))["code"]) == (400, "BAD_PATH")


def test_a_path_of_many_bytes_is_refused(app: ASGIApp) -> None:
    assert ask_raw(app, "GET", "/api/jobs/" + "a" * 5000, [HOST]).status == 400


def test_large_and_many_headers_are_refused(app: ASGIApp) -> None:
    assert ask_raw(app, "GET", "/healthz", [HOST, (b"x", b"a" * 40_000)]).status == 431
    assert ask_raw(app, "GET", "/healthz", [HOST, *[(b"x", b"a")] * 200]).status == 431


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"deflate", b"identity, gzip"])
def test_a_compressed_body_is_not_opened(app: ASGIApp, encoding: bytes) -> None:
    answer = ask_raw(app, "POST", "/api/jobs", [HOST, (b"content-encoding", encoding)])
    assert (answer.status, form_of(json.loads(answer.body))["code"]) == (415, "CONTENT_ENCODING")


def test_every_answer_carries_security_headers_and_a_number(app: ASGIApp) -> None:
    numbers: set[str] = set()
    for path, host in (("/healthz", b"127.0.0.1"), ("/nowhere", b"127.0.0.1"), ("/healthz", b"evil")):
        headers = ask_raw(app, "GET", path, [(b"host", host)]).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers and "access-control-allow-origin" not in headers
        numbers.add(headers["x-request-id"])
    assert len(numbers) == 3


def test_a_body_that_lies_about_its_length_is_cut_off_at_the_cap(app: ASGIApp, token: str) -> None:
    headers = [HOST, (b"authorization", b"Bearer " + token.encode()), (b"content-type", b"application/json")]
    answer = ask_raw(app, "POST", "/api/jobs", headers, body=[b" " * 400_000] * 10)
    assert answer.status == 413


def test_a_body_that_stops_coming_is_given_up(app: ASGIApp, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "READ_IDLE_SECONDS", 0.05)
    told: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("given up long before")

    async def send(message: Message) -> None:
        told.append(message)

    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/api/jobs", "raw_path": b"/api/jobs", "query_string": b"",
        "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8440),
        "headers": [HOST, (b"authorization", b"Bearer " + token.encode()), (b"content-type", b"application/json")],
        "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert told[0]["status"] == 408


def test_a_reader_that_takes_nothing_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WRITE_IDLE_SECONDS", 0.05)
    ended: list[BaseException] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except ReaderGone as error:
            ended.append(error)
            raise

    async def stuck(_message: Message) -> None:
        await asyncio.sleep(60)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/x", "headers": [HOST], "raw_path": b"/x"}
    asyncio.run(Guard(endless)(scope, receive, stuck))
    assert len(ended) == 1


def test_a_busy_server_says_so(app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAXIMUM_REQUESTS", 0)
    answer = ask_raw(app, "GET", "/healthz", [HOST])
    assert (answer.status, form_of(json.loads(answer.body))["code"]) == (503, "BUSY")
    assert answer.headers["retry-after"] == "5"
