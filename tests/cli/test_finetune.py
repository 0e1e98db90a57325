"""`finetune` and `plan` with the scripted worker and a scripted inspection: what the user writes reaches the job.

`test_whole_way.py` runs the same commands with the real workers.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import sqlalchemy as sa

from tests.cli.conftest import Done
from tests.cli.test_job import run_with
from tests.jobs.conftest import model_facts, preparation
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import new_job_id
from tunesmith.jobs.state import State
from tunesmith.jobs.store import NewJob
from tunesmith.spec.catalog import Lineage
from tunesmith.spec.datasets import InspectRequest, InspectResponse
from tunesmith.spec.jobs import JobFile, JobResult
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.tables import MODEL_VERSIONS

pytestmark = pytest.mark.slow  # each starts a process

Tunesmith = Callable[..., Done]
Worker = Callable[[str], Callable[[Path], list[str]]]


class ScriptedInspection:
    """Answers at once, as the inspect worker would, with what the settings say."""

    asked: list[InspectRequest] = []  # noqa: RUF012 - what was asked, for the test to see

    def __init__(self, request: InspectRequest, **_: object) -> None:
        self.request = request
        ScriptedInspection.asked.append(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answer(self) -> InspectResponse:
        settings = self.request.settings
        assert settings is not None
        found = preparation()
        length = found.longest_row if settings.sequence_length == "auto" else settings.sequence_length
        render = "chat" if settings.render == "auto" else settings.render
        found = found.model_copy(update={"sequence_length": length, "render": render})
        return InspectResponse(facts=model_facts(self.request.model_path), preparation=found)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": f"{n}!"}) + "\n" for n in range(20)))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    return folder


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
    ScriptedInspection.asked.clear()
    monkeypatch.setattr("tunesmith.jobs.finetune.Inspection", ScriptedInspection)
    monkeypatch.setattr("tunesmith.cli.running.run_job", run_with(worker("works")))
    monkeypatch.setattr("tunesmith.cli.finetune.Standby.start", lambda *_, **__: None)  # the scripted worker is started
    monkeypatch.setattr("tunesmith.plan.speed._matrix_product_rate", lambda *_: 1e10)  # a fifth of a second to measure


def job_file(home: Home, done: Done) -> JobFile:
    return JobFile.model_validate_json((home.jobs / done.json["job_id"] / "job.json").read_bytes())


# option -> (what is written, what the job's settings then hold)
SETTINGS: dict[str, tuple[str, Any]] = {
    "validation_fraction": ("0.25", 0.25),
    "epochs": ("7", 7),
    "learning_rate": ("1e-3", 1e-3),
    "learning_rate_schedule": ("linear", "linear"),
    "weight_decay": ("0.1", 0.1),
    "max_gradient_norm": ("0.5", 0.5),
    "lora_rank": ("8", 8),
    "lora_alpha": ("24", 24.0),
    "lora_dropout": ("0.2", 0.2),
    "target_modules": ("q_proj,v_proj", ("q_proj", "v_proj")),
    "adapter": ("rslora", "rslora"),
    "sequence_length": ("200", 200),
    "too_long": ("cut", "cut"),
    "duplicates": ("drop", "drop"),
    "render": ("plain", "plain"),
    "global_batch_size": ("5", 5),
    "micro_batch_size": ("3", 3),
    "seed": ("9", 9),
    "early_stopping": ("2", 2),
    "checkpointed_layers": ("1", 1),
}
# auto and this machine's own value are all that a CPU has: refusals of the others are tested elsewhere
FIXED_ON_A_CPU = {
    "precision": ("float32", "float32"),
    "base_precision": ("float32", "float32"),
    "strategy": ("single", "single"),
    "path": ("generic", "generic"),
    "compile_layers": ("off", "off"),
}


def test_the_table_of_settings_is_whole() -> None:
    assert SETTINGS.keys() | FIXED_ON_A_CPU.keys() == set(TrainingSettings.model_fields)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("name", [*SETTINGS, *FIXED_ON_A_CPU])
def test_every_setting_reaches_the_job(tunesmith: Tunesmith, home: Home, model: Path, rows: Path, name: str) -> None:
    written, held = (SETTINGS | FIXED_ON_A_CPU)[name]
    done = tunesmith("finetune", str(model), str(rows), "--" + name.replace("_", "-"), written, "--json")
    assert done.code == 0, done.err
    assert getattr(job_file(home, done).settings, name) == held
    if name in SETTINGS:
        assert getattr(TrainingSettings(), name) != held, "the table must not test the default"


@pytest.mark.usefixtures("scripted")
def test_what_is_around_the_settings_reaches_the_job(
    tunesmith: Tunesmith, home: Home, model: Path, rows: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "validation.jsonl"
    renamed.write_text('{"q": "1?", "a": "1!"}\n')
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"q": "2?", "a": "2!"}\n{"q": "3?", "a": "3!"}\n')
    done = tunesmith(
        "finetune", str(model), str(questions), "--validation-dataset", str(renamed), "--test-dataset", str(questions),
        "--columns", "prompt=q,completion=a", "--name", "My job", "--description", "Why.", "--version-set", "mine",
        "--results", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    made = job_file(home, done)
    assert (made.name, made.description, made.model_version) == ("My job", "Why.", "mine:1")
    assert [(data.role, data.path) for data in made.datasets] == [
        ("training", str(questions)),
        ("validation", str(renamed)),
        ("test", str(questions)),
    ]
    assert all(data.columns == {"prompt": "q", "completion": "a"} for data in made.datasets)
    assert made.settings.validation_fraction == 0, "with an own file nothing is split off"
    assert done.json["artifact_uri"] == (tmp_path / "out").as_uri()
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.usefixtures("scripted")
def test_the_result_object_has_the_contracts_keys_on_one_line(
    tunesmith: Tunesmith, home: Home, model: Path, rows: Path
) -> None:
    done = tunesmith("finetune", str(model), str(rows), "--json")
    assert list(done.json) == list(JobResult.model_fields)
    assert done.out.count("\n") == 1, "progress goes to standard error"
    assert "step 1 of 4" in done.err
    assert done.json["model_version"] == "tiny-rows:1"
    assert done.json["artifact_uri"] == (home.results / "tiny-rows" / "1").as_uri()
    assert tunesmith("finetune", str(model), str(rows), "--json").json["model_version"] == "tiny-rows:2"


@pytest.mark.usefixtures("scripted")
def test_a_plan_tells_its_choices_and_starts_nothing(tunesmith: Tunesmith, home: Home, model: Path, rows: Path) -> None:
    done = tunesmith("plan", str(model), str(rows), "--epochs", "2", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert told["steps"] == 2 * told["steps_per_epoch"] and told["settings"]["epochs"] == 2
    assert set(told["reasons"]) >= {"global_batch_size", "micro_batch_size", "sequence_length"}
    assert sum(part["bytes"] for part in told["memory"]) == told["peak_memory_bytes"]
    assert list(home.jobs.iterdir()) == []
    shown = tunesmith("plan", str(model), str(rows)).out
    for words in ("--global-batch-size", "so that the run has", "Memory at the peak", "activations", "Time "):
        assert words in shown


REFUSALS: list[tuple[list[str], int, str]] = [
    (["--validation-fraction", "0.1", "--validation-dataset", "x"], 2, "--validation-fraction"),
    (["--learning-rate", "0"], 2, "--learning-rate"),
    (["--adapter", "dora"], 4, "--adapter dora"),
    (["--base-precision", "nf4"], 4, "--base-precision nf4"),
    (["--strategy", "fsdp2"], 4, "--strategy fsdp2"),
    (["--replicas", "2"], 4, "--replicas 2"),
    (["--network", "n"], 4, "--network"),
    (["--log", "no-such-log"], 2, "'no-such-log'"),
    (["--shape", "big"], 4, "--shape"),
    (["--results", "oci://bucket/x"], 4, "oci://bucket/x"),
    (["--precision", "bf16"], 4, "--precision bf16"),
    (["--validation-dataset", "/no/such/file"], 3, "/no/such/file"),
    (["--test-dataset", "/"], 3, "--test-dataset"),
    (["--columns", "prompt"], 2, "--columns"),
    (["--no-such-option", "x"], 2, "--no-such-option"),
    (["--epochs", "2", "--epochs", "3"], 2, "--epochs is given 2 times"),
    (["--results", "~no-such-user-here/x"], 3, "--results"),
    (["--name", ""], 2, "--name has 0 characters"),
]


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("command", ["finetune", "plan"])
@pytest.mark.parametrize(("options", "code", "words"), REFUSALS)
def test_refusals_name_what_is_at_fault_and_leave_nothing(
    tunesmith: Tunesmith, home: Home, model: Path, rows: Path, command: str, options: list[str], code: int, words: str
) -> None:
    done = tunesmith(command, str(model), str(rows), *options, "--json")
    assert done.code == code, done.err
    assert words in done.json["error"]["message"]
    assert list(home.jobs.iterdir()) == [] and list(home.results.iterdir()) == []


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("name", "code", "error"),
    [
        ("nonsense", 3, "MODEL_NOT_FOUND"),
        ("demo", 3, "MODEL_NOT_FOUND"),
        ("/no/such/model", 3, "MODEL_NOT_FOUND"),
        ("mistralai/Mistral-7B-v0.3", 4, "NOT_BUILT"),
        ("gs://bucket/model", 4, "NOT_BUILT"),
        (__file__, 3, "MODEL_NOT_A_FOLDER"),
    ],
)
def test_models_that_are_not_here_are_refused_without_the_network(
    tunesmith: Tunesmith, rows: Path, name: str, code: int, error: str
) -> None:
    done = tunesmith("finetune", name, str(rows), "--json")
    assert (done.code, done.json["error"]["code"]) == (code, error)
    download = f"`tunesmith model download {name}`"
    assert (download in done.json["error"]["hint"]) == name.startswith("mistralai/")


@pytest.mark.usefixtures("scripted")
def test_empty_arguments_and_near_misses_are_told_what_to_write(tunesmith: Tunesmith, model: Path, rows: Path) -> None:
    for arguments, words in [(("", str(rows)), "MODEL has 0 characters"), ((str(model), ""), "DATASET has 0")]:
        done = tunesmith("plan", *arguments, "--json")
        assert done.code == 2 and words in done.json["error"]["message"]
    done = tunesmith("plan", "Tunesmith/dem0", str(rows), "--json")
    assert done.code == 4 and "Did you mean tunesmith/demo?" in done.json["error"]["hint"]


@pytest.mark.usefixtures("scripted")
def test_results_go_to_a_place_of_their_own(
    tunesmith: Tunesmith, home: Home, model: Path, rows: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    assert tunesmith("finetune", str(model), str(rows), "--results", str(taken)).code == 0
    for place, error in [
        (rows.parent, "RESULTS_TAKEN"),
        (rows, "RESULTS_TAKEN"),
        (model, "RESULTS_TAKEN"),
        (model / "adapter", "RESULTS_TAKEN"),
        (home.jobs / "mine", "RESULTS_TAKEN"),
        (taken, "RESULTS_NOT_EMPTY"),
        (taken / "inside", "RESULTS_IN_ARTIFACT"),
    ]:
        done = tunesmith("finetune", str(model), str(rows), "--results", str(place), "--json")
        assert (done.code, done.json["error"]["code"]) == (3, error), place
    (tmp_path / "file").write_text("x")
    done = tunesmith("finetune", str(model), str(rows), "--results", str(tmp_path / "file" / "out"), "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "RESULTS_NOT_WRITABLE")


@pytest.mark.usefixtures("scripted")
def test_a_place_promised_to_an_unfinished_job_is_taken(
    tunesmith: Tunesmith, model: Path, rows: Path, tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.cli.running.run_job", run_with(worker("disk full once")))
    place = tmp_path / "out"
    assert tunesmith("finetune", str(model), str(rows), "--results", str(place)).code == 4
    done = tunesmith("finetune", str(model), str(rows), "--results", str(place), "--json")
    assert done.json["error"]["code"] == "RESULTS_TAKEN" and "unfinished job" in done.json["error"]["message"]


@pytest.mark.usefixtures("scripted")
def test_a_faulty_row_is_named_with_file_line_and_exit_code(tunesmith: Tunesmith, model: Path, rows: Path) -> None:
    with rows.open("a") as handle:
        handle.write('{"prompt": "x"}\n')
    done = tunesmith("finetune", str(model), str(rows), "--json")
    assert done.code == 3
    assert "rows.jsonl" in done.json["error"]["message"] and "line 21" in done.json["error"]["message"]


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_the_start_leaves_no_job(
    tunesmith: Tunesmith, home: Home, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def interrupted(_: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(ScriptedInspection, "answer", interrupted)
    done = tunesmith("finetune", str(model), str(rows), "--json")
    assert (done.code, done.json["error"]["code"]) == (130, "INTERRUPTED")
    assert list(home.jobs.iterdir()) == []


def test_every_option_of_a_run_is_offered(tunesmith: Tunesmith) -> None:
    shown = tunesmith("finetune", "--help").out
    for name in (TrainingSettings.model_fields | FinetuneRequest.model_fields).keys() - {"model", "dataset"}:
        assert "--" + name.replace("_", "-") in shown
    assert "It is lora, rslora or dora." in " ".join(shown.split()), "values as they must be typed"
    assert "[default: 0.0002]" in shown and "a whole number from 1 to 1000" in shown.replace("\n", " ").lower()


@pytest.mark.usefixtures("scripted")
def test_a_job_of_the_queue_can_be_resumed_here_before_the_queue_prepared_it(
    tunesmith: Tunesmith, state: State, model: Path, rows: Path
) -> None:
    new = NewJob(
        job_id=new_job_id(), request=FinetuneRequest(model=str(model), dataset=str(rows)),
        settings=TrainingSettings(epochs=5), version_set="mine", results_uri=None, results_root=state.home.results,
        base_name="tiny",
    )  # fmt: skip
    state.database.write_grouped(lambda connection: state.jobs.insert(connection, new))
    done = tunesmith("job", "resume", new.job_id, "--json")
    assert (done.code, done.json["model_version"]) == (0, "mine:1"), done.err
    assert job_file(state.home, done).settings.epochs == 5


@pytest.mark.usefixtures("scripted")
def test_what_a_model_version_was_made_from_is_kept_with_it(
    tunesmith: Tunesmith, state: State, model: Path, rows: Path
) -> None:
    assert tunesmith("finetune", str(model), str(rows), "--epochs", "5").code == 0
    with state.database.read() as connection:
        version = connection.execute(sa.select(MODEL_VERSIONS)).one()
    lineage = Lineage.model_validate_json(version.lineage)
    assert (version.state, lineage.base_digest, lineage.settings.epochs) == ("ACTIVE", "0" * 64, 5)
    [dataset] = lineage.datasets
    assert (dataset.role, dataset.rows, dataset.name) == ("training", 20, str(rows))
    assert "torch" in lineage.library_versions


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("breaks", ["tunesmith.jobs.records.fsync_tree", "tunesmith.jobs.records.fsync_folder"])
def test_a_submission_that_breaks_leaves_neither_a_job_nor_a_folder(
    tunesmith: Tunesmith, state: State, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(breaks, full)
        done = tunesmith("finetune", str(model), str(rows), "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "DISK_FULL")
    assert state.jobs.records() == []
    assert list(state.home.jobs.glob("job-*")) == []
    assert tunesmith("finetune", str(model), str(rows), "--json").json["model_version"] == "tiny-rows:1"
