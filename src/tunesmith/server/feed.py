"""Events of jobs for many watchers: one look at the database for all of them, however many streams are open.

In: a job and the number after which to begin. Out: frames of `text/event-stream`, whose `id` is the event's number, so
that a watcher who comes back goes on where it was (`Last-Event-ID`). A watched job's newest events are kept in memory;
a watcher that is further behind reads pages of the database. Nothing is queued per watcher.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from tunesmith.errors import MachineCannot
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.database import Database
from tunesmith.storage.tables import EVENTS, JOBS

LOG = logging.getLogger("tunesmith.server")
LOOK_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 15.0
KEPT_EVENTS = 2000  # of each watched job
PAGE = 500
MAXIMUM_STREAMS = 500
FINAL = frozenset(state.value for state in FINAL_STATES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEvent:
    """An event as it is stored: its JSON is not read to be passed on."""

    number: int
    kind: str
    body: str

    def json(self) -> str:
        return f'{{"number":{self.number},{self.body[1:]}'

    def frame(self) -> bytes:
        return f"id: {self.number}\ndata: {self.json()}\n\n".encode()


def read_page(
    database: Database, job_id: str, *, after: int, limit: int, kinds: Collection[str] = (), newest: bool = False
) -> list[RawEvent]:
    """Events above `after` in order; newest: the last of them."""
    query = sa.select(EVENTS.c.number, EVENTS.c.kind, EVENTS.c.body).where(
        EVENTS.c.job_id == job_id, EVENTS.c.number > after
    )
    if kinds:
        query = query.where(EVENTS.c.kind.in_(kinds))
    query = query.order_by(EVENTS.c.number.desc() if newest else EVENTS.c.number).limit(limit)
    with database.read() as connection:
        found = [RawEvent(number=row.number, kind=row.kind, body=row.body) for row in connection.execute(query)]
    return found[::-1] if newest else found


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A job that somebody watches. `kept` ends with event `num_events`, without gaps."""

    num_events: int = 0
    is_final: bool = False
    watchers: int = 0
    kept: deque[RawEvent] = field(default_factory=lambda: deque[RawEvent](maxlen=KEPT_EVENTS))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def after(self, number: int, limit: int) -> list[RawEvent] | None:
        """The next events; None where they are older than what is kept."""
        if number >= self.num_events:
            return []
        if not self.kept or number + 1 < self.kept[0].number:
            return None
        first = number + 1 - self.kept[0].number
        return [self.kept[index] for index in range(first, min(first + limit, len(self.kept)))]


class EventFeed:
    """Used from one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[str, _Watched] = {}
        self._looking: asyncio.Task[None] | None = None
        self._is_closing = False

    async def frames(self, job_id: str, *, after: int, kinds: Collection[str] = ()) -> AsyncIterator[bytes]:
        """Frames until the job is final and all was told, then one `event: end`. Raises MachineCannot (BUSY)."""
        watched = self._enter(job_id)
        try:
            yield b"retry: 1000\n\n"
            if watched.watchers == 1:  # others wait for that look
                await self._look_now(job_id)
            while not self._is_closing:
                changed = watched.changed  # taken before looking, so that no change between is missed
                events = watched.after(after, PAGE)
                if events is None:
                    events = await asyncio.to_thread(read_page, self._database, job_id, after=after, limit=PAGE)
                if events:
                    after = events[-1].number
                    wanted = [event.frame() for event in events if not kinds or event.kind in kinds]
                    if wanted:
                        yield b"".join(wanted)
                elif watched.is_final:
                    yield b"event: end\ndata: {}\n\n"
                    return
                else:
                    try:
                        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                            await changed.wait()
                    except TimeoutError:
                        yield b": alive\n\n"
        finally:
            watched.watchers -= 1
            if watched.watchers == 0:
                self._watched.pop(job_id, None)

    def _enter(self, job_id: str) -> _Watched:
        if sum(each.watchers for each in self._watched.values()) >= MAXIMUM_STREAMS:
            raise MachineCannot(
                "BUSY", f"{MAXIMUM_STREAMS} event streams are open.", hint="Read pages of events, or try again later."
            )
        watched = self._watched.setdefault(job_id, _Watched())
        watched.watchers += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_on())
        return watched

    async def _look_on(self) -> None:
        while self._watched and not self._is_closing:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look_now(*self._watched)
            except Exception:  # a database that is busy now answers later; watchers wait on
                LOG.exception("watched jobs could not be looked at")

    async def _look_now(self, *job_ids: str) -> None:
        known = {job_id: self._watched[job_id].num_events for job_id in job_ids if not self._watched[job_id].is_final}
        if not known:
            return
        for job_id, (is_final, events) in (await asyncio.to_thread(self._look, known)).items():
            watched = self._watched.get(job_id)
            if watched is None:
                continue
            fresh = [event for event in events if event.number > watched.num_events]
            if fresh and fresh[0].number != watched.num_events + 1:
                watched.kept.clear()
            watched.kept.extend(fresh)
            if fresh:
                watched.num_events = fresh[-1].number
            if fresh or is_final:
                watched.is_final = is_final
                watched.changed.set()
                watched.changed = asyncio.Event()

    def _look(self, known: dict[str, int]) -> dict[str, tuple[bool, Sequence[RawEvent]]]:
        """What is new of the watched jobs: their states in one query, then the events of those that have some."""
        query = sa.select(JOBS.c.job_id, JOBS.c.state, JOBS.c.num_events).where(JOBS.c.job_id.in_(known))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        found: dict[str, tuple[bool, Sequence[RawEvent]]] = {}
        for row in rows:
            seen = known[row.job_id]
            if row.num_events > seen:
                events = read_page(self._database, row.job_id, after=seen, limit=KEPT_EVENTS, newest=True)
                found[row.job_id] = (row.state in FINAL and events[-1].number >= row.num_events, events)
            elif row.state in FINAL:
                found[row.job_id] = (True, ())
        return found

    async def close(self) -> None:
        """End every stream; watchers come back to the next server with the number of their last event."""
        self._is_closing = True
        for watched in self._watched.values():
            watched.changed.set()
        if self._looking is not None:
            self._looking.cancel()
