"""Lines of logs: of one job, and of a named log, whose jobs' files are read as one.

In: the files, in the order in which their jobs were submitted. Out: the lines at the end that hold a text, or all of it
as one stream. A file that is gone (its log keeps it no longer) has no lines; links are not followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from starlette.responses import Response, StreamingResponse

from tunesmith.errors import Unknown
from tunesmith.server.files import CHUNK_BYTES, disposition, open_regular
from tunesmith.spec.api import LogQuery, NamedLogLine

LOG_BYTES = 8 << 20  # of a file's end that a search looks through
ALL_LOGS_BYTES = 64 << 20  # of the newest jobs' files together
LINE_CHARACTERS = 10_000


def lines_of(log: Path, query: LogQuery, *, maximum_bytes: int = LOG_BYTES) -> list[str]:
    try:
        handle = open_regular(log)
    except Unknown:
        return []
    with handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - maximum_bytes))
        lines = handle.read().decode(errors="replace").splitlines()
    wanted = query.search.casefold() if query.search is not None else ""
    return [line[:LINE_CHARACTERS] for line in lines if wanted in line.casefold()][-query.lines :]


def lines_of_all(logs: Sequence[tuple[str, Path]], query: LogQuery) -> list[NamedLogLine]:
    """Of (job's id, file), in the order given; those of the newest jobs count first."""
    found: list[NamedLogLine] = []
    left = ALL_LOGS_BYTES
    for job_id, log in reversed(logs):
        if left <= 0 or len(found) >= query.lines:
            break
        wanted = query.model_copy(update={"lines": query.lines - len(found)})
        found[:0] = [NamedLogLine(job_id=job_id, line=line) for line in lines_of(log, wanted)]
        with suppress(OSError):
            left -= min(LOG_BYTES, log.stat().st_size)
    return found


def download_all(logs: Sequence[tuple[str, Path]], *, name: str) -> Response:
    """Each file below a line with its job's id."""

    def chunks() -> Iterator[bytes]:
        for job_id, log in logs:
            try:
                handle = open_regular(log)
            except Unknown:
                continue
            with handle:
                yield f"==> {job_id}\n".encode()
                last = b"\n"
                while chunk := handle.read(CHUNK_BYTES):
                    last = chunk[-1:]
                    yield chunk
                if last != b"\n":
                    yield b"\n"

    headers = {"Content-Disposition": disposition(name)}
    return StreamingResponse(chunks(), headers=headers, media_type="text/plain")
