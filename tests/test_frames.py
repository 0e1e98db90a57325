"""Frames arrive whole, or not at all; a length is judged before a byte is kept."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tunesmith.frames import MAXIMUM_FRAME_BYTES, FrameTooLargeError, receive_frame, send_frame


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_frames_keep_their_borders(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    for content in (b"one", b"", b"three"):
        send_frame(left, content)
    assert [receive_frame(right) for _ in range(3)] == [b"one", b"", b"three"]


def test_a_large_frame_comes_through_in_parts(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    content = bytes(range(256)) * 20_000
    sender = threading.Thread(target=send_frame, args=(left, content))
    sender.start()
    assert receive_frame(right) == content
    sender.join()


def test_a_closed_side_ends_the_frames_also_in_the_middle_of_one(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.sendall(struct.pack(">I", 10) + b"half")
    left.close()
    assert receive_frame(right) is None
    assert receive_frame(right) is None


def test_a_length_over_the_limit_is_refused_by_both_sides(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.sendall(struct.pack(">I", MAXIMUM_FRAME_BYTES + 1))
    with pytest.raises(FrameTooLargeError):
        receive_frame(right)
    with pytest.raises(FrameTooLargeError):
        send_frame(left, b"x" * (MAXIMUM_FRAME_BYTES + 1))
