"""Requests, retries, pages, streams and downloads, over answers that the test gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tunesmith.client import Client, streams
from tunesmith.client.asynchronous.wire import AsyncWire
from tunesmith.client.connection import Endpoint
from tunesmith.client.streams import CHUNK_BYTES, RETRY_SECONDS, FileBody
from tunesmith.client.synchronous.wire import PAGE, Wire
from tunesmith.errors import Conflict, InputRefused, MachineCannot, NotPermitted, TunesmithError, Unknown, UsageFault
from tunesmith.spec.catalog import LogView
from tunesmith.spec.hub import DownloadState, DownloadView

ENDPOINT = Endpoint(url="http://127.0.0.1:8440", token="secret-token")
LOG = {"name": "a", "description": "", "retention_days": 1, "maximum_bytes": 1, "created_at": "2026-01-01"}
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    for name in ("synchronous", "asynchronous"):
        module = f"tunesmith.client.{name}.wire"
        monkeypatch.setattr(f"{module}.{'sleep' if name == 'synchronous' else 'async_sleep'}",
                            paused.append if name == "synchronous" else pause)  # fmt: skip
    return paused


def wire(handler: Handler) -> Wire:
    return Wire(ENDPOINT, transport=httpx2.MockTransport(handler))


def answers(*steps: httpx2.Response | Exception) -> tuple[Handler, list[httpx2.Request]]:
    """A handler that answers one step after the other, and the requests that it saw."""
    seen: list[httpx2.Request] = []
    left = list(steps)

    def handle(request: httpx2.Request) -> httpx2.Response:
        request.read()
        seen.append(request)
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return handle, seen


def refusal(status: int, code: str = "SOME_CODE", **headers: str) -> httpx2.Response:
    form = {"code": code, "message": "No.", "field": "x", "hint": "Do this."}
    return httpx2.Response(status, json={"error": form}, headers=headers)


@pytest.mark.parametrize(
    ("status", "code", "family"),
    [
        (401, "TOKEN_WRONG", NotPermitted),
        (403, "NOT_PERMITTED", NotPermitted),
        (404, "UNKNOWN_JOB", Unknown),
        (409, "IDEMPOTENCY_KEY_REUSED", Conflict),
        (413, "BODY_TOO_LARGE", InputRefused),
        (422, "EMPTY_COMPLETION", InputRefused),
        (422, "BAD_OPTION", UsageFault),
        (422, "BAD_ALIAS", UsageFault),
        (422, "NOT_BUILT", MachineCannot),
        (409, "HUB_UNREACHABLE", MachineCannot),
        (500, "INTERNAL", TunesmithError),
        (503, "DISK_FULL", MachineCannot),
    ],
)
def test_a_refusal_comes_back_as_our_own_error(status: int, code: str, family: type[TunesmithError]) -> None:
    handle, seen = answers(refusal(status, code))
    with pytest.raises(family) as caught:
        wire(handle).send("POST", "/api/jobs", body={}, creates=True)
    assert type(caught.value) is family
    assert caught.value.form() == {"code": code, "message": "No.", "field": "x", "hint": "Do this."}
    assert len(seen) == 1


@pytest.mark.parametrize("body", [b"<html>proxy</html>", b'{"error": "text"}', b'["list"]', b'{"error": {"code": 1}}'])
def test_an_answer_of_something_else_is_told_as_such(body: bytes) -> None:
    handle, _ = answers(httpx2.Response(502, content=body))
    with pytest.raises(MachineCannot, match="not in the form of a Tunesmith server"):
        wire(handle).send("GET", "/api/system")


def test_the_token_goes_along_and_is_shown_nowhere() -> None:
    handle, seen = answers(httpx2.Response(200, json={}))
    wire(handle).send("GET", "/api/system")
    assert seen[0].headers["Authorization"] == "Bearer secret-token"
    assert "secret-token" not in repr(ENDPOINT)


def test_a_repeated_creation_carries_the_same_key() -> None:
    handle, seen = answers(httpx2.ReadError("gone"), httpx2.ConnectError("down"), httpx2.Response(200, json=LOG))
    made = wire(handle).fetch(LogView, "POST", "/api/logs", body={"name": "a"}, creates=True)
    assert made.name == "a"
    keys = {request.headers["Idempotency-Key"] for request in seen}
    assert len(seen) == 3 and len(keys) == 1
    assert [json.loads(request.content) for request in seen] == [{"name": "a"}] * 3


def test_two_creations_have_two_keys() -> None:
    handle, seen = answers(httpx2.Response(201, json=LOG), httpx2.Response(201, json=LOG))
    client = wire(handle)
    for _ in range(2):
        client.send("POST", "/api/logs", body={}, creates=True)
    assert seen[0].headers["Idempotency-Key"] != seen[1].headers["Idempotency-Key"]


def test_an_act_that_may_have_arrived_is_not_repeated() -> None:
    handle, seen = answers(httpx2.ReadError("gone"))
    with pytest.raises(MachineCannot) as caught:
        wire(handle).send("POST", "/api/jobs/job-1/cancel")
    assert caught.value.code == "CONNECTION_LOST" and len(seen) == 1


def test_an_act_that_was_never_sent_is_tried_again() -> None:
    handle, seen = answers(httpx2.ConnectError("restarting"), httpx2.Response(200, json={}))
    wire(handle).send("POST", "/api/jobs/job-1/cancel")
    assert len(seen) == 2


def test_tries_end_with_the_way_out(no_pauses: list[float]) -> None:
    handle, seen = answers(*[httpx2.ConnectError("down")] * (len(RETRY_SECONDS) + 1))
    with pytest.raises(MachineCannot, match="tunesmith serve") as caught:
        wire(handle).send("GET", "/api/jobs")
    assert caught.value.code == "SERVER_UNREACHABLE"
    assert len(seen) == len(RETRY_SECONDS) + 1
    assert no_pauses == sorted(no_pauses) and sum(no_pauses) > 4


def test_a_deletion_whose_answer_was_lost_is_done() -> None:
    handle, _ = answers(httpx2.ReadError("gone"), refusal(404, "UNKNOWN_LOG"))
    assert wire(handle).send("DELETE", "/api/logs/a").status_code == 404
    handle, _ = answers(httpx2.ConnectError("down"), refusal(404, "UNKNOWN_LOG"))
    with pytest.raises(Unknown):
        wire(handle).send("DELETE", "/api/logs/a")


def test_a_busy_server_is_asked_again_and_another_refusal_is_not(no_pauses: list[float]) -> None:
    handle, seen = answers(refusal(503, "STATE_BUSY"), httpx2.Response(200, json={}))
    wire(handle).send("POST", "/api/jobs/job-1/cancel")
    assert len(seen) == 2 and len(no_pauses) == 1
    handle, seen = answers(refusal(503, "LOCATION_UNREACHABLE"))
    with pytest.raises(MachineCannot):
        wire(handle).send("GET", "/api/jobs")
    assert len(seen) == 1


def paged(num_rows: int) -> Handler:
    def handle(request: httpx2.Request) -> httpx2.Response:
        limit, after = int(request.url.params["limit"]), int(request.url.params.get("after", 0))
        assert 1 <= limit <= PAGE
        rows = [LOG | {"name": f"log-{number}"} for number in range(after, min(after + limit, num_rows))]
        following = str(after + limit) if after + limit < num_rows else None
        return httpx2.Response(200, json={"logs": rows, "next": following})

    return handle


@pytest.mark.parametrize(("limit", "num"), [(None, 450), (1, 1), (200, 200), (201, 201), (1000, 450), (0, 0)])
def test_lists_follow_their_pages_to_the_limit(limit: int | None, num: int) -> None:
    found = wire(paged(450)).pages(LogView, "/api/logs", "logs", limit=limit)
    assert [each.name for each in found] == [f"log-{number}" for number in range(num)]


def test_what_a_newer_server_adds_is_skipped() -> None:
    handle, _ = answers(httpx2.Response(200, json=LOG | {"colour": "blue"}))
    assert wire(handle).fetch(LogView, "GET", "/api/logs/a").name == "a"


@pytest.mark.parametrize("body", [b"{}", b"not json", b'{"name": 3}'])
def test_an_answer_that_is_not_understood_is_no_traceback(body: bytes) -> None:
    handle, _ = answers(httpx2.Response(200, content=body))
    with pytest.raises(MachineCannot) as caught:
        wire(handle).fetch(LogView, "GET", "/api/logs/a")
    assert caught.value.code == "UNEXPECTED_ANSWER"


# ---- files


def test_an_upload_streams_and_tells_its_progress(tmp_path: Path) -> None:
    content = bytes(range(256)) * (CHUNK_BYTES // 128) + b"end"
    (tmp_path / "rows.jsonl").write_bytes(content)
    told: list[tuple[int, int]] = []
    handle, seen = answers(httpx2.ReadError("gone"), httpx2.Response(201, json={}))
    file = FileBody(tmp_path / "rows.jsonl", lambda done, total: told.append((done, total)))
    wire(handle).send("POST", "/api/datasets", file=file, creates=True)
    assert [request.content for request in seen] == [content, content], "a retry reads the file anew"
    assert told[:3] == [(CHUNK_BYTES, len(content)), (2 * CHUNK_BYTES, len(content)), (len(content), len(content))]
    assert seen[0].headers["Content-Length"] == str(len(content))
    assert "Transfer-Encoding" not in seen[0].headers


@pytest.mark.parametrize("name", ["absent", "folder"])
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_sent(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputRefused) as caught:
        FileBody(tmp_path / name, None)
    assert caught.value.code == "FILE_NOT_READABLE" and name in caught.value.message


class Broken(httpx2.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"half"
        raise httpx2.ReadError("gone")


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "version.zip"
    handle, _ = answers(httpx2.Response(200, content=b"whole"))
    assert wire(handle).download("/api/x", target) == target
    assert target.read_bytes() == b"whole"
    handle, _ = answers(httpx2.Response(200, stream=Broken()))
    with pytest.raises(MachineCannot) as caught:
        wire(handle).download("/api/x", target)
    assert caught.value.code == "CONNECTION_LOST"
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_refused_download_is_its_refusal(tmp_path: Path) -> None:
    handle, _ = answers(refusal(409, "VERSION_NOT_ACTIVE"))
    with pytest.raises(Conflict):
        wire(handle).download("/api/x", tmp_path / "version.zip")
    assert list(tmp_path.iterdir()) == []


# ---- event streams


def event(number: int, **fields: Any) -> dict[str, Any]:
    return {"number": number, "time": "2026-01-01T00:00:00Z"} | fields


NOTICE = {"kind": "notice", "code": "SAID", "message": "so"}
END = {"kind": "state", "state": "SUCCEEDED", "previous": "IN_PROGRESS"}


def stream(*events: dict[str, Any], breaks: bool = False) -> httpx2.Response:
    class Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b": still here\n\n"
            for each in events:
                yield f"id: {each['number']}\ndata: {json.dumps(each)}\n\n".encode()
            if breaks:
                raise httpx2.ReadError("gone")

        async def __aiter__(self) -> Any:
            for chunk in self:
                yield chunk

    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Body())


def test_a_stream_goes_on_after_a_lost_connection_where_it_was() -> None:
    handle, seen = answers(
        stream(event(1, **NOTICE), event(2, **NOTICE), breaks=True),
        httpx2.ConnectError("restarting"),
        stream(event(2, **NOTICE), event(3, **NOTICE)),
        stream(event(4, **END), event(5, **NOTICE)),
    )
    assert [each.number for each in wire(handle).events("job-1")] == [1, 2, 3, 4]
    assert [request.headers["Last-Event-ID"] for request in seen] == ["0", "2", "2", "3"]
    assert {request.headers["Accept"] for request in seen} == {"text/event-stream"}


def test_a_kind_of_event_that_is_not_known_is_skipped() -> None:
    handle, _ = answers(stream(event(1, kind="fireworks"), event(2, **END)))
    assert [each.number for each in wire(handle).events("job-1")] == [2]


def test_a_stream_without_a_server_ends_with_an_error() -> None:
    handle, _ = answers(*[httpx2.ConnectError("down")] * (len(RETRY_SECONDS) + 1))
    with pytest.raises(MachineCannot) as caught:
        list(wire(handle).events("job-1"))
    assert caught.value.code == "SERVER_UNREACHABLE"


def test_a_stream_of_an_unknown_job_is_refused() -> None:
    handle, _ = answers(refusal(404, "UNKNOWN_JOB"))
    with pytest.raises(Unknown):
        list(wire(handle).events("job-1"))


def test_the_async_wire_does_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"rows")
    handle, seen = answers(
        httpx2.ReadError("gone"),
        httpx2.Response(201, json=LOG),
        stream(event(1, **NOTICE), breaks=True),
        stream(event(2, **END)),
        httpx2.Response(200, content=b"whole"),
    )

    async def use() -> list[int]:
        async def handle_async(request: httpx2.Request) -> httpx2.Response:
            await request.aread()
            return handle(request)

        client = AsyncWire(ENDPOINT, transport=httpx2.MockTransport(handle_async))
        file = FileBody(tmp_path / "rows.jsonl", None)
        assert (await client.fetch(LogView, "POST", "/api/datasets", file=file, creates=True)).name == "a"
        numbers = [each.number async for each in client.events("job-1")]
        await client.download("/api/x", tmp_path / "version.zip")
        await client.aclose()
        return numbers

    assert asyncio.run(use()) == [1, 2]
    assert (tmp_path / "version.zip").read_bytes() == b"whole"
    assert seen[0].headers["Idempotency-Key"] == seen[1].headers["Idempotency-Key"]


def test_who_waits_for_a_download_is_told_once_why_it_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.client.synchronous.nouns.sleep", lambda _seconds: None)
    view = DownloadView(
        download_id="dl-1", state=DownloadState.WAITING, waiting_reason=None, name="a/b", hub_id="a/b",
        revision="c" * 40, location=None, target_uri="file:///m", files=1, left_out=[], bytes_total=9, bytes_done=0,
        is_cancel_wanted=False, failure=None, submitted_by="local", created_at="2026-01-01", finished_at=None,
    )  # fmt: skip
    steps: list[dict[str, Any]] = [
        {"waiting_reason": "first"}, {"waiting_reason": "first"}, {"state": DownloadState.RUNNING},
        {"waiting_reason": "second"}, {"state": DownloadState.SUCCEEDED},
    ]  # fmt: skip
    handle, _ = answers(*[httpx2.Response(200, json=view.model_copy(update=step).as_json()) for step in steps])
    told: list[str] = []
    assert Client.over(wire(handle)).downloads.wait("dl-1", waits=told.append).state is DownloadState.SUCCEEDED
    assert told == ["first", "second"]


def test_pauses_grow_and_are_not_the_same_for_all() -> None:
    assert len({streams.retry_delay(2) for _ in range(20)}) > 1
    assert all(0.7 * RETRY_SECONDS[-1] <= streams.retry_delay(99) <= 1.3 * RETRY_SECONDS[-1] for _ in range(20))
