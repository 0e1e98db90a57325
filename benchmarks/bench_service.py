"""The service under load: reads, durable submissions, and open event streams, against a real `tunesmith serve`.

    python -m benchmarks.bench_service [--seconds 5] [--streams 200]

Server and load share this machine's cores, so a client of raw sockets with keep-alive asks: a client library would be
measured instead. One job fills the machine's slot with a stopped worker, so that no training is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import save
from tunesmith.bundled import TRAINING_ROWS

CONNECTIONS = 32


class Connection:
    """One keep-alive connection; an answer is read by its Content-Length."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._place = (host, port)
        self._head = f"Host: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(*self._place)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.lower().startswith(b"content-length:"))
        return int(lines[0].split()[1]), await self._reader.readexactly(length)

    async def open_stream(self, path: str) -> asyncio.StreamReader:
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._head}Accept: text/event-stream\r\n\r\n".encode())
        await self._reader.readuntil(b"\r\n\r\n")
        return self._reader


async def load(
    server: dict[str, Any], seconds: float, method: str, path: str, body: bytes, status: int
) -> dict[str, Any]:
    """As many requests as 32 connections make in that time."""
    spent: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        async with Connection(**server) as connection:
            while (started := time.perf_counter()) < end:
                found, answer = await connection.ask(method, path, body)
                spent.append(time.perf_counter() - started)
                assert found == status, answer

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    spent.sort()
    return {
        "per_second": round(len(spent) / (time.perf_counter() - started)),
        "median_milliseconds": round(1000 * spent[len(spent) // 2], 1),
        "p99_milliseconds": round(1000 * spent[int(0.99 * len(spent))], 1),
    }


async def streams(server: dict[str, Any], job_id: str, number: int) -> dict[str, Any]:
    """So many open streams of one job, until each was told of its cancelling."""
    connections = [Connection(**server) for _ in range(number)]
    for connection in connections:
        await connection.__aenter__()
    readers = await asyncio.gather(*(each.open_stream(f"/api/jobs/{job_id}/events") for each in connections))
    started = time.perf_counter()
    async with Connection(**server) as asking:
        await asking.ask("POST", f"/api/jobs/{job_id}/cancel")

    async def told(reader: asyncio.StreamReader) -> float:
        await reader.readuntil(b"event: end")
        return time.perf_counter() - started

    times = sorted(await asyncio.gather(*(told(reader) for reader in readers)))
    for connection in connections:
        await connection.__aexit__()
    return {"streams": number, "last_told_milliseconds": round(1000 * times[-1])}


async def measure(server: dict[str, Any], *, seconds: float, num_streams: int) -> dict[str, Any]:
    rows = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:32])
    async with Connection(**server) as connection:
        _, answer = await connection.ask("POST", "/api/datasets", rows, kind="application/octet-stream")
        # some thousands of jobs are to wait at a time
        await connection.ask("PATCH", "/api/quotas/*", json.dumps({"queued_jobs": 10**6}).encode())
        asked = json.dumps({"model": "tunesmith/demo", "dataset": json.loads(answer)["dataset_id"]}).encode()
        _, answer = await connection.ask("POST", "/api/jobs", asked)
        first = json.loads(answer)["job_id"]
        await connection.ask("POST", f"/api/jobs/{first}/cancel")
        _, answer = await connection.ask("POST", "/api/jobs", asked)
        watched = json.loads(answer)["job_id"]
        await connection.ask("POST", f"/api/jobs/{watched}/pause")
        _, answer = await connection.ask("POST", "/api/jobs", asked)
        worker = await stopped_worker(connection, json.loads(answer)["job_id"])
    try:
        return await measure_all(server, seconds, num_streams, first=first, watched=watched, asked=asked)
    finally:
        os.killpg(worker, signal.SIGKILL)


async def stopped_worker(connection: Connection, job_id: str) -> int:
    """The worker of that job, started and then held."""
    while True:
        _, answer = await connection.ask("GET", f"/api/jobs/{job_id}")
        pid = json.loads(answer)["worker_pid"]
        if pid is not None:
            os.killpg(pid, signal.SIGSTOP)
            return pid
        await asyncio.sleep(0.1)


async def measure_all(
    server: dict[str, Any], seconds: float, num_streams: int, *, first: str, watched: str, asked: bytes
) -> dict[str, Any]:
    return {
        "streams": await streams(server, watched, num_streams),
        "read_a_job": await load(server, seconds, "GET", f"/api/jobs/{first}", b"", 200),
        "list_20_jobs": await load(server, seconds, "GET", "/api/jobs?limit=20", b"", 200),
        "submissions": await load(server, seconds, "POST", "/api/jobs", asked, 201),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TUNESMITH_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        start_seconds = round(time.perf_counter() - started, 2)
        try:
            host, _, port = told["url"].removeprefix("http://").partition(":")
            server = {"host": host, "port": int(port), "token": (home / "token").read_text().strip()}
            result = asyncio.run(measure(server, seconds=arguments.seconds, num_streams=arguments.streams))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    result = {"start_to_serving_seconds": start_seconds, "connections": CONNECTIONS, **result}
    print(json.dumps(result, indent=2))
    print(save("service", result, libraries=("fastapi", "uvicorn", "pydantic", "sqlalchemy")))


if __name__ == "__main__":
    main()
