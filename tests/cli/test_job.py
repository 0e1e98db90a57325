from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import open_state
from tunesmith.jobs.supervisor import StopWish, run_job
from tunesmith.spec.jobs import JobResult

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
