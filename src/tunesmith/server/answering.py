"""Answers of deploy workers on their way to a caller, who may leave at any time: then the generation stops.

In: models and questions for the pool. Out: their frames as they come, from all of them together. Forms are `api/`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tunesmith.errors import TunesmithError
from tunesmith.jobs.served_model import ServedModel
from tunesmith.jobs.serving import Chunk, Completion, Delivered, Question, ServingPool

EVENT_STREAM = "text/event-stream"
LOOK_SECONDS = 0.5  # how often a caller who waits for a whole answer is looked for
NOBODY = 499  # a status that nobody sees: the caller is gone


class CallerGone(Exception):  # named for what happened
    """Nobody waits for the answer any more."""


class Answers:
    """The frames of one or several questions, each with its model, as they come. Used from one event loop."""

    def __init__(self, pool: ServingPool, asked: Sequence[tuple[ServedModel, Question]]) -> None:
        """Raises as `ServingPool.submit`."""
        self._left = len(asked)
        self._delivered: asyncio.Queue[tuple[int, Delivered]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._looked_at = self._loop.time()
        self._completions: list[Completion] = []
        try:
            for number, (model, question) in enumerate(asked):
                self._completions.append(pool.submit(model, question, partial(self._deliver, number)))
        except BaseException:
            self.close()
            raise

    def _deliver(self, number: int, each: Delivered) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._delivered.put_nowait, (number, each))

    async def next(self, watched: Request | None = None) -> tuple[int, Chunk | TunesmithError] | None:
        """(number of the question, its frame or what ended it); None when all is told. Raises CallerGone."""
        while self._left:
            if watched is not None and self._loop.time() - self._looked_at >= LOOK_SECONDS:
                self._looked_at = self._loop.time()
                if await watched.is_disconnected():
                    raise CallerGone
            try:
                async with asyncio.timeout(None if watched is None else LOOK_SECONDS):
                    number, each = await self._delivered.get()
            except TimeoutError:
                continue
            if each is None or isinstance(each, TunesmithError):
                self._left -= 1
            if each is not None:
                return number, each
        return None

    def close(self) -> None:
        for completion in self._completions:
            completion.cancel()


class AnswerStream(StreamingResponse):
    """A stream whose generation ends with it, however it ends."""

    def __init__(self, frames: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(frames, headers=headers, media_type=EVENT_STREAM)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
