"""A dataset on its way in: streamed to the disk, hashed and checked while it arrives.

In: the stream of a request's body. Out: a file under `uploads/` of the state folder that is whole, durable and free of
errors, with its report; or a refusal that lists what is wrong, and no file. Memory stays flat whatever the size.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePath
from typing import Any

from tunesmith.catalog.quotas import Room
from tunesmith.data.rows import check_file
from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.spec.datasets import DatasetReport, Finding

BLOCK_BYTES = 1 << 20
MAXIMUM_BYTES = 16 << 30
FREE_RESERVE_BYTES = 256 << 20  # of the disk, for the database and running jobs
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
LISTED_FINDINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    path: Path
    sha256: str
    report: DatasetReport


class _Growing(FileIO):
    """Reads a file that another thread still writes: waits at its end until there is more, or it is whole."""

    def __init__(self, path: Path, arriving: _Arriving) -> None:
        super().__init__(path, "rb")
        self._arriving = arriving

    def read(self, size: int | None = -1, /) -> bytes:
        while True:
            seen = self._arriving.progress
            data = super().read(-1 if size is None else size)
            if data:
                return data
            if not self._arriving.wait_beyond(seen):
                return super().read(-1 if size is None else size) or b""


class _Arriving:
    """What is known of the file in the making, for writer and reader."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.progress = 0
        self._is_whole = False

    def grew(self) -> None:
        with self._changed:
            self.progress += 1
            self._changed.notify_all()

    def ended(self) -> None:
        with self._changed:
            self._is_whole = True
            self._changed.notify_all()

    def wait_beyond(self, seen: int) -> bool:
        """False: there is no more to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_whole or self.progress > seen)
            return self.progress > seen


def file_name(filename: str) -> str:
    """The name that an upload is kept under: of the caller's only the ending counts."""
    suffix = PurePath(filename).suffix.lower()
    return f"rows{suffix if suffix in SUFFIXES else SUFFIXES[0]}"


async def receive(
    stream: AsyncIterator[bytes],
    target: Path,
    *,
    columns: Mapping[str, str],
    name: str,
    expected_bytes: int | None,
    quota: Room,
) -> Arrived:
    """Raises InputRefused for faulty rows, MachineCannot (DISK_FULL), Conflict (QUOTA_EXCEEDED); no `target` then."""
    quota.require(expected_bytes or 0)
    _require_room(target.parent, expected_bytes or 0)
    arriving = _Arriving()
    digest = hashlib.sha256()
    waits_for_whole = target.suffix == ".parquet"  # its index stands at the end

    def check() -> DatasetReport:
        if waits_for_whole:
            while arriving.wait_beyond(arriving.progress):
                pass
            return check_file(target, columns=columns, name=name)

        @contextmanager
        def growing(path: Path) -> Generator[FileIO]:
            with _Growing(path, arriving) as handle:
                yield handle

        return check_file(target, columns=columns, name=name, opened=growing)

    received = 0
    handle = await asyncio.to_thread(target.open, "xb", buffering=0)
    try:
        checking = asyncio.create_task(asyncio.to_thread(check))
        try:
            with handle:
                async for block in _blocks(stream):
                    received += len(block)
                    quota.require(received)
                    await asyncio.to_thread(_write, handle, block, digest)
                    arriving.grew()
                    if checking.done():
                        break  # what came so far is refused as a whole: it is no text, or no file of rows
                else:
                    await asyncio.to_thread(os.fsync, handle.fileno())
        finally:
            arriving.ended()
            report = await asyncio.shield(checking)
        if report.num_errors:
            raise refusal(report)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Arrived(path=target, sha256=digest.hexdigest(), report=report)


async def _blocks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of the network, gathered: a thread is asked once a megabyte."""
    block = bytearray()
    async for chunk in stream:
        block += chunk
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _write(handle: Any, block: bytes, digest: Any) -> None:
    digest.update(block)
    view = memoryview(block)
    while view:
        view = view[handle.write(view) :]


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + FREE_RESERVE_BYTES:
        raise MachineCannot(
            "DISK_FULL", f"The dataset has {needed:,} bytes; the server's disk has {free:,} free.",
            field="TUNESMITH_HOME", hint="Free some space there, or register the dataset where it lies in a location.",
        )  # fmt: skip


def refusal(report: DatasetReport) -> InputRefused:
    """All errors of a report in one refusal: the first twenty in words, the others counted."""
    first = report.errors[0]
    told = [_sentence(finding) for finding in report.errors[:LISTED_FINDINGS]]
    more = report.num_errors - len(told)
    tail = f" And {more:,} more errors." if more else ""
    return InputRefused(
        first.code,
        f"{report.path}: " + " ".join(told) + tail,
        field="body" if first.line is None else f"line {first.line}",
        hint=first.hint,
    )


def _sentence(finding: Finding) -> str:
    if finding.line is None:
        return finding.message
    place = f"line {finding.line}" + (f", column {finding.column}" if finding.column is not None else "")
    return f"{place}: {finding.message}"
