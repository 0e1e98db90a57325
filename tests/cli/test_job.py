from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done
from tests.jobs.test_supervisor import supervise_in_a_process, wait_for
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import open_state
from tunesmith.jobs.store import LeaseLost
from tunesmith.jobs.supervisor import StopWish, run_job
from tunesmith.spec.jobs import JobResult

pytestmark = pytest.mark.slow  # starts processes, or waits for wishes to be seen

Tunesmith = Callable[..., Done]
Worker = Callable[[str], Callable[[Path], list[str]]]


def finish(job: JobFolder, command: Callable[[Path], list[str]]) -> None:
    state = open_state(Home(root=job.path.parents[1]))
    run_job(job, state=state, environment=os.environ, on_event=lambda event: None, wish=StopWish(), command=command)


def test_an_empty_list_says_what_to_do(tunesmith: Tunesmith) -> None:
    assert "tunesmith demo" in tunesmith("job", "list").out
    assert tunesmith("job", "list", "--json").json == {"jobs": []}


def test_jobs_are_listed_with_their_states(tunesmith: Tunesmith, job: JobFolder) -> None:
    [listed] = tunesmith("job", "list", "--json").json["jobs"]
    assert (listed["job_id"], listed["state"]) == (job.job_id, "ACCEPTED")
    assert job.job_id in tunesmith("job", "list").out


def test_a_finished_job_is_shown_whole(tunesmith: Tunesmith, job: JobFolder, worker: Worker) -> None:
    finish(job, worker("dies once"))
    shown = tunesmith("job", "show", job.job_id).out
    for words in ("SUCCEEDED", "0 (base)", "improved", "so it was measured", "killed by SIGKILL", "attempts  2"):
        assert words in shown
    told = tunesmith("job", "show", job.job_id, "--json").json
    assert set(JobResult.model_fields) <= set(told)
    assert told["record"]["attempts"] == 2 and told["settings"]["lora_rank"] == 32


def test_resuming_a_finished_job_repeats_its_result(tunesmith: Tunesmith, job: JobFolder, worker: Worker) -> None:
    finish(job, worker("works"))
    done = tunesmith("job", "resume", job.job_id, "--json")
    assert done.code == 0
    result = JobResult.model_validate(done.json)
    assert result.state == "SUCCEEDED" and result.artifact_uri is not None
    assert (job.path / "starts").read_text() == "x"


@pytest.mark.parametrize(
    ("behaviour", "code"), [("not usable", 5), ("dies always", 5), ("refuses", 3), ("disk full once", 4)]
)
def test_the_exit_code_follows_the_failure(
    tunesmith: Tunesmith, job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch, behaviour: str, code: int
) -> None:
    monkeypatch.setattr("tunesmith.cli.running.run_job", run_with(worker(behaviour)))
    done = tunesmith("job", "resume", job.job_id, "--json")
    assert done.code == code
    result = JobResult.model_validate(done.json)
    assert result.failure is not None
    assert result.state == ("IN_PROGRESS" if behaviour == "disk full once" else "FAILED")
    assert result.failure["message"] in done.err


def run_with(command: Callable[[Path], list[str]]) -> Callable[..., object]:
    """`run_job` as the commands call it, with the scripted worker in place of the trainer."""

    def run(folder: JobFolder, **given: object) -> object:
        return run_job(folder, **given, command=command)  # type: ignore[arg-type]

    return run


def test_a_run_is_told_in_plain_lines_where_there_is_no_terminal(
    tunesmith: Tunesmith, job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.cli.running.run_job", run_with(worker("works")))
    done = tunesmith("job", "resume", job.job_id)
    assert done.code == 0
    for words in ("Training", "step 1 of 4", "0 (base)", "Verdict: improved", "Artifact: ", "Next: tunesmith job show"):
        assert words in done.out
    assert "\x1b" not in done.out


def test_logs_show_the_end_and_hide_no_control_character(tunesmith: Tunesmith, job: JobFolder) -> None:
    job.worker_log.write_bytes(b"first\nsecond \x1b[31m\n")
    assert tunesmith("job", "logs", job.job_id, "--lines", "1").out == "second \\x1b[31m\n"
    assert tunesmith("job", "logs", job.job_id, "--json").json["lines"] == ["first", "second \x1b[31m"]


def test_an_unknown_job_is_a_usage_fault(tunesmith: Tunesmith) -> None:
    done = tunesmith("job", "show", "job-000000000000", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "UNKNOWN_JOB"


def test_a_job_that_nobody_looks_after_is_canceled_at_once(tunesmith: Tunesmith, job: JobFolder) -> None:
    done = tunesmith("job", "cancel", job.job_id, "--json")
    assert done.code == 0 and done.json["state"] == "CANCELED"
    assert tunesmith("job", "cancel", job.job_id).out == f"{job.job_id} is CANCELED.\n"
    again = tunesmith("job", "resume", job.job_id, "--json")
    assert again.code == 5 and again.json["state"] == "CANCELED"


def test_a_finished_job_can_be_neither_canceled_nor_paused(
    tunesmith: Tunesmith, job: JobFolder, worker: Worker
) -> None:
    finish(job, worker("works"))
    for command in ("cancel", "pause"):
        done = tunesmith("job", command, job.job_id, "--json")
        assert done.code == 3 and "SUCCEEDED" in done.json["error"]["message"]


def test_a_job_that_waits_is_paused_and_goes_on_when_resumed(
    tunesmith: Tunesmith, job: JobFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(job, worker("disk full once"))
    done = tunesmith("job", "pause", job.job_id, "--json")
    assert done.code == 0 and done.json["is_paused"] is True
    assert tunesmith("job", "pause", job.job_id).out == f"{job.job_id} is paused.\n"
    monkeypatch.setattr("tunesmith.cli.running.run_job", run_with(worker("disk full once")))
    assert tunesmith("job", "resume", job.job_id, "--json").json["state"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("command", "ends_as", "phase"), [("cancel", "CANCELED", None), ("pause", "IN_PROGRESS", "waiting")]
)
def test_a_wish_reaches_the_process_that_looks_after_the_job(
    tunesmith: Tunesmith, job: JobFolder, worker: Worker, command: str, ends_as: str, phase: str | None
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    told = tunesmith("job", command, job.job_id, "--json").json
    assert (told["state"], told["phase"], told["worker_pid"]) == (ends_as, phase, None)
    assert supervisor.wait(timeout=20) == 0


@pytest.mark.parametrize("command", ["cancel", "pause"])
def test_a_worker_that_nobody_looks_after_any_more_is_stopped(
    tunesmith: Tunesmith, job: JobFolder, worker: Worker, command: str
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    supervisor.kill()
    supervisor.wait()
    told = tunesmith("job", command, job.job_id, "--json").json
    assert (told["state"], told["worker_pid"]) == ("CANCELED" if command == "cancel" else "IN_PROGRESS", None)


def test_a_job_that_was_not_prepared_yet_is_shown_as_it_was_asked_for(tunesmith: Tunesmith, job: JobFolder) -> None:
    shutil.rmtree(job.path)
    told = tunesmith("job", "show", job.job_id, "--json").json
    assert told["settings"]["lora_rank"] == 32 and told["rows"] is None
    assert "base      tiny" in tunesmith("job", "show", job.job_id).out


def test_a_lost_lease_is_told_in_plain_words(
    tunesmith: Tunesmith, job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise LeaseLost(job.job_id)

    monkeypatch.setattr("tunesmith.cli.running.run_job", lost)
    done = tunesmith("job", "resume", job.job_id, "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "LEASE_LOST") and job.job_id in done.json["error"]["message"]
