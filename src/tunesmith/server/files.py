"""Files on their way to a caller: always as a download, never shown in place, and never found by a caller's own path.

In: a path that the service chose. Out: a streamed answer, or a page of a ledger.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from tunesmith.errors import Unknown, UsageFault
from tunesmith.spec.api import LedgerPage, LedgerQuery
from tunesmith.spec.artifacts import LedgerRow

CHUNK_BYTES = 1 << 18
BINARY = "application/octet-stream"


def attachment(path: Path, *, name: str, media_type: str = BINARY, etag: str | None = None) -> Response:
    """The file's bytes. Raises Unknown (UNKNOWN_FILE) where it is not there or is no regular file."""
    handle = open_regular(path)
    size = os.fstat(handle.fileno()).st_size
    headers = {"Content-Disposition": disposition(name), "Content-Length": str(size)}
    if etag is not None:
        headers["ETag"] = f'"{etag}"'
    return StreamingResponse(_chunks(handle, size), headers=headers, media_type=media_type)


def open_regular(path: Path) -> BufferedReader:
    """Without following a link, and without waiting for a pipe."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unknown(path.name) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise _unknown(path.name)
    return os.fdopen(number, "rb")


def _unknown(name: str) -> Unknown:
    return Unknown("UNKNOWN_FILE", f"There is no file {name[:80]!r} here (any more).", field="path")


def _chunks(handle: BufferedReader, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes: a log that grows meanwhile is cut where it ended."""
    with handle:
        while size > 0 and (chunk := handle.read(min(CHUNK_BYTES, size))):
            size -= len(chunk)
            yield chunk


def disposition(name: str) -> str:
    """A header that carries any name: ASCII as a fallback, and the whole name encoded."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def ledger_page(path: Path, query: LedgerQuery) -> LedgerPage:
    """Rows from the byte `query.after` on. Raises UsageFault (BAD_CURSOR) where no line begins there."""
    rows: list[LedgerRow] = []
    with open_regular(path) as handle:
        size = os.fstat(handle.fileno()).st_size
        if query.after:
            handle.seek(query.after - 1)
        if query.after > size or (query.after and handle.read(1) != b"\n"):
            raise UsageFault(
                "BAD_CURSOR", f"after: {query.after} is no place in this ledger.", field="after",
                hint="Take `next` of the page before.",
            )  # fmt: skip
        place = query.after
        for line in handle:
            row = LedgerRow.model_validate_json(line)
            if query.fate is None or row.fate is query.fate:
                if len(rows) == query.limit:
                    return LedgerPage(rows=rows, next=str(place))
                rows.append(row)
            place += len(line)
    return LedgerPage(rows=rows, next=None)
