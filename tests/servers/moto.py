"""moto's S3 server in a process of its own: knows the whole versioning API, takes any key, keeps all in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import end, free_port, wait_for_port


@contextmanager
def moto_server(folder: Path) -> Generator[str]:
    """The URL of a new server."""
    port = free_port()
    log = folder / "moto.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_port(port, process, log=log)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)
