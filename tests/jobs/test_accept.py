from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tunesmith.bundled import MODEL_NAME
from tunesmith.catalog.logs import add_log
from tunesmith.errors import Conflict, InputRefused, MachineCannot, Unknown, UsageFault
from tunesmith.jobs import accept
from tunesmith.jobs.accept import Submission, check_submission, cloned, submission_notices, submit
from tunesmith.jobs.home import open_home
from tunesmith.jobs.results_check import ResultsChecks
from tunesmith.jobs.settings import read_flat
from tunesmith.jobs.state import State, open_state
from tunesmith.spec.catalog import NewLog
from tunesmith.spec.jobs import JobRecord, JobState


@pytest.fixture
def state(tmp_path: Path) -> State:
    return open_state(open_home({"TUNESMITH_HOME": str(tmp_path / "home")}))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


def submission(rows: Path, *, priority: int = 0, **values: Any) -> Submission:
    request, settings = read_flat({"model": MODEL_NAME, "dataset": str(rows), **values})
    return Submission(request=request, settings=settings, priority=priority, submitted_by="ada")


def send(state: State, wish: Submission, *, key: str | None = None) -> tuple[JobRecord, bool]:
    new = check_submission(wish, state=state, results_checks=ResultsChecks({}))
    return state.database.write_grouped(lambda connection: submit(connection, wish, new, state=state, key=key))


def test_a_submission_is_accepted_with_its_version_number_and_everything_that_was_asked(
    state: State, rows: Path
) -> None:
    record, is_new = send(state, submission(rows, epochs=7, target_modules=["q_proj"], priority=3))
    assert is_new and record.state is JobState.ACCEPTED and not record.is_foreground
    assert (record.model_version, record.submitted_by, record.priority) == ("demo-rows:1", "ada", 3)
    assert Path(record.results_uri.removeprefix("file://")) == state.home.results / "demo-rows" / "1"
    request, settings = state.jobs.asked(record.job_id)
    assert request.dataset == str(rows) and settings.epochs == 7 and settings.target_modules == ("q_proj",)


def test_the_same_key_and_wish_make_one_job_and_another_wish_is_refused(state: State, rows: Path) -> None:
    first, _ = send(state, submission(rows), key="k1")
    again, is_new = send(state, submission(rows), key="k1")
    assert again.job_id == first.job_id and not is_new
    assert send(state, submission(rows), key="k2")[0].job_id != first.job_id
    with pytest.raises(Conflict) as refusal:
        send(state, submission(rows, epochs=9), key="k1")
    assert refusal.value.code == "IDEMPOTENCY_KEY_REUSED"
    with pytest.raises(Conflict):
        send(state, submission(rows, priority=1), key="k1")
    assert len(state.jobs.records()) == 2


def test_equal_submissions_at_the_same_moment_with_one_key_make_one_job(state: State, rows: Path) -> None:
    wish = submission(rows)
    answers: list[tuple[JobRecord, bool]] = []
    threads = [threading.Thread(target=lambda: answers.append(send(state, wish, key="k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record.job_id for record, _ in answers}) == 1
    assert sorted(is_new for _, is_new in answers) == [False] * 7 + [True]


def test_what_can_be_seen_at_a_look_is_refused_before_anything_is_written(state: State, rows: Path) -> None:
    with pytest.raises(InputRefused) as dataset:
        send(state, submission(rows.with_name("none.jsonl")))
    assert dataset.value.code == "DATASET_NOT_FOUND"
    with pytest.raises(InputRefused) as model:
        send(state, submission(rows, model="nothing-like-it"))
    assert model.value.code == "MODEL_NOT_FOUND"
    for wish in ({"replicas": 2}, {"network": "n"}, {"strategy": "fsdp2"}, {"shape": "gpu-4"}, {"adapter": "dora"}):
        with pytest.raises(MachineCannot) as not_built:
            send(state, submission(rows, **wish))
        assert not_built.value.code == "NOT_BUILT" and not_built.value.field in wish
    assert state.jobs.records() == []


def test_a_place_that_cannot_take_the_results_is_refused_before_anything_is_written(
    state: State, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, _ = send(state, submission(rows, results=str(out)))
    for text, code in (
        (str(out), "RESULTS_TAKEN"), (str(out / "below"), "RESULTS_TAKEN"), (str(rows), "RESULTS_NOT_FOLDER"),
        (str(tmp_path), "RESULTS_NOT_EMPTY"),
    ):  # fmt: skip
        with pytest.raises(InputRefused) as refusal:
            send(state, submission(rows, results=text))
        assert (refusal.value.code, refusal.value.field) == (code, "results")
        assert code != "RESULTS_TAKEN" or first.job_id in refusal.value.message
    assert [record.job_id for record in state.jobs.records()] == [first.job_id]
    send(state, submission(rows, results=str(tmp_path / "out2")))  # a name that begins alike is another place


def test_faulty_fields_are_named_all_together(rows: Path) -> None:
    with pytest.raises(UsageFault) as fault:
        submission(rows, epochs=0, lora_rank="many", colour="red")
    assert all(word in fault.value.message for word in ("--epochs", "--lora-rank", "--colour is unknown"))


def test_a_clone_asks_for_the_same_but_what_was_changed(state: State, rows: Path) -> None:
    first, _ = send(state, submission(rows, epochs=7, name="mine", priority=4))
    wish = cloned(first.job_id, state=state, overrides={"epochs": 2, "description": "shorter"}, submitted_by="bob")
    second, _ = send(state, wish)
    assert second.job_id != first.job_id and second.model_version == "demo-rows:2"
    assert (second.submitted_by, second.priority, second.name) == ("bob", 4, "mine")
    request, settings = state.jobs.asked(second.job_id)
    assert (settings.epochs, request.description, request.dataset) == (2, "shorter", str(rows))
    with pytest.raises(UsageFault):
        cloned(first.job_id, state=state, overrides={"epochs": 0}, submitted_by="bob")
    with pytest.raises(Unknown):
        cloned("job-0", state=state, overrides={}, submitted_by="bob")


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_a_preparation_that_the_system_killed_is_tried_three_times(kills: int) -> None:
    killed = [MachineCannot("OUT_OF_MEMORY", "killed") for _ in range(kills)]

    def prepare() -> Any:
        if killed:
            raise killed.pop()
        return "prepared"

    if kills < 3:
        assert accept._in_attempts(prepare, is_unwanted=lambda: False) == "prepared"
    else:
        with pytest.raises(MachineCannot):
            accept._in_attempts(prepare, is_unwanted=lambda: False)
    assert killed == []


def test_a_named_log_has_to_be_there_and_stands_in_the_record(state: State, rows: Path) -> None:
    with pytest.raises(Unknown) as refusal:
        send(state, submission(rows, log="team"))
    assert refusal.value.code == "UNKNOWN_LOG" and state.jobs.records() == []
    with state.database.write() as connection:
        add_log(connection, NewLog(name="team"), actor="ada")
    record, _ = send(state, submission(rows, log="team"))
    assert record.log == "team"
    assert submission_notices(submission(rows, log="team").request) == []


def test_a_log_of_ones_own_is_recommended_where_none_was_chosen(rows: Path) -> None:
    [notice] = submission_notices(submission(rows).request)
    assert notice.code == "LOG_RECOMMENDED" and "recommended" in (notice.hint or "")
