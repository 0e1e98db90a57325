"""Brings a database of an older release to the tables of this one (Alembic; the steps are in `versions/`).

A step runs in one transaction with the version's number: a killed upgrade leaves the old database. Before the first
step a copy of an SQLite database is kept beside it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event

from tunesmith.errors import TunesmithError
from tunesmith.storage.tables import REVISION

FOLDER = Path(__file__).parent
VERSIONS = FOLDER / "versions"

_one_at_a_time = threading.Lock()  # Alembic's context is one for a whole process


def upgrade(url: str, *, to: str, versions: Sequence[Path] = (VERSIONS,)) -> None:
    """Run the steps up to `to`. Safe where several processes do it at once: one does, the others find it done."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    is_sqlite = engine.dialect.name == "sqlite"
    if is_sqlite:
        event.listen(engine, "connect", _without_references)
        event.listen(engine, "begin", _begin)
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(str(path).replace("%", "%%") for path in versions))
    with _one_at_a_time, engine.begin() as connection:
        if is_sqlite:
            _keep_copy(engine.url.database, connection, to=to)
        config.attributes["connection"] = connection
        command.upgrade(config, to)
        if is_sqlite:
            _require_references(connection)
    engine.dispose()


def _without_references(connection: Any, _record: Any) -> None:
    """Changing a table makes it anew in SQLite: with references on, dropping the old one would empty those below it."""
    connection.isolation_level = None
    for pragma in ("busy_timeout = 60000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _require_references(connection: sa.Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise TunesmithError("STATE_UPGRADE", f"The upgrade would leave {len(broken)} rows without what they refer to.")


def _keep_copy(name: str | None, connection: sa.Connection, *, to: str) -> None:
    """`state.db.before-upgrade`, made while the write lock is held; that of an earlier upgrade gives way."""
    if name is None or not sa.inspect(connection).has_table(REVISION.name):
        return
    if connection.execute(sa.select(REVISION.c.version_num)).scalar() == to:
        return  # another process was first
    partial = Path(name + ".before-upgrade.tmp")
    partial.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(name)) as source, closing(sqlite3.connect(partial)) as sink:
            source.backup(sink)
    except sqlite3.OperationalError:
        partial.unlink(missing_ok=True)  # a full disk: what there is of the copy would only take room
        raise
    partial.chmod(0o600)
    partial.replace(name + ".before-upgrade")
