"""Jobs over REST: submission with its keys, lists, wishes, pages of events, log and ledger."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import ROWS, UPLOAD, URL, add_job, form_of
from tunesmith.catalog.clock import now
from tunesmith.jobs.queue import QueuePlace
from tunesmith.jobs.service import JobService
from tunesmith.jobs.state import State
from tunesmith.server.app import create_app
from tunesmith.server.service import make_service
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import StepEvent


@pytest.fixture
def dataset_id(client: TestClient) -> str:
    return client.post("/api/datasets?name=numbers", content=ROWS, headers=UPLOAD).json()["dataset_id"]


def steps(state: State, job_id: str, number: int) -> None:
    """So many step events, as a worker's supervisor writes them."""
    lease, _ = state.jobs.acquire(job_id, owner="host/1/None")
    events = [
        StepEvent(
            time=now(), step=step, steps=number, epoch=1, loss=2.0, learning_rate=1e-4, gradient_norm=1.0, tokens=10,
            learned_tokens=5, tokens_per_second=9.0, memory_bytes=1, eta_seconds=1.5,
        )
        for step in range(1, number + 1)
    ]  # fmt: skip
    state.jobs.say(lease, *events)
    state.jobs.release(lease)


def test_a_submission_is_accepted_and_durable(client: TestClient, state: State, dataset_id: str) -> None:
    answer = client.post(
        "/api/jobs", json={"model": "tunesmith/demo", "dataset": dataset_id, "epochs": 2, "priority": 5}
    )
    assert answer.status_code == 201
    job = answer.json()
    assert (job["state"], job["model_version"], job["priority"]) == ("ACCEPTED", "demo-numbers:1", 5)
    request, settings = state.jobs.asked(job["job_id"])
    assert (request.dataset, settings.epochs, settings.lora_rank) == (dataset_id, 2, 32)
    assert client.get(f"/api/jobs/{job['job_id']}").json()["job_id"] == job["job_id"]
    assert client.get("/api/versions/demo-numbers:1").json()["version"]["state"] == "CREATING"
    assert client.get("/api/audit?action=job").json()["audit"][0]["object"] == job["job_id"]


def test_the_same_key_gives_the_same_job(client: TestClient, dataset_id: str) -> None:
    body: dict[str, Any] = {"model": "tunesmith/demo", "dataset": dataset_id}
    key = {"Idempotency-Key": "one"}
    first, again = (client.post("/api/jobs", json=body, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["job_id"] == again.json()["job_id"]
    other = client.post("/api/jobs", json={**body, "epochs": 9}, headers=key)
    assert (other.status_code, form_of(other.json())["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert len(client.get("/api/jobs").json()["jobs"]) == 1


def test_a_submission_names_each_faulty_field_with_value_and_limit(client: TestClient) -> None:
    body = {"model": "tunesmith/demo", "dataset": "ds-0", "epochs": 0, "learning_rate": 7, "validation_fraction": "x"}
    form = form_of(client.post("/api/jobs", json=body).json())
    for word in ("epochs is 0", "1", "learning_rate is 7", "validation_fraction is 'x'"):
        assert word in form["message"]


@pytest.mark.parametrize("number", ["1e400", "9" * 5000, "-1e400", "NaN", "Infinity"])
def test_no_number_is_too_large_to_be_refused(client: TestClient, number: str) -> None:
    text = f'{{"model": "tunesmith/demo", "dataset": "ds-0", "learning_rate": {number}}}'
    answer = client.post("/api/jobs", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    form_of(answer.json())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"dataset": "ds-0123456789abcdef"}, 404, "UNKNOWN_DATASET"),
        ({"dataset": "nowhere:rows.jsonl"}, 404, "UNKNOWN_LOCATION"),
        ({"dataset": "/no/such/file.jsonl"}, 422, "DATASET_NOT_FOUND"),
        ({"dataset": "/no/such/file.jsonl", "model": "unknown"}, 404, "UNKNOWN_MODEL"),
        ({"dataset": "ds-0123456789abcdef", "replicas": 4}, 422, "NOT_BUILT"),
        ({"dataset": "ds-0123456789abcdef", "strategy": "zero3"}, 422, "NOT_BUILT"),
    ],
)
def test_what_cannot_run_is_refused_at_submission(
    client: TestClient, body: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/api/jobs", json={"model": "tunesmith/demo", **body})
    assert (answer.status_code, form_of(answer.json())["code"]) == (status, code)
    assert client.get("/api/jobs").json()["jobs"] == []


def test_a_list_pages_searches_and_filters(client: TestClient, state: State) -> None:
    made = [add_job(state, name=f"run-{number}").job_id for number in range(5)]
    seen: list[str] = []
    page = client.get("/api/jobs?limit=2").json()
    seen += [job["job_id"] for job in page["jobs"]]
    add_job(state, name="meanwhile")  # shifts nothing
    while page["next"]:
        page = client.get("/api/jobs", params={"limit": 2, "after": page["next"]}).json()
        seen += [job["job_id"] for job in page["jobs"]]
    assert seen == made[::-1]
    assert [job["name"] for job in client.get("/api/jobs?search=RUN-3").json()["jobs"]] == ["run-3"]
    assert client.get("/api/jobs?state=SUCCEEDED").json()["jobs"] == []
    assert client.get("/api/jobs?search=%25_").json()["jobs"] == []  # no pattern of the database
    assert client.get("/api/jobs?after=x").status_code == 422


def test_a_running_job_tells_its_progress(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=None)
    steps(state, job_id, 7)
    assert client.get(f"/api/jobs/{job_id}").json()["progress"] == {
        "step": 7, "steps": 7, "loss": 2.0, "eta_seconds": 1.5,
    }  # fmt: skip


def test_wishes_change_the_job_and_stand_in_the_audit(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    assert client.post(f"/api/jobs/{job_id}/pause").json()["is_paused"] is True
    assert client.post(f"/api/jobs/{job_id}/resume").json()["is_paused"] is False
    assert client.post(f"/api/jobs/{job_id}/cancel").json()["state"] == "CANCELED"
    answer = client.post(f"/api/jobs/{job_id}/pause")
    assert answer.status_code == 409
    form_of(answer.json())
    actions = [row["action"] for row in client.get(f"/api/audit?object={job_id}").json()["audit"]]
    assert actions[:3] == ["job.cancel", "job.resume", "job.pause"]


def test_a_job_is_deleted_once_it_has_ended(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    for answer in (client.get(f"/api/jobs/{job_id}/deletion"), client.delete(f"/api/jobs/{job_id}")):
        assert (answer.status_code, form_of(answer.json())["code"]) == (409, "JOB_NOT_FINISHED")
    client.post(f"/api/jobs/{job_id}/cancel")
    folder = state.home.jobs / job_id / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    told = client.get(f"/api/jobs/{job_id}/deletion").json()
    assert told["bytes"] == 1000 and told["model_version"] == "demo-rows:1" and told["goes"] and told["stays"]
    assert folder.is_dir(), "telling deletes nothing"
    assert client.delete(f"/api/jobs/{job_id}").status_code == 204
    assert not folder.exists() and client.get("/api/jobs").json()["jobs"] == []
    for answer in (client.delete(f"/api/jobs/{job_id}"), client.get(f"/api/jobs/{job_id}/detail")):
        assert answer.status_code == 404
    assert client.get("/api/versions/demo-rows:1").json()["version"]["is_job_deleted"] is True
    entry, *_ = client.get(f"/api/audit?object={job_id}").json()["audit"]
    assert entry["action"] == "job.delete"


def test_the_detail_of_a_job_holds_what_was_asked_and_said(client: TestClient, state: State) -> None:
    job_id = add_job(state, name="mine").job_id
    state.jobs.move(job_id, JobState.IN_PROGRESS, lease=None)
    steps(state, job_id, 7)
    detail = client.get(f"/api/jobs/{job_id}/detail").json()
    assert detail["record"] == client.get(f"/api/jobs/{job_id}").json() and detail["record"]["progress"]["step"] == 7
    assert (detail["request"]["name"], detail["settings"]["epochs"], detail["state"]) == ("mine", 3, "IN_PROGRESS")
    assert detail["notices"] == detail["samples"] == [] and detail["folder"].endswith(job_id)


def test_a_clone_is_a_new_job_with_the_changes(client: TestClient, state: State, dataset_id: str) -> None:
    body = {"model": "tunesmith/demo", "dataset": dataset_id, "epochs": 2}
    job_id = client.post("/api/jobs", json=body).json()["job_id"]
    clone = client.post(f"/api/jobs/{job_id}/clone", json={"epochs": 7}).json()
    assert clone["job_id"] != job_id
    assert state.jobs.asked(clone["job_id"])[1].epochs == 7
    assert client.post(f"/api/jobs/{job_id}/clone", json={"epochs": 0}).status_code == 422
    assert client.post(f"/api/jobs/{job_id}/clone", json={"surprise": 0}).status_code == 422


def test_the_result_of_an_unfinished_job_is_a_conflict(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    answer = client.get(f"/api/jobs/{job_id}/result")
    assert (answer.status_code, form_of(answer.json())["code"]) == (409, "JOB_NOT_FINISHED")
    client.post(f"/api/jobs/{job_id}/cancel")
    assert client.get(f"/api/jobs/{job_id}/result").json()["state"] == "CANCELED"


def test_events_page_by_number_and_kind(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    steps(state, job_id, 10)
    page = client.get(f"/api/jobs/{job_id}/events?limit=4").json()
    assert [event["number"] for event in page["events"]] == [1, 2, 3, 4]
    assert page["events"][1]["kind"] == "step" and page["events"][1]["step"] == 1
    page = client.get(f"/api/jobs/{job_id}/events", params={"after": page["next"], "limit": 100}).json()
    assert [event["number"] for event in page["events"]] == list(range(5, 12))
    assert page["next"] is None
    page = client.get(f"/api/jobs/{job_id}/events?kinds=state,epoch").json()
    assert [event["kind"] for event in page["events"]] == ["state"]
    for query in ("limit=0", "limit=99999", "after=-1", "after=1e9", "kinds=A", "after=" + "9" * 400):
        assert client.get(f"/api/jobs/{job_id}/events?{query}").status_code == 422


def test_the_curves_of_a_job_are_thinned(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    assert client.get(f"/api/jobs/{job_id}/curves").json()["step"] == []
    steps(state, job_id, 100)
    found = client.get(f"/api/jobs/{job_id}/curves?points=10&first=5").json()
    assert (found["step"][0], found["step"][-1], found["steps_in_range"]) == (5, 100, 96) and len(found["step"]) <= 10
    assert client.get(f"/api/jobs/{job_id}/curves?points=1").status_code == 422
    assert client.get("/api/jobs/job-000000000000/curves").status_code == 404


def test_the_log_is_cut_searched_and_downloaded(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    assert client.get(f"/api/jobs/{job_id}/log").json()["lines"] == []
    assert client.get(f"/api/jobs/{job_id}/log/download").status_code == 404
    log = state.home.jobs / job_id / "logs" / "worker.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"\xff\x1b[31mred\n")
    assert len(client.get(f"/api/jobs/{job_id}/log?lines=5").json()["lines"]) == 5
    assert client.get(f"/api/jobs/{job_id}/log?search=LINE 42").json()["lines"] == ["line 42"]
    answer = client.get(f"/api/jobs/{job_id}/log/download")
    assert answer.content == log.read_bytes()
    assert answer.headers["Content-Disposition"].startswith("attachment;")


def test_a_named_log_is_searched_and_downloaded_over_all_its_jobs(client: TestClient, state: State) -> None:
    assert client.post("/api/logs", json={"name": "team"}).status_code == 201
    made = [add_job(state, log="team").job_id, add_job(state, log="team").job_id]
    stranger, gone = add_job(state).job_id, add_job(state, log="team").job_id
    for job_id in (*made, stranger):
        log = state.home.jobs / job_id / "logs" / "worker.log"
        log.parent.mkdir(parents=True)
        log.write_bytes(b"".join(b"line %d of %s\n" % (number, job_id.encode()) for number in range(3))[:-1])
    told = client.get("/api/logs/team/lines?lines=4").json()["lines"]
    assert [(each["job_id"], each["line"][:6]) for each in told] == [
        (made[0], "line 2"), (made[1], "line 0"), (made[1], "line 1"), (made[1], "line 2"),
    ]  # fmt: skip
    told = client.get("/api/logs/team/lines?search=LINE 1").json()["lines"]
    assert [each["job_id"] for each in told] == made
    answer = client.get("/api/logs/team/download")
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    assert [line for line in answer.text.splitlines() if line.startswith("==>")] == [f"==> {each}" for each in made]
    assert answer.text.endswith(f"line 2 of {made[1]}\n") and stranger not in answer.text and gone not in answer.text
    assert client.get("/api/logs/none/lines").status_code == client.get("/api/logs/none/download").status_code == 404


def test_a_log_that_became_a_link_is_not_followed(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    log = state.home.jobs / job_id / "logs" / "worker.log"
    log.parent.mkdir(parents=True)
    log.symlink_to(state.home.root / "token")
    assert client.get(f"/api/jobs/{job_id}/log/download").status_code == 404
    assert client.get(f"/api/jobs/{job_id}/log").json()["lines"] == []


def test_the_ledger_pages_by_fate(client: TestClient, state: State) -> None:
    job_id = add_job(state).job_id
    assert client.get(f"/api/jobs/{job_id}/ledger").status_code == 409
    for wish in (JobState.IN_PROGRESS, JobState.SUCCEEDED):
        state.jobs.move(job_id, wish, lease=None)
    ledger = state.home.jobs / job_id / "artifact" / "ledger.jsonl"
    ledger.parent.mkdir(parents=True)
    fates = ["trained", "validation"] * 5
    rows = [{"dataset": "training", "line": line, "fate": fate} for line, fate in enumerate(fates, 1)]
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines: list[int] = []
    after = "0"
    while after is not None:
        page = client.get(f"/api/jobs/{job_id}/ledger", params={"fate": "trained", "limit": 2, "after": after}).json()
        lines += [row["line"] for row in page["rows"]]
        after = page["next"]
    assert lines == [1, 3, 5, 7, 9]
    for wrong in ("1", "99999999"):
        answer = client.get(f"/api/jobs/{job_id}/ledger", params={"after": wrong})
        assert (answer.status_code, form_of(answer.json())["code"]) == (422, "BAD_CURSOR")


def test_the_queue_is_asked_while_no_connection_is_held(state: State, token: str) -> None:
    """Forty threads that each held one and waited for a second once waited for ever."""
    held: list[int] = []

    class Queue:
        def positions(self) -> dict[str, QueuePlace]:
            held.append(state.database._engine.pool.checkedout())
            return {job.job_id: QueuePlace(position=1, reason="the CPU is busy")}

        def wake(self) -> None: ...

    job = add_job(state)
    app = create_app(make_service(state, {}, queue=cast(JobService, Queue())))
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        shown = [client.get("/api/jobs").json()["jobs"][0], client.get(f"/api/jobs/{job.job_id}").json()]
    assert [each["waiting_reason"] for each in shown] == ["the CPU is busy"] * 2
    assert held == [0, 0]
