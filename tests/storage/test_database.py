"""Group commit: many writes share a sync to disk, each stands or falls alone, none is done behind a caller's back."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tunesmith.errors import MachineCannot
from tunesmith.storage import database as module
from tunesmith.storage.database import FILE_NAME, Database, open_database, sqlite_url
from tunesmith.storage.tables import LOGS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(sqlite_url(tmp_path))
    yield database
    database.close()


def add(name: str) -> Callable[[sa.Connection], str]:
    def work(connection: sa.Connection) -> str:
        row = {"name": name, "description": "", "retention_days": 1, "maximum_bytes": 1, "created_at": "now"}
        connection.execute(LOGS.insert(), row)
        if name.startswith("faulty"):
            raise ValueError(name)
        return name

    return work


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(sa.select(LOGS.c.name).order_by(LOGS.c.name)).scalars())


def test_what_an_event_loop_writes_is_there_when_it_returns_and_shares_its_commit(database: Database) -> None:
    commits: list[object] = []
    sa.event.listen(database._engine, "commit", commits.append)
    wished = [f"log-{number}" for number in range(50)]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(database.write_soon(add(name)) for name in wished))

    assert asyncio.run(all_at_once()) == wished
    assert len(commits) < 50
    assert names(database) == sorted(wished)


def test_a_fault_of_one_is_told_to_it_alone(database: Database) -> None:
    async def all_at_once() -> list[Any]:
        works = [database.write_soon(add(name)) for name in ("a", "faulty-1", "b", "faulty-2", "c")]
        return await asyncio.gather(*works, return_exceptions=True)

    outcomes = asyncio.run(all_at_once())
    assert [str(each) for each in outcomes] == ["a", "faulty-1", "b", "faulty-2", "c"]
    assert names(database) == ["a", "b", "c"]


def test_who_left_before_his_turn_has_written_nothing_and_the_others_have(database: Database) -> None:
    holding, going_on = threading.Event(), threading.Event()

    def first(connection: sa.Connection) -> str:
        holding.set()
        going_on.wait(10)
        return add("first")(connection)

    async def leave() -> None:
        leader = asyncio.create_task(database.write_soon(first))
        await asyncio.to_thread(holding.wait, 10)
        # the group of the first is being written: these two come after it
        leaving, staying = (asyncio.create_task(database.write_soon(add(name))) for name in ("left", "stayed"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        going_on.set()
        await asyncio.gather(leader, staying)

    asyncio.run(leave())
    assert names(database) == ["first", "stayed"]


@pytest.mark.parametrize("way", ["write_grouped", "write_soon"])
def test_a_write_that_could_not_begin_is_told_and_not_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0)
    database = open_database(sqlite_url(tmp_path))
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def write() -> None:
        written = getattr(database, way)(add("refused"))
        if way == "write_soon":
            asyncio.run(written)

    with pytest.raises(MachineCannot) as refusal:
        write()
    assert refusal.value.code == "STATE_BUSY"
    other.execute("ROLLBACK")
    other.close()
    assert database.write_grouped(add("later")) == "later"
    assert names(database) == ["later"]
    database.close()
