"""Starting a server for tests: a free port, and a wait until it answers."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS

# below those that systems give to whoever asks for any: between the choice and the server's own binding none is taken
CHOSEN_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """For a server that must be told its port."""
    chance = random.SystemRandom()  # tests run in several processes
    while True:
        port = chance.choice(CHOSEN_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], *, log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(
        f"the server did not answer in {PATIENCE_SECONDS:.0f} s: {log.read_text(errors='replace')[-2000:]}"
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
