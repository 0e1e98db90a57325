"""Event streams: resume by number, the end with the job, one look for all watchers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import add_job
from tests.server.test_jobs_api import steps
from tests.waiting import PATIENCE_SECONDS
from tunesmith.errors import MachineCannot
from tunesmith.jobs.state import State
from tunesmith.server import feed as module
from tunesmith.server.feed import EventFeed
from tunesmith.spec.jobs import JobState

STREAM = {"Accept": "text/event-stream"}


def finished(state: State, number: int) -> str:
    job_id = add_job(state).job_id
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=None)
    steps(state, job_id, number)
    state.jobs.move(job_id, JobState.SUCCEEDED, lease=None)
    return job_id


def ids(text: str) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]


def test_a_stream_tells_every_event_once_and_ends_with_the_job(client: TestClient, state: State) -> None:
    job_id = finished(state, 5)
    answer = client.get(f"/api/jobs/{job_id}/events", headers=STREAM)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert ids(answer.text) == list(range(1, 9))
    assert answer.text.endswith("event: end\ndata: {}\n\n")


def test_a_stream_goes_on_after_the_last_event_id(client: TestClient, state: State) -> None:
    job_id = finished(state, 5)
    answer = client.get(f"/api/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": "6"})
    assert ids(answer.text) == [7, 8]
    assert client.get(f"/api/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": "8"}).status_code == 204
    for wrong in ("x", "-1", "9" * 19):
        answer = client.get(f"/api/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": wrong})
        assert answer.status_code == 422


def test_a_stream_keeps_to_the_kinds_asked_for(client: TestClient, state: State) -> None:
    job_id = finished(state, 5)
    assert ids(client.get(f"/api/jobs/{job_id}/events?kinds=state", headers=STREAM).text) == [1, 2, 8]


async def _watch(feed: EventFeed, job_id: str, **more: Any) -> list[int]:
    return [number async for frame in feed.frames(job_id, after=0, **more) for number in ids(frame.decode())]


def test_a_watcher_far_behind_reads_pages_of_the_database(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_EVENTS", 10)
    job_id = finished(state, 1200)
    assert asyncio.run(_watch(EventFeed(state.database), job_id)) == list(range(1, 1204))


def test_two_hundred_watchers_of_a_running_job_cost_one_look_each_time(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    job_id = add_job(state).job_id
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=None)
    feed = EventFeed(state.database)
    looks: list[int] = []
    look = feed._look
    monkeypatch.setattr(feed, "_look", lambda known: looks.append(len(known)) or look(known))

    async def everybody() -> list[list[int]]:
        watchers = [asyncio.create_task(_watch(feed, job_id)) for _ in range(200)]
        while feed._watched[job_id].watchers < 200 if job_id in feed._watched else True:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        entered, since = len(looks), time.monotonic()
        await asyncio.to_thread(steps, state, job_id, 20)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(state.jobs.move, job_id, JobState.SUCCEEDED, lease=None)
        seen = await asyncio.gather(*watchers)
        # one look at a time for all 200
        assert len(looks) - entered <= (time.monotonic() - since) / module.LOOK_SECONDS + 3
        return seen

    seen = asyncio.run(everybody())
    assert all(each == list(range(1, 24)) for each in seen)
    assert set(looks) == {1}


def test_a_silent_stream_is_kept_alive(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.02)
    job_id = add_job(state).job_id

    async def first_frames() -> list[bytes]:
        frames = EventFeed(state.database).frames(job_id, after=1)
        found = [await anext(frames) for _ in range(3)]
        await frames.aclose()  # type: ignore[attr-defined]  # a generator
        return found

    assert asyncio.run(first_frames()) == [b"retry: 1000\n\n", b": alive\n\n", b": alive\n\n"]


def test_too_many_streams_are_refused(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAXIMUM_STREAMS", 0)
    with pytest.raises(MachineCannot, match="event streams are open"):
        asyncio.run(_watch(EventFeed(state.database), add_job(state).job_id))


def test_streams_end_with_the_server(state: State) -> None:
    job_id = add_job(state).job_id

    async def close_early() -> list[int]:
        feed = EventFeed(state.database)
        heard: list[int] = []

        async def watch() -> None:
            async for frame in feed.frames(job_id, after=0):
                heard.extend(ids(frame.decode()))

        watching = asyncio.create_task(watch())
        while not heard:
            await asyncio.sleep(0.01)
        await feed.close()
        await asyncio.wait_for(watching, PATIENCE_SECONDS)
        return heard

    assert asyncio.run(close_early()) == [1]
