"""The state database: one engine, read and write transactions, group commit, and the upgrade of an old one.

In: the URL of a database (SQLite in the state folder by default). Out: transactions over the tables of `tables.py`.
Nothing here knows what a row means. Building a statement costs more than running it (0.1 to 0.3 ms): what every request
needs stands as a constant with bound parameters beside the function that runs it. SQLite runs in WAL with synchronous
FULL: a commit that returned survives a power cut. Every write transaction takes the write lock at its start, so that
none fails half-way for want of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, OperationalError

from tunesmith.errors import MachineCannot, TunesmithError
from tunesmith.storage.tables import METADATA

BUSY_SECONDS = 60
FILE_NAME = "state.db"
CACHED_STATEMENTS = 1000
REVISION = "0006"  # of the tables; the newest file in `migrations/versions`
MAXIMUM_CONNECTIONS = 100  # beyond the five that are kept: a server has 40 threads and the queue some more
GROUP_LIMIT = 200  # writes that share one commit

Result = TypeVar("Result")


class Database:
    """Transactions over one database; safe to use from many threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _engine(url)
        self._writing_engine = self._engine.execution_options(tunesmith_write=True)
        self._queue: deque[tuple[Callable[[sa.Connection], Any], Future[Any]]] = deque()
        self._writing = threading.Lock()  # held by the thread that writes what is queued
        self._writer: ThreadPoolExecutor | None = None  # writes for those that must not wait in a thread of their own
        self._is_writer_busy = False
        self._waking = threading.Lock()  # over the two above

    @contextmanager
    def read(self) -> Generator[sa.Connection]:
        """A consistent view: what others commit meanwhile is not seen."""
        with _in_our_words(self.url), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Generator[sa.Connection]:
        """All or nothing; durable once the block has ended."""
        with _in_our_words(self.url), self._writing_engine.begin() as connection:
            yield connection

    def write_grouped(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Run `work` in a transaction that it may share with what other threads write at the same moment.

        One sync to disk then serves them all. Durable when it returns; a `work` that raises undoes its own part alone.
        """
        answer: Future[Result] = Future()
        self._queue.append((work, answer))
        with self._writing:  # whoever gets here first writes for all that wait
            while not answer.done():  # more than GROUP_LIMIT may be queued before it
                self._write_queued()
        return answer.result()

    async def write_soon(self, work: Callable[[sa.Connection], Result]) -> Result:
        """`write_grouped` for callers on an event loop: one thread writes for all of them, none waits in its own.

        Durable when it returns. A caller that is cancelled before its `work` has begun has written nothing.
        """
        answer: Future[Result] = Future()
        self._queue.append((work, answer))
        with self._waking:
            if not self._is_writer_busy:
                self._is_writer_busy = True
                self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="tunesmith-writer")
                self._writer.submit(self._write_all)
        return await asyncio.wrap_future(answer)

    def _write_all(self) -> None:
        while True:
            with self._writing:
                self._write_queued()
            with self._waking:
                if not self._queue:
                    self._is_writer_busy = False
                    return

    def _write_queued(self) -> None:
        taken: list[tuple[Callable[[sa.Connection], Any], Future[Any]]] = []
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with self.write() as connection:
                while self._queue and len(taken) < GROUP_LIMIT:
                    work, answer = self._queue.popleft()
                    if not answer.set_running_or_notify_cancel():
                        continue  # its caller is gone
                    taken.append((work, answer))
                    outcomes.append(_in_savepoint(connection, work))
        except BaseException as error:  # noqa: BLE001  # handed to the callers that it belongs to
            while not taken and self._queue:  # no transaction could be begun: nothing that waited for it is kept
                taken += [self._queue.popleft() for _ in range(min(GROUP_LIMIT, len(self._queue)))]
            for _, answer in taken:
                if not answer.cancelled():
                    answer.set_exception(error)
            return
        for (_, answer), (value, fault) in zip(taken, outcomes, strict=True):
            if fault is None:
                answer.set_result(value)
            else:
                answer.set_exception(fault)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.shutdown()
        self._engine.dispose()


def _in_savepoint(connection: sa.Connection, work: Callable[[sa.Connection], Any]) -> tuple[Any, BaseException | None]:
    connection.exec_driver_sql("SAVEPOINT work")  # `begin_nested` costs ten times as much
    try:
        value = work(connection)
    except (OperationalError, sqlite3.Error):
        raise  # the disk or the connection: nothing of this transaction will stand
    except BaseException as error:  # noqa: BLE001  # handed to the caller that it belongs to
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT work")
        connection.exec_driver_sql("RELEASE SAVEPOINT work")
        return None, error
    connection.exec_driver_sql("RELEASE SAVEPOINT work")
    return value, None


def sqlite_url(home: Path) -> str:
    return f"sqlite:///{home / FILE_NAME}"


def open_database(url: str) -> Database:
    """Open and, if need be, create or upgrade the database. Raises MachineCannot for one of a newer release."""
    database = Database(url)
    found = _revision(database)
    if found == REVISION:
        return database
    if found is None:
        with database.write() as connection:
            # another process may have come first
            if "revision" not in sa.inspect(connection).get_table_names():
                METADATA.create_all(connection)
                connection.execute(METADATA.tables["revision"].insert().values(version_num=REVISION))
        found = _revision(database)
    if found is not None and found > REVISION:
        raise MachineCannot(
            "STATE_TOO_NEW",
            f"The state database was written by a newer release (revision {found}; this one knows {REVISION}).",
            field="TUNESMITH_HOME",
            hint="Install that release again, or restore a backup of before the upgrade.",
        )
    if found != REVISION:
        from tunesmith.storage.migrations import upgrade  # alembic costs 0.2 s, needed only here

        with _in_our_words(url):
            upgrade(url, to=REVISION)
    return database


def _revision(database: Database) -> str | None:
    with database.read() as connection:
        try:
            return connection.execute(sa.text("SELECT version_num FROM revision")).scalar()
        except DatabaseError:
            return None


def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(url, query_cache_size=CACHED_STATEMENTS, max_overflow=MAXIMUM_CONNECTIONS)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    for pragma in (
        f"busy_timeout = {BUSY_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("tunesmith_write", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the one that may fail: in SQLAlchemy's own errors
    else:
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN")  # without SQLAlchemy's 30 microseconds: each request reads


@contextmanager
def _in_our_words(url: str) -> Generator[None]:
    """The database's own faults as errors with a way out. A full disk stays an OSError: callers wait for room."""
    try:
        yield
    except (OperationalError, sqlite3.OperationalError) as error:  # the copy of before an upgrade is SQLite's own work
        text = str(error.orig if isinstance(error, OperationalError) else error)
        if "disk is full" in text:
            raise OSError(28, "No space left on device", url.removeprefix("sqlite:///")) from error
        if "locked" in text:
            raise MachineCannot(
                "STATE_BUSY",
                f"The state database was locked for over {BUSY_SECONDS} seconds by another process.",
                field="TUNESMITH_HOME",
                hint="Is a backup tool or another program holding it? Try again.",
            ) from error
        if "unable to open" in text or "readonly" in text or "disk I/O" in text:
            raise MachineCannot(
                "STATE_NOT_WRITABLE",
                f"The state database cannot be used: {text}.",
                field="TUNESMITH_HOME",
                hint="Is its folder on a disk that works and that you may write?",
            ) from error
        raise
    except DatabaseError as error:
        if "malformed" in str(error.orig) or "not a database" in str(error.orig):
            raise TunesmithError(
                "STATE_DAMAGED",
                f"The state database is damaged: {error.orig}.",
                field="TUNESMITH_HOME",
                hint="Restore a backup with `tunesmith state restore`; jobs' folders and artifacts are untouched.",
            ) from error
        raise


def fields_of(row: sa.Row[Any]) -> dict[str, Any]:
    """A row's columns by name."""
    return row._asdict()  # pyright: ignore[reportPrivateUsage]  # its documented name: an underscore keeps it apart
