"""Bodies that stream from and to files, and the pauses between tries; each for a sync and for an async caller.

Names that begin with `async_` or `Async` have a twin without it: `scripts/make_sync_client.py` makes the sync client
from the async one by that rule.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpcore2

from tunesmith.errors import InputRefused, MachineCannot, UsageFault

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


class EarlyAnswer:
    """Sees an answer that comes while a body is still being sent: a server that refuses does not wait for the rest.

    httpx2 looks for the answer only once the whole body is sent. `trace` (httpx2's request extension of that name)
    learns the connection as it is made, so the request needs one of its own. Nothing is seen through TLS, where bytes
    that are there may be none of the answer's; there the body is sent to its end, or until the server hangs up.
    """

    def __init__(self) -> None:
        self._stream: Any = None

    def trace(self, event: str, told: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._stream = told["return_value"]
        elif event == "connection.start_tls.started":
            self._stream = None

    async def async_trace(self, event: str, told: Mapping[str, Any]) -> None:
        self.trace(event, told)

    def check(self) -> None:
        """Raises what httpx2's engine takes as "the server takes no more": it goes over to reading the answer."""
        if self._stream is not None and self._stream.get_extra_info("is_readable"):
            raise httpcore2.WriteError("The answer is here before the body was sent.")


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

    def chunks(self, early: EarlyAnswer) -> Iterator[bytes]:
        with self.path.open("rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                early.check()
                yield chunk
                self._tell(handle)

    async def async_chunks(self, early: EarlyAnswer) -> AsyncIterator[bytes]:
        with self.path.open("rb") as handle:
            while chunk := await asyncio.to_thread(handle.read, CHUNK_BYTES):
                early.check()
                yield chunk
                self._tell(handle)

    def _tell(self, handle: BinaryIO) -> None:
        if self._progress is not None:
            self._progress(handle.tell(), self.size)


class Download:
    """A file in the making: under a temporary name until it is whole. Raises what `writing` tells."""

    def __init__(self, target: Path, *, size: int, progress: Progress | None) -> None:
        self._target, self._size, self._progress = target, size, progress
        self._part = target.with_name(f".{target.name}.part-{os.getpid()}")

    def __enter__(self) -> Download:
        with writing(self._target):
            self._handle = self._part.open("wb")
        return self

    def write(self, chunk: bytes) -> None:
        with writing(self._target):
            self._handle.write(chunk)
        if self._progress is not None:
            self._progress(self._handle.tell(), self._size)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with writing(self._target):
                with self._handle:
                    self._handle.flush()
                    os.fsync(self._handle.fileno())
                if kind is None:
                    self._part.replace(self._target)
        finally:
            self._part.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Generator[None]:
    """Raises UsageFault (FILE_NOT_WRITABLE), MachineCannot (DISK_FULL) for what the system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineCannot(
                "DISK_FULL", f"{target} could not be written: its disk is full. Nothing of it was kept.",
                field=str(target), hint="Free some space there, or name a place on another disk.",
            ) from error  # fmt: skip
        raise UsageFault(
            "FILE_NOT_WRITABLE", f"{target} cannot be written: {error.strerror or error}.", field=str(target),
            hint="Name a place in a folder that exists and that you may write.",
        ) from error  # fmt: skip
