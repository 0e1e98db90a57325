"""The steps of the state database, on real files. After a change of the tables before the first release:
`python scripts/make_first_revision.py`.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tunesmith.errors import MachineCannot, TunesmithError
from tunesmith.storage.database import REVISION, Database, open_database, sqlite_url
from tunesmith.storage.migrations import FOLDER, VERSIONS, upgrade
from tunesmith.storage.tables import METADATA

OLD_STATE = Path(__file__).parent / "data" / "state-0001.sql"
NEXT_STEP = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", {down!r}


def upgrade() -> None:
    with op.batch_alter_table("jobs", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.Text))
    {then}
"""


def schema(url: str) -> dict[str, list[str]]:
    """Each table, index and trigger with its parts, in an order of their own."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {
        name: sorted(line.strip().rstrip(",").replace(f'"{name}"', name) for line in sql.splitlines())
        for name, sql in found
    }


def old_state(folder: Path) -> str:
    url = sqlite_url(folder)
    with closing(sqlite3.connect(folder / "state.db")) as connection:
        connection.executescript(OLD_STATE.read_text(encoding="utf-8"))
    return url


def next_steps(folder: Path, then: str = "pass") -> list[Path]:
    """The real steps and one after them, which makes the table of jobs anew."""
    later = folder / "later"
    later.mkdir()
    (later / "r9999_later.py").write_text(NEXT_STEP.format(down=REVISION, then=then))
    return [VERSIONS, later]


def rows(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Of every table that is there, whatever the revision."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for name in names
            if name != "revision" and not name.startswith("sqlite_")
        }


def test_the_steps_make_the_tables_of_this_release(tmp_path: Path) -> None:
    made, migrated = tmp_path / "made", tmp_path / "migrated"
    made.mkdir()
    migrated.mkdir()
    open_database(sqlite_url(made)).close()
    upgrade(sqlite_url(migrated), to=REVISION)
    assert schema(sqlite_url(migrated)) == schema(sqlite_url(made))
    database = Database(sqlite_url(migrated))
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "revision", "compare_type": True})
        assert compare_metadata(context, METADATA) == []
    database.close()


def test_the_newest_step_is_the_revision_that_the_release_knows() -> None:
    scripts = ScriptDirectory(str(FOLDER), version_locations=[str(VERSIONS)])
    assert scripts.get_heads() == [REVISION]


def test_a_state_folder_of_the_first_revision_opens_and_keeps_its_rows(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    before = rows(url)
    assert all(before.values()), "the old state holds a row of each table"
    database = open_database(url)
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM revision")).scalars().all() == [REVISION]
    database.close()
    after = rows(url)
    for name, kept in before.items():
        assert [row[: len(kept[0])] for row in after[name]] == kept, name
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    open_database(sqlite_url(fresh)).close()
    assert schema(url).keys() == schema(sqlite_url(fresh)).keys()


def test_an_upgraded_state_begins_with_the_project_and_the_policy_of_a_new_one(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    open_database(url).close()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    open_database(sqlite_url(fresh)).close()
    after, new = rows(url), rows(sqlite_url(fresh))
    assert after["projects"] == new["projects"] and [row[0] for row in new["projects"]] == ["default"]
    assert after["policies"] == new["policies"] and [row[0] for row in new["policies"]] == ["everyday"]
    assert {row[-1] for row in after["idempotency"]} == {"default"}, "keys of before are of that project"


def test_a_step_that_makes_a_table_anew_keeps_what_refers_to_it_and_a_copy_of_before(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    before = rows(url)
    upgrade(url, to="9999", versions=next_steps(tmp_path))
    after = rows(url)
    assert after["events"] == before["events"] != []
    assert [row[: len(before["jobs"][0])] for row in after["jobs"]] == before["jobs"]
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tmp_path / "state.db.before-upgrade", copy / "state.db")
    assert rows(sqlite_url(copy)) == before


def test_a_step_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    before, old_schema = rows(url), schema(url)
    with pytest.raises(ZeroDivisionError):
        upgrade(url, to="9999", versions=next_steps(tmp_path, then="1 / 0"))
    assert (rows(url), schema(url)) == (before, old_schema)
    open_database(url).close()


def test_an_upgrade_on_a_full_disk_is_told_as_such_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = old_state(tmp_path)
    before = rows(url)
    connect = sqlite3.connect

    def connect_small(name: str | Path) -> sqlite3.Connection:
        connection = connect(name)
        if str(name).endswith(".tmp"):
            connection.execute("PRAGMA max_page_count = 4")
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", connect_small)
        with pytest.raises(OSError, match="No space left") as caught:
            open_database(url)
    assert caught.value.errno == errno.ENOSPC
    assert rows(url) == before and not list(tmp_path.glob("*.tmp"))
    open_database(url).close()


def test_a_step_that_would_leave_rows_without_what_they_refer_to_is_undone(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    before = rows(url)
    with pytest.raises(TunesmithError) as caught:
        upgrade(url, to="9999", versions=next_steps(tmp_path, then='op.execute("DELETE FROM jobs")'))
    assert caught.value.code == "STATE_UPGRADE"
    assert rows(url) == before


@pytest.mark.slow
def test_processes_that_upgrade_at_once_do_it_once(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    steps = [str(path) for path in next_steps(tmp_path)]
    code = (
        "import sys; from pathlib import Path; from tunesmith.storage.migrations import upgrade; "
        "upgrade(sys.argv[1], to='9999', versions=[Path(each) for each in sys.argv[2:]])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, url, *steps]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        assert connection.execute("SELECT version_num FROM revision").fetchall() == [("9999",)]
        assert len(connection.execute("SELECT colour FROM jobs").fetchall()) == 1
    with closing(sqlite3.connect(tmp_path / "state.db.before-upgrade")) as connection:
        assert connection.execute("SELECT version_num FROM revision").fetchall() == [("0001",)]


def test_a_database_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    url = old_state(tmp_path)
    upgrade(url, to="9999", versions=next_steps(tmp_path))
    with pytest.raises(MachineCannot) as caught:
        open_database(url)
    assert caught.value.code == "STATE_TOO_NEW"
