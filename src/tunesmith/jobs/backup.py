"""Backup and restore of the state database, and the comparison of a database with the disk.

A backup is a consistent copy of the database beside `backup.json`, in a folder or one zip file; it may be made while
everything runs. Jobs' folders, results and uploaded datasets are named in it and not held: they may be any size, and
are files that nothing changes in place. A restore puts the copy in place of the database of a stopped state folder,
keeps what was there, and lists what the disk holds and the database does not know, and the other way round. It deletes
nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from pydantic import ValidationError

from tunesmith import __version__
from tunesmith.catalog import audit
from tunesmith.catalog.clock import now
from tunesmith.errors import Conflict, InputRefused, MachineCannot
from tunesmith.files import CHUNK_BYTES, fsync_folder, is_other_archive, sha256_of, temporary_beside, write_json
from tunesmith.jobs.home import Home
from tunesmith.jobs.launcher import is_running
from tunesmith.jobs.store import owner_may_live
from tunesmith.spec.artifacts import MANIFEST_NAME
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.spec.state import Backup, Reconciliation, Restored, StateFolder, StateView
from tunesmith.storage.database import FILE_NAME, REVISION, Database, open_database, sqlite_url
from tunesmith.storage.locations import local_path
from tunesmith.storage.tables import JOBS, MODEL_VERSIONS

ABOUT_NAME = "backup.json"
MAXIMUM_ABOUT_BYTES = 16 << 20
SIDE_FILES = ("-wal", "-shm")  # of SQLite; those of another database would damage the one that is put in place


# ---- backup


def make_backup(home: Home, database: Database, target: Path) -> Backup:
    """Write a backup to a new folder, or to a new file if the name ends in .zip. Whole, or not there at all.

    Raises InputRefused (BACKUP_TARGET); OSError as the disk gives it.
    """
    if target.exists() or target.is_symlink():
        raise InputRefused(
            "BACKUP_TARGET", f"{target} is there already; nothing is overwritten.", field="target",
            hint="Name a new file or folder, with the date for example.",
        )  # fmt: skip
    if is_other_archive(target):
        raise InputRefused(
            "BACKUP_TARGET", f"{target} is named as an archive that a backup is not written as.", field="target",
            hint="Name a new folder, or a new file that ends in .zip.",
        )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        temporary.mkdir(mode=0o700)
        copy = temporary / FILE_NAME
        _copy_database(home.root / FILE_NAME, copy)
        about = _about(home, copy)
        write_json(temporary / ABOUT_NAME, about.as_json())
        if target.suffix.lower() == ".zip":
            packed = temporary / "packed"
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
                archive.write(temporary / ABOUT_NAME, ABOUT_NAME)
                archive.write(copy, FILE_NAME)
            packed.chmod(0o600)
            with packed.open("rb") as handle:
                os.fsync(handle.fileno())
            packed.rename(target)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_folder(target.parent)
    with database.write() as connection:
        audit.record(connection, "local", "state.backup", target.name, {"sha256": about.sha256})
    return about


def _copy_database(source: Path, copy: Path) -> None:
    """By SQLite's own backup: one moment of the database, whatever is written meanwhile."""
    with closing(sqlite3.connect(source, timeout=60)) as reader, closing(sqlite3.connect(copy)) as writer:
        reader.backup(writer)
        writer.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
    copy.chmod(0o600)
    with copy.open("rb") as handle:
        os.fsync(handle.fileno())


def _about(home: Home, copy: Path) -> Backup:
    with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)) as connection:
        jobs, versions, revision = (
            connection.execute(f"SELECT {what}").fetchone()[0]
            for what in (
                "count(*) FROM jobs",
                "count(*) FROM model_versions",
                "version_num FROM revision",
            )
        )
        places = connection.execute(
            "SELECT DISTINCT artifact_uri FROM model_versions WHERE artifact_uri IS NOT NULL AND state = 'ACTIVE'"
        ).fetchall()
    inside = home.root.as_uri() + "/"
    return Backup(
        tunesmith_version=__version__,
        revision=revision,
        created_at=now(),
        home=str(home.root),
        sha256=sha256_of(copy),
        bytes=copy.stat().st_size,
        jobs=jobs,
        versions=versions,
        folders=state_folders(home),
        other_places=sorted(place for (place,) in places if not place.startswith(inside)),
    )


def state_folders(home: Home) -> list[StateFolder]:
    """What lies beside the database, with its size."""
    return [
        StateFolder(path=str(folder), what=what, bytes=tree_bytes(folder))
        for folder, what in (
            (home.jobs, "jobs: settings, events, logs, checkpoints"),
            (home.results, "results: published artifacts"),
            (home.datasets, "uploaded datasets"),
        )
    ]


def tree_bytes(path: Path) -> int:
    """Bytes of the regular files at or below `path`; links are not followed, what vanishes meanwhile is nothing."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size if path.exists() else 0
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


# ---- restore


def restore_backup(home: Home, source: Path) -> Restored:
    """Put the backup in place of the database of a home where nothing runs, and compare it with the disk.

    Raises InputRefused (BACKUP_BROKEN, BACKUP_TOO_NEW), MachineCannot (SERVER_RUNNING), Conflict (STATE_IN_USE).
    """
    with _stopped(home):
        fresh = home.root / f".{FILE_NAME}.restoring"
        fresh.unlink(missing_ok=True)
        try:
            about = _unpack(source, fresh)
            _verify(source, fresh, about)
            replaced = _replace(home.root / FILE_NAME, fresh)
        finally:
            fresh.unlink(missing_ok=True)
        database = open_database(sqlite_url(home.root))  # upgrades a backup of an older release
        try:
            with database.write() as connection:
                # whoever held a lease when the backup was made holds none now
                connection.execute(JOBS.update().values(lease_owner=None, lease_until=None, fence=JOBS.c.fence + 1))
                audit.record(connection, "local", "state.restore", source.name, {"made_at": about.created_at})
            found = reconcile(home, database)
        finally:
            database.close()
    return Restored(backup=about, replaced=str(replaced) if replaced is not None else None, found=found)


@contextmanager
def _stopped(home: Home) -> Generator[None]:
    """No server runs here, and none starts meanwhile; no command looks after a job, no worker runs."""
    handle = os.open(home.serve_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MachineCannot(
                "SERVER_RUNNING", f"A server runs on the state folder {home.root}.", field="TUNESMITH_HOME",
                hint="Stop it first.",
            ) from error  # fmt: skip
        if busy := list(_busy_jobs(home.root / FILE_NAME)):
            raise Conflict(
                "STATE_IN_USE", f"Jobs run on the state folder {home.root}: {', '.join(busy[:5])}.",
                field="TUNESMITH_HOME", hint="Stop those commands and workers first.",
            )  # fmt: skip
        yield
    finally:
        os.close(handle)


def _busy_jobs(path: Path) -> Iterator[str]:
    """Jobs with a living supervisor or worker, as the present database tells; a broken one tells of none."""
    if not path.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            rows = connection.execute(
                "SELECT job_id, lease_owner, worker_pid, worker_started_at FROM jobs "
                "WHERE lease_owner IS NOT NULL OR worker_pid IS NOT NULL"
            ).fetchall()
    except sqlite3.DatabaseError:
        return
    for job_id, owner, pid, started_at in rows:
        has_owner = owner is not None and owner_may_live(owner)
        if has_owner or (pid is not None and is_running(pid, started_at=started_at)):
            yield job_id


def _unpack(source: Path, fresh: Path) -> Backup:
    try:
        if source.is_dir():
            about = Backup.model_validate_json((source / ABOUT_NAME).read_bytes())
            shutil.copyfile(source / FILE_NAME, fresh)
        else:
            with zipfile.ZipFile(source) as archive:
                if archive.getinfo(ABOUT_NAME).file_size > MAXIMUM_ABOUT_BYTES:
                    raise ValueError(f"{ABOUT_NAME} is too large")
                about = Backup.model_validate_json(archive.read(ABOUT_NAME))
                with archive.open(FILE_NAME) as packed, fresh.open("wb") as sink:
                    shutil.copyfileobj(packed, sink, CHUNK_BYTES)
    except FileNotFoundError as error:
        raise _broken(source, "there is no such file, or it is no backup") from error
    except (ValueError, KeyError, zipfile.BadZipFile, ValidationError) as error:
        raise _broken(source, f"it is no backup ({str(error).splitlines()[0]})") from error
    fresh.chmod(0o600)
    return about


def _verify(source: Path, fresh: Path, about: Backup) -> None:
    if sha256_of(fresh) != about.sha256:
        raise _broken(source, f"its {FILE_NAME} does not have the SHA-256 of {ABOUT_NAME}")
    try:
        with closing(sqlite3.connect(fresh)) as connection:
            told = connection.execute("PRAGMA integrity_check").fetchone()[0]
            revision = connection.execute("SELECT version_num FROM revision").fetchone()[0]
    except (sqlite3.DatabaseError, TypeError) as error:
        raise _broken(source, f"its database cannot be read ({error})") from error
    if told != "ok":
        raise _broken(source, f"its database is damaged ({told})")
    if revision > REVISION:
        raise InputRefused(
            "BACKUP_TOO_NEW",
            f"The backup is of a newer release (revision {revision}; this one knows {REVISION}).",
            field="source",
            hint="Install that release first.",
        )


def _broken(source: Path, why: str) -> InputRefused:
    return InputRefused(
        "BACKUP_BROKEN", f"{source} cannot be restored: {why}. Nothing was changed.", field="source",
        hint="Take another backup.",
    )  # fmt: skip


def _replace(path: Path, fresh: Path) -> Path | None:
    """Rename the old database away with its side files, then the new one into its place."""
    replaced = None
    if path.exists():
        replaced = path.with_name(f"{FILE_NAME}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        for suffix in SIDE_FILES:  # first: without them the old file still opens, a new one with them does not
            side = path.with_name(path.name + suffix)
            if side.exists():
                side.rename(replaced.with_name(replaced.name + suffix))
        path.rename(replaced)
    else:
        for suffix in SIDE_FILES:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    with fresh.open("rb") as handle:
        os.fsync(handle.fileno())
    fresh.rename(path)
    fsync_folder(path.parent)
    return replaced


# ---- database and disk


def reconcile(home: Home, database: Database) -> Reconciliation:
    """List where the two disagree; change nothing. Buckets are not looked at."""
    with database.read() as connection:
        versions = connection.execute(
            sa.select(
                MODEL_VERSIONS.c.model_version,
                MODEL_VERSIONS.c.state,
                MODEL_VERSIONS.c.artifact_uri,
                MODEL_VERSIONS.c.results_uri,
            )
        ).all()
        jobs = connection.execute(sa.select(JOBS.c.job_id, JOBS.c.state, JOBS.c.results_uri)).all()
    known = {uri for row in versions for uri in (row.artifact_uri, row.results_uri) if uri}
    known |= {row.results_uri for row in jobs}
    # of the default project, and of others, which have a folder each
    found = [*home.results.glob(f"*/*/{MANIFEST_NAME}"), *home.results.glob(f"_*/*/*/{MANIFEST_NAME}")]
    artifacts = [path.parent for path in found]
    folders = {path.name for path in home.jobs.glob("job-*") if path.is_dir()}
    return Reconciliation(
        unknown_artifacts=sorted(str(path) for path in artifacts if path.as_uri() not in known),
        missing_artifacts=sorted(
            row.model_version for row in versions if row.state == VersionState.ACTIVE and _is_missing(row.artifact_uri)
        ),
        unknown_jobs=sorted(folders - {row.job_id for row in jobs}),
        missing_jobs=sorted(
            row.job_id
            for row in jobs
            if row.state not in FINAL_STATES and row.state != "ACCEPTED" and row.job_id not in folders
        ),
    )


def _is_missing(artifact_uri: str | None) -> bool:
    if artifact_uri is None or not artifact_uri.startswith("file:"):
        return artifact_uri is None
    return not (local_path(artifact_uri, field="artifact_uri") / MANIFEST_NAME).is_file()


def view_state(home: Home, database: Database) -> StateView:
    with database.read() as connection:
        jobs, versions = (
            {
                row.state: row.number
                for row in connection.execute(
                    sa.select(table.c.state, sa.func.count().label("number")).group_by(table.c.state)
                )
            }
            for table in (JOBS, MODEL_VERSIONS)
        )
    files = [home.root / (FILE_NAME + suffix) for suffix in ("", *SIDE_FILES)]
    return StateView(
        home=str(home.root),
        revision=REVISION,
        database_bytes=sum(tree_bytes(path) for path in files),
        jobs=dict(sorted(jobs.items())),
        versions=dict(sorted(versions.items())),
        folders=state_folders(home),
        found=reconcile(home, database),
    )
