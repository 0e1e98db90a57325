from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from tunesmith.errors import MachineCannot, TunesmithError, Unknown
from tunesmith.jobs.home import Home, open_home
from tunesmith.jobs.records import (
    JobFolder,
    create_job,
    keep_end,
    last_lines,
    read_job_file,
    read_plan,
    read_preparation,
)
from tunesmith.jobs.state import State


def test_the_home_is_made_for_its_owner_alone(home: Home) -> None:
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineCannot) as caught:
        open_home({"TUNESMITH_HOME": str(tmp_path / "file")})
    assert caught.value.code == "HOME_NOT_WRITABLE" and "TUNESMITH_HOME" in (caught.value.hint or "")


def test_the_number_of_a_version_is_above_every_local_result(state: State) -> None:
    assert state.highest_result("set") == 0
    (state.home.results / "set" / "7").mkdir(parents=True)
    (state.home.results / "set" / "notes").mkdir()
    assert state.highest_result("set") == 7


@pytest.mark.parametrize("name", ["job-000000000000", "../../etc", "", "job-xyz", "job-000000000000/.."])
def test_an_unknown_job_is_refused(state: State, name: str) -> None:
    with pytest.raises(Unknown) as caught:
        state.folder(name)
    assert caught.value.code == "UNKNOWN_JOB"


def test_a_folder_that_no_job_of_the_database_names_is_nobodys(state: State, job: JobFolder) -> None:
    old = state.home.jobs / "job-0123456789ab"
    old.mkdir()
    (old / "record.json").write_text("{")
    (state.home.root / "versions.json").write_text('{"tiny-rows": 4}')
    assert [record.job_id for record in state.jobs.records()] == [job.job_id]
    with pytest.raises(Unknown):
        state.folder(old.name)


def test_a_job_folder_is_whole_also_after_a_kill_while_it_was_made(state: State, job: JobFolder) -> None:
    left = state.home.jobs / f".new-{job.job_id}"
    left.mkdir()
    (left / "job.json").write_text("{")
    made = read_job_file(job), read_preparation(job), read_plan(job)
    shutil.rmtree(job.path)
    create_job(state.home, job_file=made[0], preparation=made[1], plan=made[2])
    assert (read_job_file(job), read_preparation(job), read_plan(job)) == made
    assert not left.exists()


def test_a_broken_file_of_a_job_is_named(job: JobFolder) -> None:
    job.job_file.write_text("{")
    with pytest.raises(TunesmithError) as caught:
        read_job_file(job)
    assert caught.value.code == "JOB_FOLDER_BROKEN" and str(job.job_file) in caught.value.message


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, lines=3) == []
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"\xff end")
    assert last_lines(log, lines=2) == ["line 99", "\ufffd end"]


def test_of_a_log_that_is_too_long_whole_lines_of_the_newer_half_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert keep_end(log, maximum_bytes=1000) == 0
    log.write_text("".join(f"line {number:04}\n" for number in range(100)))
    assert keep_end(log, maximum_bytes=1000) == 0
    with log.open("a") as writer:  # goes on writing while it is cut
        writer.write("one more\n")
        writer.flush()
        assert keep_end(log, maximum_bytes=1000) > 0
        writer.write("and the last\n")
    lines = log.read_text().splitlines()
    assert lines[0] == f"[tunesmith: {1009 - 49 * 10 - 9:,} older bytes of this log were dropped]"
    assert lines[1:] == [*(f"line {number:04}" for number in range(51, 100)), "one more", "and the last"]
