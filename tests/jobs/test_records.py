from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from tunesmith.errors import MachineCannot, TunesmithError, UsageFault
from tunesmith.jobs.home import Home, open_home
from tunesmith.jobs.records import JobFolder, find_job, last_lines, read_record, read_records, update
from tunesmith.jobs.versions import next_version


def test_the_home_is_made_for_its_owner_alone(home: Home) -> None:
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineCannot) as caught:
        open_home({"TUNESMITH_HOME": str(tmp_path / "file")})
    assert caught.value.code == "HOME_NOT_WRITABLE" and "TUNESMITH_HOME" in (caught.value.hint or "")


def test_version_numbers_are_never_given_twice(home: Home) -> None:
    given: list[int] = []
    threads = [threading.Thread(target=lambda: given.append(next_version(home, "set"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(1, 17))
    assert next_version(home, "other") == 1


def test_a_lost_counter_goes_on_behind_the_results_that_are_there(home: Home) -> None:
    (home.results / "set" / "7").mkdir(parents=True)
    assert [next_version(home, "set"), next_version(home, "set")] == [8, 9]


@pytest.mark.parametrize("name", ["job-000000000000", "../../etc", "", "job-xyz", "job-000000000000/.."])
def test_an_unknown_job_is_refused(home: Home, name: str) -> None:
    with pytest.raises(UsageFault) as caught:
        find_job(home, name)
    assert caught.value.code == "UNKNOWN_JOB"


def test_a_job_is_found_and_listed(home: Home, job: JobFolder) -> None:
    assert find_job(home, job.job_id) == job
    assert read_records(home) == ([read_record(job)], [])


def test_a_broken_record_is_named_and_hides_no_other(home: Home, job: JobFolder) -> None:
    job.record.write_text("{")
    records, [fault] = read_records(home)
    assert records == [] and fault.code == "JOB_FOLDER_BROKEN"
    with pytest.raises(TunesmithError) as caught:
        read_record(job)
    assert caught.value.code == "JOB_FOLDER_BROKEN" and str(job.record) in caught.value.message


def test_a_record_keeps_what_is_not_changed(job: JobFolder) -> None:
    before = read_record(job)
    after = update(job, before, phase="training")
    assert after == read_record(job)
    assert after.model_dump() == before.model_dump() | {"phase": "training"}


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, lines=3) == []
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"\xff end")
    assert last_lines(log, lines=2) == ["line 99", "\ufffd end"]
