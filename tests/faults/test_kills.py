"""Kill -9 of the server and of its workers, at moments that a printed seed gives; alone, and among other trouble."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3.session
import httpx2
import pytest

from tests.faults.harness import CLOCK, Bucket, Killed, broken_promises, fill, small_file_system
from tests.servers.moto import moto_server
from tests.servers.proxy import Fault, Proxy, proxy_server
from tunesmith.spec.jobs import JobState

pytestmark = pytest.mark.servers

Ask = Callable[..., dict[str, Any]]
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "50"))  # kills, of both tests together
SEED = int(os.environ.get("FAULTS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
KILLED_CODES = {"WORKER_DIED", "OUT_OF_MEMORY"}  # of the trainer, of the inspector
UNFINISHED = 2  # jobs that are kept going while others are killed
BURST = 8  # submissions that are under way when the server is killed
STORE_FAULTS: list[Fault] = ["500", "503", "slow", "short", "flip", "drop", "drop-answer", "garbage"]
STORE_FAULT_SHARE = 0.15  # of the requests to the store


@dataclass(slots=True, kw_only=True)
class Storm:
    """What happens to one home, in an order that a seed gives."""

    home: Killed
    ask: Callable[[int], dict[str, Any]]
    chance: random.Random
    rounds: int
    incidents: list[Callable[[Storm], None]] = field(default_factory=list[Any])  # beside the kills
    calm: Callable[[], None] = lambda: None  # what ends the trouble, before every job is to end
    tried: int = 0
    survived: int = 0
    happened: list[str] = field(default_factory=list[str])

    def run(self) -> None:
        home = self.home
        home.start()
        while self.tried < self.rounds:
            while len(home.unfinished()) < UNFINISHED:
                number = len(home.keys)
                home.submit(**self.ask(number), key=f"key-{number}")
            time.sleep(self.chance.uniform(0, 1.5))
            self._something()
            self.look()
            if home.server is None:
                self._start()
            self._wish()
        self.calm()
        for record in home.unfinished():
            if record.is_paused or record.phase == "waiting":
                home.wish(record.job_id, "resume")
        home.wait(lambda: not home.unfinished(), f"seed {SEED}: every job ends")
        home.wait(lambda: not home.processes(), f"seed {SEED}: no process is left", seconds=15)
        self.look()
        for record in home.records():
            if record.state is JobState.FAILED:  # three attempts in a row were killed: no other reason is right
                assert record.failure is not None and record.failure["code"] in KILLED_CODES, record

    def look(self) -> None:
        told = broken_promises(self.home)
        assert not told, f"seed {SEED}, kill {self.tried}, after {self.happened[-3:]}: {told}\n{self.home.told()}"
        self.survived = self.tried

    def _something(self) -> None:
        """A kill, or with some of them a trouble of another kind before it."""
        if self.incidents and self.chance.random() < 0.5:
            incident = self.chance.choice(self.incidents)
            self.happened.append(incident.__name__)
            incident(self)
            self.look()
        kill = self.chance.choice([self.kill_server, self.kill_in_burst, self.kill_worker, self.kill_both])
        self.happened.append(kill.__name__)
        kill()

    def kill_server(self) -> None:
        self.home.kill_server()
        self.tried += 1

    def kill_worker(self) -> None:
        if processes := self.home.processes():
            os.kill(self.chance.choice(processes).pid, signal.SIGKILL)
            self.tried += 1

    def kill_both(self) -> None:
        """One after the other without a breath."""
        self.kill_worker()
        self.kill_server()

    def kill_in_burst(self) -> None:
        """The server dies while it answers submissions: what was answered stays, what was not is asked for again."""
        numbers = range(len(self.home.keys), len(self.home.keys) + BURST)

        def submit(number: int) -> None:
            try:
                self.home.submit(**self.ask(number), key=f"key-{number}")
            except httpx2.HTTPError:
                unanswered.append(number)

        unanswered: list[int] = []
        threads = [threading.Thread(target=submit, args=(number,)) for number in numbers]
        for thread in threads:
            thread.start()
        time.sleep(self.chance.uniform(0, 0.15))
        assert self.home.server is not None
        self.home.server.kill()
        for thread in threads:
            thread.join()
        self.kill_server()
        self.look()
        self._start()
        for number in unanswered:
            self.home.submit(**self.ask(number), key=f"key-{number}")
        for job_id in self.home.accepted[1 - BURST :]:  # one of them runs
            self.home.wish(job_id, "cancel")

    def _start(self) -> None:
        """Now and then the next server is killed before it serves."""
        while self.chance.random() < 0.15:
            self.home.begin_start()
            time.sleep(self.chance.uniform(0, 2))
            self.kill_server()
        self.home.start()

    def _wish(self) -> None:
        """Now and then somebody asks something of a job."""
        what = self.chance.choice([*[None] * 7, "pause", "resume", "cancel"])
        unfinished = self.home.unfinished()
        if what is not None and unfinished:
            self.home.wish(self.chance.choice(unfinished).job_id, what)
        if any(record.is_paused for record in unfinished) and self.chance.random() < 0.5:
            self._resume_all()

    def _resume_all(self) -> None:
        for record in self.home.unfinished():
            if record.is_paused:
                self.home.wish(record.job_id, "resume")

    def told(self) -> str:
        endings = [f"{record.state}" for record in self.home.records()]
        counts = ", ".join(f"{endings.count(ending)} {ending}" for ending in sorted(set(endings)))
        others = sorted({name for name in self.happened if not name.startswith("kill")})
        beside = ", ".join(f"{self.happened.count(name)} {name.replace('_', ' ')}" for name in others)
        among = f" among {beside}" if beside else ""
        return f"survived {self.survived} of {self.tried} kills{among}, seed {SEED}; {len(endings)} jobs: {counts}"


def test_nothing_is_lost_broken_or_left_running_by_kills(
    home: Killed, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    storm = Storm(home=home, ask=lambda _number: ask(), chance=random.Random(SEED), rounds=ROUNDS * 3 // 5)
    try:
        storm.run()
    finally:
        with capfd.disabled():
            print(f"\nfaults: {storm.told()}")


# ---- among other trouble


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Bucket, Proxy]]:
    """A bucket, and a way to it that a part of the requests does not get through unharmed."""
    with moto_server(tmp_path) as url, proxy_server(url) as proxy:
        session = boto3.session.Session("test", "test", region_name="us-east-1")
        client: Any = session.client("s3", endpoint_url=url)
        client.create_bucket(Bucket="results")
        client.put_bucket_versioning(Bucket="results", VersioningConfiguration={"Status": "Enabled"})
        yield Bucket(name="results", client=client), proxy
        client.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    with small_file_system(tmp_path / "disk", megabytes=150 + 3 * ROUNDS) as folder:
        yield folder


def test_nothing_is_lost_among_a_bad_store_a_full_disk_and_a_jumping_clock(
    store: tuple[Bucket, Proxy], disk: Path | None, tmp_path: Path, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket, proxy = store
    clock = tmp_path / "clock"
    clock.write_text("0")
    environment = {
        "PYTHONPATH": str(CLOCK), "FAULTS_CLOCK": str(clock),
        "STORE_ACCESS_KEY_ID": "test", "STORE_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    home = Killed(root=(disk or tmp_path) / "home", environment=environment, bucket=bucket, store_lies=True)
    chance = random.Random(SEED + 1)
    luck = random.Random(SEED + 2)  # of its own: requests come from many threads

    def trouble(_method: str, _path: str) -> Fault | None:
        return luck.choice(STORE_FAULTS) if luck.random() < STORE_FAULT_SHARE else None

    def jump_of_the_clock(_storm: Storm) -> None:
        moved = clock.with_name("clock.new")
        moved.write_text(str(chance.choice([-7200, 0, 7200])))
        moved.rename(clock)

    def full_disk(storm: Storm) -> None:
        assert disk is not None
        filler = fill(disk)
        try:
            time.sleep(chance.uniform(0, 2))
            assert home.ask("GET", "/api/jobs").status_code == 200, "reads are served"
            answer = home.ask("POST", "/api/jobs", json=storm.ask(-1), headers={"Idempotency-Key": "full"})
            if answer.status_code in (200, 201):  # there was room for it yet
                home.accepted.append(answer.json()["job_id"])
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "DISK_FULL")
            storm.look()
        finally:
            filler.unlink()

    def ask_for(number: int) -> dict[str, Any]:
        return ask(results=f"store:run-{number}") if number % 4 else ask()

    storm = Storm(
        home=home, ask=ask_for, chance=chance, rounds=ROUNDS - ROUNDS * 3 // 5,
        calm=lambda: setattr(proxy, "faults", lambda _method, _path: None),
        incidents=[jump_of_the_clock, *([full_disk] if disk is not None else [])],
    )  # fmt: skip
    try:
        home.start()
        declared = {"name": "store", "uri": "s3://results", "endpoint_url": proxy.url, "credentials": "env:STORE"}
        assert home.ask("POST", "/api/locations", json=declared).status_code == 201
        home.kill_server()
        proxy.faults = trouble
        storm.run()
    finally:
        with capfd.disabled():
            print(f"\nfaults: {storm.told()}")
        home.end()
