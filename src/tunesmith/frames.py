"""Frames on a socket: four bytes of length, then that many bytes of JSON. Lengths are capped before a byte is kept.

In and out: bytes; what they mean is the specs' matter. One thread may send while another receives.
"""

from __future__ import annotations

import socket
import struct

MAXIMUM_FRAME_BYTES = 32 << 20  # a request's text is capped far below by who takes it
_LENGTH = struct.Struct(">I")


class FrameTooLargeError(ValueError):
    """The other side announced, or we were asked to send, more than a frame may hold."""


def send_frame(connection: socket.socket, content: bytes) -> None:
    """Raises OSError where the other side is gone."""
    if len(content) > MAXIMUM_FRAME_BYTES:
        raise FrameTooLargeError(f"a frame of {len(content):,} bytes; the limit is {MAXIMUM_FRAME_BYTES:,}")
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive_frame(connection: socket.socket) -> bytes | None:
    """The next frame; None where the other side has closed, also in the middle of one."""
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAXIMUM_FRAME_BYTES:
        raise FrameTooLargeError(f"a frame of {length:,} bytes; the limit is {MAXIMUM_FRAME_BYTES:,}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    content = bytearray()
    while len(content) < length:
        try:
            part = connection.recv(min(1 << 20, length - len(content)))
        except ConnectionError:
            return None
        if not part:
            return None
        content += part
    return bytes(content)
