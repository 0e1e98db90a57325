from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import threading
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from tests.catalog import make
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.versions import find_version
from tunesmith.errors import InputRefused, TunesmithError
from tunesmith.jobs.backup import make_backup, reconcile, restore_backup, view_state
from tunesmith.jobs.home import Home, open_home
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import NewJob, this_process
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.jobs import JobRecord, JobState
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.database import REVISION


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home({"TUNESMITH_HOME": str(tmp_path / "home")})


@pytest.fixture
def state(home: Home) -> State:
    return open_state(home)


def submit(state: State) -> JobRecord:
    new = NewJob(
        job_id=make.job_id(), request=FinetuneRequest(model="base", dataset="rows.jsonl"), settings=TrainingSettings(),
        version_set="bot", results_uri=None, results_root=state.home.results, base_name="base",
    )  # fmt: skip
    with state.database.write() as connection:
        return state.jobs.insert(connection, new, above=state.highest_result("bot"))


def publish(state: State) -> Path:
    """A version with an artifact under results, ACTIVE."""
    with state.database.write() as connection:
        name = add_version(
            connection, project="default", version_set="bot", above=0, created_at=make.TIME, name="",
            base_name="base", results_uri="",
        )  # fmt: skip
        folder = state.home.results / "bot" / name.rpartition(":")[2]
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        move_version(
            connection, project="default", model_version=name, state=VersionState.ACTIVE, now=make.TIME,
            artifact_uri=folder.as_uri(),
        )  # fmt: skip
    return folder


def jobs(home: Home) -> list[str]:
    opened = open_state(home)
    try:
        return [record.job_id for record in opened.jobs.records()]
    finally:
        opened.database.close()


@pytest.mark.parametrize("name", ["backup", "backup.zip"])
def test_a_backup_brings_back_the_state_of_its_moment(state: State, tmp_path: Path, name: str) -> None:
    before = submit(state)
    about = make_backup(state.home, state.database, tmp_path / name)
    submit(state)
    state.database.close()
    restored = restore_backup(state.home, tmp_path / name)
    assert jobs(state.home) == [before.job_id]
    assert (about.jobs, about.versions, about.revision) == (1, 1, REVISION)
    assert restored.backup == about
    assert restored.replaced is not None
    with closing(sqlite3.connect(restored.replaced)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (2,)


def test_a_backup_goes_to_an_empty_home(state: State, tmp_path: Path) -> None:
    job = submit(state)
    make_backup(state.home, state.database, tmp_path / "b.zip")
    other = open_home({"TUNESMITH_HOME": str(tmp_path / "other")})
    assert restore_backup(other, tmp_path / "b.zip").replaced is None
    assert jobs(other) == [job.job_id]


@pytest.mark.slow
def test_a_backup_is_of_one_moment_while_others_write(state: State, tmp_path: Path) -> None:
    """Each transaction makes a job and its version: a copy holds both or neither."""
    stop = threading.Event()

    def write() -> None:
        for _ in range(900):  # below the quota of unfinished jobs
            if stop.is_set():
                return
            submit(state)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for index in range(5):
            about = make_backup(state.home, state.database, tmp_path / f"b{index}")
            assert about.jobs == about.versions
    finally:
        stop.set()
        writer.join()


def test_nothing_is_overwritten_and_only_the_owner_reads(state: State, tmp_path: Path) -> None:
    for name in ("b", "b.zip"):
        make_backup(state.home, state.database, tmp_path / name)
        with pytest.raises(TunesmithError) as caught:
            make_backup(state.home, state.database, tmp_path / name)
        assert caught.value.code == "BACKUP_TARGET"
    assert (tmp_path / "b.zip").stat().st_mode & 0o077 == 0
    assert (tmp_path / "b" / "state.db").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_name_of_another_archive_is_refused(state: State, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="archive") as caught:
        make_backup(state.home, state.database, tmp_path / "b.tar.gz")
    assert caught.value.code == "BACKUP_TARGET" and not (tmp_path / "b.tar.gz").exists()


@pytest.mark.parametrize("fault", ["flipped", "cut", "no about", "not a zip", "missing", "newer"])
def test_a_backup_that_is_not_whole_changes_nothing(state: State, tmp_path: Path, fault: str) -> None:
    job = submit(state)
    source = tmp_path / "b"
    make_backup(state.home, state.database, source)
    later = submit(state)
    state.database.close()
    copy = source / "state.db"
    code = "BACKUP_BROKEN"
    if fault == "flipped":
        content = bytearray(copy.read_bytes())
        content[5000] ^= 255
        copy.write_bytes(content)
    elif fault == "cut":
        copy.write_bytes(copy.read_bytes()[:-4096])
    elif fault == "no about":
        (source / "backup.json").unlink()
    elif fault == "not a zip":
        source = tmp_path / "notes.zip"
        source.write_text("not a zip")
    elif fault == "missing":
        source = tmp_path / "nowhere"
    else:
        code = "BACKUP_TOO_NEW"
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("UPDATE revision SET version_num = '9999'")
            connection.commit()
        about = json.loads((source / "backup.json").read_text())
        from tunesmith.files import sha256_of

        about["sha256"] = sha256_of(copy)
        (source / "backup.json").write_text(json.dumps(about))
    with pytest.raises(TunesmithError) as caught:
        restore_backup(state.home, source)
    assert caught.value.code == code
    assert jobs(state.home) == [later.job_id, job.job_id]
    assert not list(state.home.root.glob("*replaced*")) and not list(state.home.root.glob(".state*"))


def test_a_home_that_is_served_or_busy_is_not_restored(state: State, tmp_path: Path) -> None:
    job = submit(state)
    make_backup(state.home, state.database, tmp_path / "b")
    with state.home.serve_lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(TunesmithError) as caught:
            restore_backup(state.home, tmp_path / "b")
        assert caught.value.code == "SERVER_RUNNING"
    lease, _ = state.jobs.acquire(job.job_id, owner=this_process())
    with pytest.raises(TunesmithError, match=job.job_id) as caught:
        restore_backup(state.home, tmp_path / "b")
    assert caught.value.code == "STATE_IN_USE"
    state.jobs.release(lease)
    state.database.close()
    restore_backup(state.home, tmp_path / "b")


def test_a_restored_lease_is_nobodys(state: State, tmp_path: Path) -> None:
    job = submit(state)
    lease, _ = state.jobs.acquire(job.job_id, owner=this_process())
    make_backup(state.home, state.database, tmp_path / "b")
    state.jobs.release(lease)
    state.database.close()
    restore_backup(state.home, tmp_path / "b")
    opened = open_state(state.home)
    fresh, _ = opened.jobs.acquire(job.job_id, owner="elsewhere/1/1")
    assert fresh.fence > lease.fence
    opened.database.close()


def test_after_an_older_backup_unknown_artifacts_are_listed_and_kept_and_their_numbers_not_given_again(
    state: State, tmp_path: Path
) -> None:
    known = publish(state)
    make_backup(state.home, state.database, tmp_path / "b")
    later = publish(state)
    (state.home.jobs / "job-0123456789ab").mkdir()
    shutil.rmtree(known)
    state.database.close()
    found = restore_backup(state.home, tmp_path / "b").found
    assert found.unknown_artifacts == [str(later)]
    assert found.missing_artifacts == ["bot:1"]
    assert found.unknown_jobs == ["job-0123456789ab"]
    assert (later / "manifest.json").exists()
    opened = open_state(state.home)
    with opened.database.read() as connection:
        # nothing became a success by a restore, and nothing that is gone is made good
        assert find_version(connection, "bot:1", project="default").state is VersionState.ACTIVE
        with pytest.raises(TunesmithError):
            find_version(connection, "bot:2", project="default")
    assert submit(opened).model_version == "bot:3"
    opened.database.close()


def test_a_state_in_order_agrees_with_the_disk(state: State) -> None:
    publish(state)
    submit(state)
    assert reconcile(state.home, state.database).is_clean()
    view = view_state(state.home, state.database)
    assert (view.jobs, view.versions) == ({"ACCEPTED": 1}, {"ACTIVE": 1, "CREATING": 1})
    assert view.database_bytes > 0


def test_an_unfinished_job_without_its_folder_is_named(state: State) -> None:
    job = submit(state)
    lease, _ = state.jobs.acquire(job.job_id, owner=this_process())
    state.jobs.move(job.job_id, JobState.IN_PROGRESS, lease=lease)
    assert reconcile(state.home, state.database).missing_jobs == [job.job_id]


def test_side_files_of_the_old_database_do_not_meet_the_new_one(state: State, tmp_path: Path) -> None:
    job = submit(state)
    make_backup(state.home, state.database, tmp_path / "b")
    submit(state)
    for suffix in ("-wal", "-shm"):
        assert (state.home.root / f"state.db{suffix}").exists(), "the database is open"
    # its process dies: the side files stay
    kept = {suffix: (state.home.root / f"state.db{suffix}").read_bytes() for suffix in ("-wal", "-shm")}
    main = (state.home.root / "state.db").read_bytes()
    state.database.close()
    (state.home.root / "state.db").write_bytes(main)
    for suffix, content in kept.items():
        (state.home.root / f"state.db{suffix}").write_bytes(content)
    restored = restore_backup(state.home, tmp_path / "b")
    assert jobs(state.home) == [job.job_id]
    assert restored.replaced is not None and os.path.exists(restored.replaced + "-wal")
    with closing(sqlite3.connect(restored.replaced)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (2,)


def test_a_zip_holds_two_files_and_no_secret(state: State, tmp_path: Path) -> None:
    (state.home.root / "token").write_text("secret")
    make_backup(state.home, state.database, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert sorted(archive.namelist()) == ["backup.json", "state.db"]
