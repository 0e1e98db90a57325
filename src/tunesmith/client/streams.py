"""Bodies that stream from and to files, and the pauses between tries; each for a sync and for an async caller.

Names that begin with `async_` or `Async` have a twin without it: `scripts/make_sync_client.py` makes the sync client
from the async one by that rule.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import InputRefused

CHUNK_BYTES = 1 << 20
RETRY_SECONDS = (0.1, 0.3, 1.0, 2.0, 4.0)  # a server that restarts is back within two
Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: not known)


def retry_delay(attempt: int) -> float:
    """Seconds before try number `attempt + 1`, with jitter so that many clients do not come back as one."""
    return RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)] * random.uniform(0.75, 1.25)


async def async_sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


class FileBody:
    """A file as the body of a request, read anew for each try and never held in memory."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self.path, self._progress = path, progress
        try:
            self.size = path.stat().st_size
            if not path.is_file():
                raise IsADirectoryError(21, "It is no file")
            with path.open("rb"):
                pass
        except OSError as error:
            raise InputRefused(
                "FILE_NOT_READABLE",
                f"{path} cannot be read: {error.strerror or error}.",
                field=str(path),
                hint="Give the path of a file that exists and that you may read.",
            ) from error

    def chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                yield chunk
                self._tell(handle)

    async def async_chunks(self) -> AsyncIterator[bytes]:
        with self.path.open("rb") as handle:
            while chunk := await asyncio.to_thread(handle.read, CHUNK_BYTES):
                yield chunk
                self._tell(handle)

    def _tell(self, handle: BinaryIO) -> None:
        if self._progress is not None:
            self._progress(handle.tell(), self.size)


class Download:
    """A file in the making: under a temporary name until it is whole."""

    def __init__(self, target: Path, *, size: int, progress: Progress | None) -> None:
        self._target, self._size, self._progress = target, size, progress
        self._part = target.with_name(f".{target.name}.part-{os.getpid()}")

    def __enter__(self) -> Download:
        self._handle = self._part.open("wb")
        return self

    def write(self, chunk: bytes) -> None:
        self._handle.write(chunk)
        if self._progress is not None:
            self._progress(self._handle.tell(), self._size)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._handle:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        if kind is None:
            self._part.replace(self._target)
        else:
            self._part.unlink(missing_ok=True)
