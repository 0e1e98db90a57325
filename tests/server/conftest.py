"""The service over a state folder of its own, asked in this process; no queue runs unless a test starts a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from tunesmith.jobs.home import open_home
from tunesmith.jobs.records import new_job_id
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import NewJob
from tunesmith.server.app import create_app
from tunesmith.server.auth import ensure_home_token
from tunesmith.server.console import Console
from tunesmith.server.guard import Guard
from tunesmith.server.service import Service, make_service
from tunesmith.spec.jobs import JobRecord
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

URL = "http://127.0.0.1:8440"
HOST = (b"host", b"127.0.0.1:8440")
ROWS = b"".join(b'{"prompt": "%d", "completion": "%d"}\n' % (number, number + 1) for number in range(20))
UPLOAD = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))
    ensure_home_token(state.home, state.database)
    yield state
    state.database.close()


@pytest.fixture
def token(state: State) -> str:
    return (state.home.root / "token").read_text().strip()


@pytest.fixture
def service(state: State) -> Service:
    return make_service(state, {}, queue=None)


@cache
def _application(*, with_console: bool) -> Guard:
    return cast(Guard, create_app(cast(Service, None), console=Console() if with_console else None))


def app_over(service: Service, *, with_console: bool = False) -> ASGIApp:
    """The application over this service: one at a time, for its routes, made once a process, take long to make."""
    guard = _application(with_console=with_console)
    cast(FastAPI, guard._app).state.service = service
    return guard


@pytest.fixture
def app(service: Service) -> ASGIApp:
    return app_over(service)


@pytest.fixture
def client(app: ASGIApp, token: str) -> Iterator[TestClient]:
    """The local administrator."""
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def add_job(state: State, **asked: Any) -> JobRecord:
    """A job that was submitted, without a request's checks."""
    request = FinetuneRequest(model="tunesmith/demo", dataset=asked.pop("dataset", "/data/rows.jsonl"), **asked)
    new = NewJob(
        job_id=new_job_id(), request=request, settings=TrainingSettings(), version_set="demo-rows", results_uri=None,
        results_root=state.home.results, base_name="tunesmith/demo",
    )  # fmt: skip
    return state.database.write_grouped(lambda connection: state.jobs.insert(connection, new))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask_raw(
    app: ASGIApp, method: str, path: str, headers: list[tuple[bytes, bytes]], *, body: list[bytes] | None = None,
    raw_path: bytes | None = None,
) -> Answer:  # fmt: skip
    """A request as it comes from the network: no client library mends its path or its headers."""
    chunks = list(body or [b""])
    told: list[Any] = []

    async def receive() -> Any:
        if not chunks:
            return {"type": "http.disconnect"}
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": raw_path or path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
        "headers": headers, "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8440),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in told[0]["headers"]}
    return Answer(told[0]["status"], found, b"".join(message.get("body", b"") for message in told[1:]))


def form_of(body: Any, path: str = "/api") -> dict[str, Any]:
    """The error of an answer, whose form is the one form: ours, or OpenAI's under /v1."""
    assert set(body) == {"error"}
    ours = {"code", "message", "field", "hint"}
    assert set(body["error"]) == ({"message", "type", "param", "code"} if path.startswith("/v1/") else ours)
    assert body["error"]["code"] and body["error"]["message"]
    return body["error"]
