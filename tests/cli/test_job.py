from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.cli.conftest import Done
from tests.jobs.conftest import submit_job
from tests.jobs.test_supervisor import supervise_in_a_process, wait_for
from tests.jobs.test_wishes import insert
from tests.waiting import PATIENCE_SECONDS
from tunesmith.cli.job import NO_SERVER
from tunesmith.cli.report import Reporter
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import LeaseLost
from tunesmith.jobs.supervisor import StopWish, run_job
from tunesmith.jobs.wishes import cancel
from tunesmith.spec.jobs import JobResult
from tunesmith.spec.metrics import AnyEvent
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.storage.tables import JOBS

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


def test_a_job_of_the_queue_says_that_no_server_runs(tunesmith: Tunesmith, state: State) -> None:
    job_id = insert(state)
    [listed] = tunesmith("job", "list", "--json").json["jobs"]
    assert (listed["position"], listed["waiting_reason"]) == (None, NO_SERVER)
    with state.database.write() as connection:
        connection.execute(sa.update(JOBS).values(is_paused=True))
    assert tunesmith("job", "list", "--json").json["jobs"][0]["waiting_reason"] is None
    assert job_id in tunesmith("job", "list").out


def test_a_finished_job_is_shown_whole(tunesmith: Tunesmith, job: JobFolder, worker: Worker) -> None:
    finish(job, worker("dies once"))
    shown = tunesmith("job", "show", job.job_id).out
    for words in ("SUCCEEDED", "0 (base)", "improved", "so it was measured", "killed by SIGKILL", "attempts  2"):
        assert words in shown
    curves = tunesmith("job", "curves", job.job_id, "--json").json
    assert curves["step"] and len(curves["loss"]) == len(curves["step"])
    assert "learning rate" in tunesmith("job", "curves", job.job_id, "--first", "1").out
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


def test_logs_are_searched_and_downloaded_one_or_all_of_a_named_log(
    tunesmith: Tunesmith, state: State, tmp_path: Path
) -> None:
    assert tunesmith("log", "add", "team").code == 0
    request = FinetuneRequest(model="tiny", dataset="rows.jsonl", log="team")
    job = submit_job(state, results=None, request=request)
    job.worker_log.write_text("loading\nAn ERROR of the GPU\nthe end\n")
    assert tunesmith("job", "logs", job.job_id, "--search", "error", "--json").json["lines"] == ["An ERROR of the GPU"]
    assert "No line holds it" in tunesmith("job", "logs", job.job_id, "--search", "nothing").out
    told = tunesmith("log", "search", "team", "error", "--json").json
    assert told == {"log": "team", "lines": [{"job_id": job.job_id, "line": "An ERROR of the GPU"}]}
    one, every = tmp_path / "one.log", tmp_path / "all.log"
    done = tunesmith("job", "logs", job.job_id, "--download", str(one), "--json")
    assert done.json["bytes"] == one.stat().st_size and one.read_text() == job.worker_log.read_text()
    assert tunesmith("log", "download", "team", str(every)).code == 0
    assert every.read_text() == f"==> {job.job_id}\n{one.read_text()}"
    again = tunesmith("log", "download", "team", str(every), "--json")
    assert (again.code, again.json["error"]["code"]) == (3, "FILE_EXISTS")


def test_an_unknown_job_is_a_usage_fault(tunesmith: Tunesmith) -> None:
    done = tunesmith("job", "show", "job-000000000000", "--json")
    assert done.code == 2 and done.json["error"]["code"] == "UNKNOWN_JOB"


def test_a_job_that_nobody_looks_after_is_canceled_at_once(tunesmith: Tunesmith, job: JobFolder) -> None:
    done = tunesmith("job", "cancel", job.job_id, "--json")
    assert done.code == 0 and done.json["state"] == "CANCELED"
    assert tunesmith("job", "cancel", job.job_id).out == f"{job.job_id} is CANCELED.\n"
    again = tunesmith("job", "resume", job.job_id, "--json")
    assert again.code == 5 and again.json["state"] == "CANCELED"


def test_what_is_asked_of_a_job_by_command_stands_in_the_audit(tunesmith: Tunesmith, state: State) -> None:
    job = submit_job(state, results=None, is_foreground=False)
    for verb in ("pause", "cancel"):
        assert tunesmith("job", verb, job.job_id).code == 0
    told = tunesmith("audit", "list", "--json").json["audit"]
    assert [(each["action"], each["actor"]) for each in told if each["object"] == job.job_id] == [
        ("job.cancel", "local"), ("job.pause", "local"),
    ]  # fmt: skip


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
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0


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


@pytest.mark.parametrize(("how", "code", "ends_as"), [("goes on", 0, "SUCCEEDED"), ("is canceled", 5, "CANCELED")])
def test_a_second_resume_follows_the_first_to_its_result_and_exit_code(
    tunesmith: Tunesmith,
    job: JobFolder,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    code: int,
    ends_as: str,
) -> None:
    supervisor = supervise_in_a_process(job, worker("waits")(job.job_file))
    wait_for(job.path / "ready")
    jobs = open_state(Home(root=job.path.parents[1])).jobs
    act = (job.path / "go").touch if how == "goes on" else lambda: cancel(jobs, job.job_id)
    hear = Reporter.event

    def heard(reporter: Reporter, event: AnyEvent) -> None:
        hear(reporter, event)
        if event.kind == "notice" and event.code == "FOLLOWING":
            act()

    monkeypatch.setattr(Reporter, "event", heard)
    done = tunesmith("job", "resume", job.job_id, "--json")
    assert (done.code, JobResult.model_validate(done.json).state) == (code, ends_as)
    assert f"Process {supervisor.pid}" in done.err and "is followed from here" in done.err
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0
