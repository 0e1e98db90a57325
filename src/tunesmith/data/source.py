"""A dataset file as bytes: opened with care, known by its first bytes, cut into physical lines.

In: a path. Out: an open handle, and batches of lines in bounded memory. What is no text is refused by name.
Lines end at LF alone; the CR of a CRLF stays on the line. Nothing here knows rows.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from tunesmith.data.characters import needs_close_look
from tunesmith.data.findings import Fault
from tunesmith.spec.datasets import MAX_ROW_BYTES

CHUNK_BYTES = 1 << 18  # stays in the processor's cache while it is looked at; 1 MB is a fifth slower
BYTE_ORDER_MARK = codecs.BOM_UTF8

_MAGIC = (
    (b"\x1f\x8b", "gzip data", "Unpack it: `gunzip FILE`."),
    (b"PK\x03\x04", "a zip archive (or a workbook or a torch file, which are zip archives)", None),
    (b"PK\x05\x06", "an empty zip archive", None),
    (b"\x28\xb5\x2f\xfd", "zstd data", "Unpack it: `zstd -d FILE`."),
    (b"BZh", "bzip2 data", "Unpack it: `bunzip2 FILE`."),
    (b"\xfd7zXZ\x00", "xz data", "Unpack it: `unxz FILE`."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", None),
    (b"\x04\x22\x4d\x18", "lz4 data", "Unpack it: `lz4 -d FILE`."),
    (b"PAR1", "Parquet data", "Rename it to end in .parquet."),
    (b"ARROW1", "Arrow data", None),
    (b"\xff\xff\xff\xff", "an Arrow stream", None),
    (b"Obj\x01", "Avro data", None),
    (b"SQLite format 3\x00", "an SQLite database", None),
    (b"\x89HDF", "HDF5 data", None),
    (b"\x93NUMPY", "a NumPy array", None),
    (b"%PDF-", "a PDF document", None),
    (b"\x89PNG", "a PNG image", None),
    (b"\xff\xd8\xff", "a JPEG image", None),
    (b"\x7fELF", "a program", None),
    (b"GGUF", "a GGUF model", None),
)
_PICKLE = re.compile(rb"\([ld]p\d*\n|[\]}]q\x00|\x80[\x02-\x05][\x80-\xff\(\]\}\)cX\x4b\x4c\x4d\x8c\x95]")
_SURROGATE_BYTES = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_MARKS = (  # the longer ones first: UTF-32 little-endian starts like UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineBatch:
    """Physical lines without their LF. `first_line` counts from 1.

    offset: position of the first line in the file. is_torn: the last of `lines` has no LF, as the file ends there.
    oversized: in place of `lines`, the bytes of one line over the limit, which is not kept.
    look_close: some line may hold an escaped NUL or quote, or a character that a person should know of.
    """

    first_line: int
    offset: int
    lines: list[bytes]
    is_torn: bool = False
    oversized: int | None = None
    look_close: bool = False


@contextmanager
def opened(path: Path) -> Generator[FileIO]:
    """The file, open for reading without ever waiting. Raises Fault if it is no regular file, or changes meanwhile."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Fault("FILE_MISSING", "There is no such file.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENXIO, errno.ELOOP):
            raise Fault("NOT_A_FILE", "The path is a socket, or links that lead in a circle.") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Fault("FILE_UNREADABLE", f"The file cannot be opened: {reason}.") from error
    before = os.fstat(number)
    if not stat.S_ISREG(before.st_mode):
        os.close(number)
        raise Fault("NOT_A_FILE", f"The path is {_kind_of_file(before.st_mode)}, not a file.")
    with FileIO(number, "rb", closefd=True) as handle:
        try:
            yield handle
        except OSError as error:
            raise Fault("FILE_UNREADABLE", f"The file cannot be read: {error.strerror}.") from error
        after = os.fstat(number)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Fault("FILE_CHANGED", f"The file changed while it was read ({before.st_size:,} bytes at the start).")


def _kind_of_file(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"


def refuse_by_first_bytes(head: bytes) -> None:
    """Raises Fault if the file's first bytes (some thousands) show that it is no UTF-8 text."""
    if not head:
        raise Fault("EMPTY_FILE", "The file is empty (0 bytes).")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            raise _other_encoding(f"is {encoding}", encoding)
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            raise Fault("NOT_TEXT", f"The file holds {what}, not text.", hint=hint)
    if _PICKLE.match(head):
        raise Fault("NOT_TEXT", "The file holds a Python pickle, not text; pickles are never opened.")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise Fault("LFS_POINTER", "The file is a Git LFS pointer, not the data it points to.")
    start = head[:64].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise Fault("NOT_TEXT", "The file is a web page, not rows.", hint="Download the file itself, not its page.")
    _refuse_wide_characters(head)


def _refuse_wide_characters(head: bytes) -> None:
    """UTF-16 and UTF-32 without a mark show as NULs at regular places."""
    sample = head[:4096]
    nuls = sample.count(0)
    if nuls == len(sample):
        raise Fault("NOT_TEXT", "The file starts with a run of NUL bytes; it may be half copied, or sparse.")
    quarter = len(sample) // 4
    if nuls and quarter:
        by_place = [sample[place::4].count(0) for place in range(4)]
        if sum(count >= 0.9 * quarter for count in by_place) == 3:
            raise _other_encoding("looks like UTF-32 without a byte order mark", "UTF-32")
        if by_place[0] + by_place[2] >= quarter > by_place[1] + by_place[3]:
            raise _other_encoding("looks like UTF-16 (big-endian, without a mark)", "UTF-16BE")
        if by_place[1] + by_place[3] >= quarter > by_place[0] + by_place[2]:
            raise _other_encoding("looks like UTF-16 (little-endian, without a mark)", "UTF-16LE")


def _other_encoding(what: str, encoding: str) -> Fault:
    hint = f"Convert it: `iconv -f {encoding} -t UTF-8 FILE > rows.jsonl`."
    return Fault("ENCODING", f"The file {what}; rows are UTF-8.", hint=hint)


def line_batches(handle: FileIO, head: bytes) -> Iterator[LineBatch]:
    """Lines from the file's start on. `head`: what was read of it already; a byte order mark in it is skipped.

    Memory: a few chunks and one row at the limit. A longer line is read past and told, unless it holds NULs: then
    reading ends, for a sparse file may have terabytes of them.
    """
    if head.startswith(BYTE_ORDER_MARK):
        offset = len(BYTE_ORDER_MARK)
        data = head[offset:]
    else:
        offset = 0
        data = head
    line = 1
    parts: list[bytes] = []  # of a line that no chunk has ended yet
    size = 0
    while data:
        end = data.rfind(b"\n")
        if end < 0:
            size = _keep(parts, data, size)
        else:
            newline = data.find(b"\n")
            if size + newline > MAX_ROW_BYTES:
                _keep(parts, data[:newline], size)
                yield LineBatch(first_line=line, offset=offset, lines=[], oversized=size + newline)
                line += 1
                offset += size + newline + 1
                whole = data[newline + 1 : end]
                has_lines = end > newline
            else:
                parts.append(data[:end])
                whole = b"".join(parts)
                has_lines = True
            if has_lines:
                lines = whole.split(b"\n")
                yield LineBatch(first_line=line, offset=offset, lines=lines, look_close=needs_close_look(whole))
                line += len(lines)
                offset += len(whole) + 1
            rest = data[end + 1 :]
            parts = [rest] if rest else []
            size = len(rest)
        data = handle.read(CHUNK_BYTES) or b""
    if size > MAX_ROW_BYTES:
        yield LineBatch(first_line=line, offset=offset, lines=[], oversized=size)
    elif size:
        last = b"".join(parts)
        yield LineBatch(first_line=line, offset=offset, lines=[last], is_torn=True, look_close=needs_close_look(last))


def _keep(parts: list[bytes], data: bytes, size: int) -> int:
    """Add to an unfinished line, or only count it once it is over the limit. Returns its new size."""
    parts.append(data)
    size += len(data)
    if size > MAX_ROW_BYTES:
        if any(0 in part for part in parts):
            raise Fault(
                "NOT_TEXT", f"A line of more than {size:,} bytes holds NULs; the file may be half copied, or sparse."
            )
        parts.clear()
    return size


def decoded(line: bytes, *, offset: int, is_torn: bool) -> str:
    """A line as text. Raises Fault at the first byte that is not UTF-8; offset: of the line in the file."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        before = line[: error.start].decode()
        column = len(before) + 1
        byte = line[error.start]
        place = f"byte {error.start + 1} of the line, byte {offset + error.start + 1:,} of the file"
        if is_torn and error.end == len(line) and error.reason == "unexpected end of data":
            raise Fault("TRUNCATED", f"The file ends inside a character ({place}).", column=column) from None
        if _SURROGATE_BYTES.match(line, error.start):
            raise Fault(
                "NOT_UTF8",
                f"Bytes 0x{line[error.start : error.start + 3].hex().upper()} are half of a surrogate pair ({place}); "
                "UTF-8 writes such a character in four bytes.",
                column=column,
                hint="The file is CESU-8, or Java's or MySQL's own UTF-8: export it again as UTF-8 (utf8mb4).",
            ) from None
        likely = line[error.start : error.start + 1].decode("cp1252", errors="ignore")
        guess = f" It would be {likely} in Windows-1252." if likely.isalpha() or likely in "’‘“”–—…€£°" else ""
        raise Fault("NOT_UTF8", f"Byte 0x{byte:02X} is not UTF-8 ({place}).{guess}", column=column) from None
