"""Every noun's verbs over the state of a home, without a server: the shape of their JSON, and harmless text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done
from tests.jobs.conftest import submit_job
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME, TRAINING_ROWS
from tunesmith.cli.connected import complete_job, complete_location, complete_version
from tunesmith.jobs.home import Home
from tunesmith.jobs.inspection import Inspection
from tunesmith.jobs.state import State
from tunesmith.jobs.store import this_process
from tunesmith.spec.api import ShapeView
from tunesmith.spec.catalog import (
    AliasView,
    AuditView,
    BaseModelView,
    Comparison,
    DatasetView,
    LineageGraph,
    LocationView,
    LogView,
    NetworkView,
    TokenView,
    VersionDetail,
    VersionMetrics,
    VersionSetView,
    VersionView,
)
from tunesmith.spec.explorer import ModelCard, ScannedLocation
from tunesmith.spec.jobs import JobState
from tunesmith.spec.quotas import Quotas, QuotaView

Tunesmith = Callable[..., Done]
EVIL = "evil \u202ename"  # a control character is refused as input, a bidirectional one is shown


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNESMITH_URL", "TUNESMITH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:12]))
    return str(path)


@pytest.fixture
def object_of(tunesmith: Tunesmith) -> Callable[..., Any]:
    """The JSON of a command that succeeds, which says the same to a person without an error."""

    def call(*words: str) -> Any:
        done = tunesmith(*words, "--json")
        assert done.code == 0, done.err
        return done.json

    return call


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("dataset", "datasets"), ("version", "versions"), ("version-set", "version_sets"), ("location", "locations"),
        ("log", "logs"), ("network", "networks"),
    ],
)  # fmt: skip
def test_an_empty_list_is_an_object_and_a_sentence(
    tunesmith: Tunesmith, object_of: Callable[..., Any], noun: str, plural: str
) -> None:
    assert object_of(noun, "list") == {plural: []}
    said = tunesmith(noun, "list")
    assert said.code == 0 and said.out.strip().endswith(".")


@pytest.mark.slow  # several commands, half a second each
def test_models(tunesmith: Tunesmith, object_of: Callable[..., Any]) -> None:
    [model] = object_of("model", "list")["models"]
    assert BaseModelView.model_validate(model).name == MODEL_NAME
    [card] = object_of("model", "search", "demo")["models"]
    assert ModelCard.model_validate(card).name == MODEL_NAME
    assert object_of("model", "search", "no such model") == {"models": []}
    narrow = ["--label", "Ready to Fine Tune", "--family", "Qwen3", "--maximum-size", "1B", "--elsewhere"]
    assert [each["name"] for each in object_of("model", "search", *narrow)["models"]] == ["Qwen/Qwen3-0.6B"]
    [small, *_] = object_of("model", "search", "--label", "Supports Quantisation", "--sort", "smallest")["models"]
    assert 0 < small["quantised_bytes"] < small["weight_bytes"]
    assert tunesmith("model", "search", "--minimum-size", "big", "--json").code == 2
    said = tunesmith("model", "show", "openai/gpt-oss-20b")
    assert said.code == 0 and "mixture-of-experts" in said.out and "source of licence" in said.out
    shown = object_of("model", "show", MODEL_NAME)
    assert shown["parameters"] == 3_541_248 and shown["explorer"]["memory"]
    assert object_of("model", "show", str(MODEL_FOLDER))["digest"] == shown["digest"]
    made = object_of("model", "register", "mine", str(MODEL_FOLDER), "--licence-note", "ours")
    assert (made["name"], made["licence_note"]) == ("mine", "ours")
    assert object_of("model", "edit", "mine", "--licence-note", "theirs")["licence_note"] == "theirs"
    assert object_of("model", "delete", "mine") == {"deleted": "mine"}
    assert MODEL_NAME in tunesmith("model", "list").out
    refused = tunesmith("model", "delete", MODEL_NAME, "--json")
    assert refused.code == 3 and set(refused.json["error"]) == {"code", "message", "field", "hint"}


@pytest.mark.slow  # a worker inspects
def test_a_preview_shows_what_is_learned_of_a_dataset_and_of_a_file(
    tunesmith: Tunesmith, object_of: Callable[..., Any], rows: str
) -> None:
    made = object_of("dataset", "upload", rows)["dataset_id"]
    of_dataset = object_of("dataset", "preview", made, "--model", MODEL_NAME)
    of_file = object_of("dataset", "preview", rows, "--model", MODEL_NAME)
    assert of_dataset["previews"] == of_file["previews"]
    assert [row["which"] for row in of_file["previews"]] == ["longest", "shortest", "random", "random"]
    assert [piece["learned"] for piece in of_file["previews"][0]["pieces"]] == [False, True]
    plain = object_of("dataset", "preview", rows, "--model", MODEL_NAME, "--render", "plain")
    assert plain["render"] == "plain" and plain["previews"] != of_file["previews"]
    assert "«" in tunesmith("dataset", "preview", rows, "--model", MODEL_NAME).out, "the learned text, without colour"
    chosen = ("--model", MODEL_NAME, "--lines", "3,1,3", "--spans")
    of_dataset, of_file = (object_of("dataset", "preview", each, *chosen)["previews"] for each in (made, rows))
    assert of_dataset == of_file and [(row["line"], row["which"]) for row in of_file] == [(3, "chosen"), (1, "chosen")]
    for row in of_file:
        assert sum(len(span["ids"]) for span in row["spans"]) == row["tokens"] > 10
        for learned in (True, False):
            parts = [part for part in row["spans"] if part["learned"] is learned]
            assert "".join(part["text"] for part in parts) == next(
                piece["text"] for piece in row["pieces"] if piece["learned"] is learned
            )
    assert "«|«" in tunesmith("dataset", "preview", rows, *chosen).out.replace("»|«", "«|«")
    for given, code, word in (("0", 2, "--lines"), ("99", 3, "nearest")):
        for each in (made, rows):
            refused = tunesmith("dataset", "preview", each, "--model", MODEL_NAME, "--lines", given, "--json")
            error = refused.json["error"]
            assert (refused.code, error["field"]) == (code, "lines") and word in error["message"] + error["hint"]
    refused = tunesmith("dataset", "preview", made, "--model", MODEL_NAME, "--columns", "prompt=q", "--json")
    assert (refused.code, refused.json["error"]["field"]) == (2, "columns")
    assert tunesmith("dataset", "preview", "ds-0000000000000000", "--model", MODEL_NAME).code == 2


@pytest.mark.slow  # several commands, half a second each
def test_datasets(tunesmith: Tunesmith, object_of: Callable[..., Any], rows: str) -> None:
    made = DatasetView.model_validate(object_of("dataset", "upload", rows, "--name", EVIL))
    assert (made.rows, made.name) == (12, EVIL)
    for words in (["dataset", "list"], ["dataset", "show", made.dataset_id]):
        said = tunesmith(*words)
        assert said.code == 0 and "\u202e" not in said.out and "\\u202e" in said.out
    shown = object_of("dataset", "show", made.dataset_id)
    assert shown["report"]["rows"] == 12 and DatasetView.model_validate({k: shown[k] for k in made.as_json()}) == made
    edited = object_of("dataset", "edit", made.dataset_id, "--name", "tickets", "--tag", "team=support")
    assert (edited["name"], edited["tags"]) == ("tickets", {"team": "support"})
    assert len(object_of("dataset", "list", "--search", "tickets", "--limit", "1")["datasets"]) == 1
    assert object_of("dataset", "list", "--tag", "team=other") == {"datasets": []}
    [first, second] = object_of("dataset", "rows", made.dataset_id, "--after", "4", "--limit", "2")["rows"]
    assert (first["line"], second["line"]) == (5, 6)
    said = tunesmith("dataset", "rows", made.dataset_id, "--limit", "1").out
    assert said.startswith("line 1\n  prompt: ") and "line 2" not in said
    assert object_of("dataset", "uses", made.dataset_id) == {"versions": [], "siblings": []}
    assert "Nothing was trained" in tunesmith("dataset", "uses", made.dataset_id).out
    assert object_of("dataset", "delete", made.dataset_id) == {"deleted": made.dataset_id}
    assert tunesmith("dataset", "show", made.dataset_id, "--json").json["error"]["code"] == "UNKNOWN_DATASET"


def test_a_faulty_upload_ends_with_three_and_its_line(tunesmith: Tunesmith, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\nnonsense\n')
    done = tunesmith("dataset", "upload", str(tmp_path / "bad.jsonl"), "--json")
    assert done.code == 3 and done.json["error"]["field"] == "line 2"
    assert tunesmith("dataset", "upload", str(tmp_path / "absent.jsonl"), "--json").code == 3


@pytest.mark.slow  # several commands, half a second each
def test_versions_and_their_sets(tunesmith: Tunesmith, object_of: Callable[..., Any], state: State) -> None:
    for _ in range(2):
        job = submit_job(state, results=None, version_set="bot", is_foreground=False)
        lease, _ = state.jobs.acquire(job.job_id, owner=this_process())
        for each in (JobState.IN_PROGRESS, JobState.SUCCEEDED):
            state.jobs.move(job.job_id, each, lease=lease)
    listed = [VersionView.model_validate(each) for each in object_of("version", "list")["versions"]]
    assert [each.model_version for each in listed] == ["bot:2", "bot:1"]
    assert len(object_of("version", "list", "--set", "bot", "--limit", "1")["versions"]) == 1
    assert "Active" in tunesmith("version", "list").out
    VersionDetail.model_validate(object_of("version", "show", "bot:1"))
    VersionMetrics.model_validate(object_of("version", "metrics", "bot:1"))
    Comparison.model_validate(object_of("version", "compare", "bot:1", "bot:2"))
    LineageGraph.model_validate(object_of("version", "lineage", "bot:1"))
    for words in (["show", "bot:1"], ["metrics", "bot:1"], ["compare", "bot:1", "bot:2"], ["lineage", "bot:2"]):
        assert tunesmith("version", *words).code == 0
    edited = object_of("version", "edit", "bot:1", "--description", "the first", "--tag", "a=b")
    assert VersionView.model_validate(edited).tags == {"a": "b"}
    assert AliasView.model_validate(object_of("version", "alias", "bot@prod", "1")).number == 1
    assert tunesmith("version", "delete", "bot:1").code == 3, "a version with an alias stays"
    [bot] = object_of("version-set", "list")["version_sets"]
    assert VersionSetView.model_validate(bot).aliases[0].alias == "prod"
    assert object_of("version-set", "show", "bot") == bot
    assert "prod" in tunesmith("version-set", "show", "bot").out
    assert object_of("version-set", "edit", "bot", "--description", "answers")["description"] == "answers"
    assert object_of("version", "alias", "bot@prod", "--delete") == {"deleted": "bot@prod"}


@pytest.mark.parametrize(
    "words",
    [
        ["version", "alias", "bot", "1"],
        ["version", "alias", "bot@prod"],
        ["version", "alias", "bot@prod", "1", "--delete"],
        ["version", "edit", "bot:1"],
        ["version", "edit", "bot:1", "--tag", "x"],
        ["version", "show", "bot:99"],
        ["version", "lineage", "bot:99"],
        ["version", "answers", "tunesmith/demo"],
        ["version", "answers", "tunesmith/demo", "tunesmith/demo", "--prompt", "x"],
        ["version", "answers", "nothing", "--prompt", "x"],
        ["network", "add", "rack", "no network"],
        ["network", "add", "Upper", "10.0.0.0/24"],
        ["log", "add", "l", "--retention-days", "0"],
        ["location", "show", "absent"],
        ["token", "create", "x", "--days", "0"],
        ["token", "create", "x", "--role", "root"],
        ["job", "clone", "job-000000000000", "--set", "epochs"],
    ],
)
def test_what_is_wrong_in_a_command_ends_with_two(tunesmith: Tunesmith, words: list[str]) -> None:
    done = tunesmith(*words, "--json")
    assert done.code == 2, done.err
    assert set(done.json["error"]) == {"code", "message", "field", "hint"}


@pytest.mark.slow  # several commands, half a second each
def test_locations(tunesmith: Tunesmith, object_of: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    (folder / "data").mkdir(parents=True)
    made = LocationView.model_validate(object_of("location", "add", "team", folder.as_uri()))
    assert object_of("location", "list") == {"locations": [made.as_json()]}
    assert object_of("location", "show", "team") == made.as_json()
    assert object_of("location", "edit", "team", "--description", "kept", "--region", "eu-1")["region"] == "eu-1"
    assert object_of("location", "edit", "team", "--region", "") == made.as_json() | {"description": "kept"}
    assert tunesmith("location", "edit", "team").code == 2, "nothing to change"
    assert tunesmith("location", "edit", "team", "--endpoint-url", "ftp://x", "--uri", "s3://b").code == 3
    assert isinstance(object_of("location", "check", "team"), dict)
    browsed = object_of("location", "browse", "team")
    assert set(browsed) == {"location", "path", "entries"} and "data" in str(browsed["entries"])
    shutil.copytree(MODEL_FOLDER, folder / "llms" / "ours")
    found = ScannedLocation.model_validate(object_of("location", "scan", "team"))
    assert [(each.path, each.model_type) for each in found.models] == [("llms/ours", "llama")] and not found.is_cut
    told = tunesmith("location", "scan", "team")
    assert told.code == 0 and "Ready to Fine Tune" in told.out + told.err
    assert "tunesmith model register NAME team:PATH" in told.out + told.err
    assert object_of("location", "uses", "team") == {
        "location": "team",
        "datasets": [],
        "jobs": [],
        "of_other_projects": 0,
    }
    for verb in ("check", "browse", "show"):
        assert tunesmith("location", verb, "team").code == 0
    assert object_of("location", "delete", "team") == {"deleted": "team"}


@pytest.mark.slow  # several commands, half a second each
def test_logs_and_networks(object_of: Callable[..., Any]) -> None:
    log = LogView.model_validate(object_of("log", "add", "long", "--retention-days", "400"))
    assert log.retention_days == 400
    assert object_of("log", "edit", "long", "--description", "kept")["description"] == "kept"
    assert object_of("log", "show", "long")["name"] == "long"
    assert [each["name"] for each in object_of("log", "list")["logs"]] == ["long"]
    assert object_of("log", "uses", "long") == {"log": "long", "datasets": [], "jobs": [], "of_other_projects": 0}
    assert object_of("log", "delete", "long") == {"deleted": "long"}
    network = NetworkView.model_validate(object_of("network", "add", "rack", "10.0.0.0/24", "--interface", "eth0"))
    assert object_of("network", "show", "rack") == network.as_json()
    assert object_of("network", "list") == {"networks": [network.as_json()]}
    changed = object_of("network", "edit", "rack", "--cidr", "10.0.1.0/24", "--interface", "")
    assert (changed["cidr"], changed["interface"]) == ("10.0.1.0/24", None)
    assert object_of("network", "uses", "rack") == {
        "network": "rack",
        "datasets": [],
        "jobs": [],
        "of_other_projects": 0,
    }
    assert object_of("network", "delete", "rack") == {"deleted": "rack"}


@pytest.mark.slow  # several commands, half a second each
def test_lists_are_searched_and_filtered(object_of: Callable[..., Any], state: State) -> None:
    for name in ("alpha", "beta"):
        object_of("log", "add", name)
        object_of("network", "add", name, "10.0.0.0/24")
        object_of("location", "add", name, f"s3://{name}-bucket")
        submit_job(state, results=None, version_set=name)
    kept, ended = (each.job_id for each in state.jobs.records())
    state.jobs.move(ended, JobState.CANCELED, lease=None)
    names = {"log": "logs", "network": "networks", "location": "locations", "version-set": "version_sets"}
    for noun, plural in names.items():
        assert [each["name"] for each in object_of(noun, "list", "--search", "ALPH")[plural]] == ["alpha"]
    for words, expected in (
        (["--state", "CANCELED"], [ended]), (["--state", "ACCEPTED"], [kept]), (["--search", "beta"], [kept]),
        (["--search", "beta", "--state", "CANCELED"], []), (["--state", "SUCCEEDED"], []),
    ):  # fmt: skip
        assert [each["job_id"] for each in object_of("job", "list", *words)["jobs"]] == expected, words
    audit = object_of("audit", "list", "--action", "log", "--object", "beta")["audit"]
    assert [(each["action"], each["object"]) for each in audit] == [("log.add", "beta")]
    assert object_of("audit", "list", "--actor", "nobody")["audit"] == []


@pytest.mark.slow  # several commands, half a second each
def test_shapes(tunesmith: Tunesmith, object_of: Callable[..., Any]) -> None:
    [local] = object_of("shape", "list")["shapes"]
    shown = ShapeView.model_validate(object_of("shape", "show", "local"))
    assert shown.name == local["name"] == "local" and shown.devices
    said = tunesmith("shape", "show")
    assert said.code == 0 and shown.devices[0].name in said.out
    refused = tunesmith("shape", "show", "BM.GPU.H100.8", "--json")
    assert refused.code == 2 and "local" in refused.json["error"]["hint"]


@pytest.mark.slow  # several commands, half a second each
def test_quotas(tunesmith: Tunesmith, object_of: Callable[..., Any]) -> None:
    assert QuotaView.model_validate(object_of("quota", "show")).limits == Quotas()
    assert object_of("quota", "edit", "--queued-jobs", "7")["own"] == ["queued_jobs"]
    assert tunesmith("quota", "show", "team / a").code == 2, "nobody is called so"
    object_of("token", "create", "team / a")
    own = QuotaView.model_validate(object_of("quota", "edit", "team / a", "--versions", "3", "--log-bytes", "100000"))
    assert (own.limits.queued_jobs, own.limits.versions, own.own) == (7, 3, ["log_bytes", "versions"])
    assert [each["principal"] for each in object_of("quota", "list")["quotas"]] == ["*", "team / a"]
    assert object_of("quota", "reset", "team / a")["own"] == []
    assert object_of("quota", "reset")["limits"] == Quotas().as_json()
    refused = tunesmith("quota", "edit", "--datasets=-1", "--json")
    assert refused.code == 2 and json.loads(refused.out.splitlines()[-1])["error"]["field"] == "datasets"
    assert tunesmith("quota", "edit").code == 2


@pytest.mark.slow  # several commands, half a second each
def test_tokens_and_the_audit(tunesmith: Tunesmith, object_of: Callable[..., Any]) -> None:
    made = object_of("token", "create", "colleague", "--days", "3")
    assert len(made["token"]) > 30
    listed = [TokenView.model_validate(each) for each in object_of("token", "list")["tokens"]]
    [token] = [each for each in listed if each.name == "colleague"]
    assert made["token"] not in tunesmith("token", "list").out
    assert object_of("token", "revoke", token.token_id) == {"revoked": token.token_id}
    entries = [AuditView.model_validate(each) for each in object_of("audit", "list")["audit"]]
    assert entries[0].action == "token.revoke"
    assert made["role"] == "user"
    assert object_of("token", "create", "second", "--role", "admin")["role"] == "admin"
    said = tunesmith("token", "create", "another")
    assert "TUNESMITH_TOKEN" in said.out and len(said.out.splitlines()[-1]) > 30


@pytest.mark.slow  # several commands, half a second each
def test_the_system_without_a_server(tunesmith: Tunesmith, object_of: Callable[..., Any]) -> None:
    assert object_of("system", "show")["server"] is None
    assert "none" in tunesmith("system", "show").out
    [public] = [p for p in object_of("system", "permissions")["permissions"] if p["permission"] == "public"]
    assert public["who"] == ["anybody"]
    assert "version.delete" in tunesmith("system", "permissions").out


def test_without_a_server_a_submission_is_refused_with_the_way_out(tunesmith: Tunesmith, rows: str) -> None:
    done = tunesmith("job", "submit", MODEL_NAME, rows, "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "SERVER_NEEDED")
    assert "tunesmith serve" in done.json["error"]["hint"]


def test_a_server_that_is_not_there_is_told(tunesmith: Tunesmith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tunesmith.client.synchronous.wire.sleep", lambda seconds: None)
    done = tunesmith("job", "list", "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "SERVER_UNREACHABLE")


# ---- the completion of ids


def test_ids_are_completed(state: State, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(home.root))
    job = submit_job(state, results=None, version_set="bot", is_foreground=False)
    assert complete_job("job-") == [job.job_id]
    assert complete_version("bot") == ["bot:1"] and complete_version("x") == []


def test_a_completion_makes_nothing_and_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "absent"))
    assert complete_job("") == [] and not (tmp_path / "absent").exists()
    monkeypatch.setenv("TUNESMITH_URL", "no address")
    assert complete_location("") == []


@pytest.mark.slow
def test_a_shell_completes_ids(state: State, home: Home) -> None:
    job = submit_job(state, results=None, is_foreground=False)
    done = subprocess.run(
        [sys.executable, "-c", "from tunesmith.cli import main; main()"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TUNESMITH_HOME": str(home.root), "_TUNESMITH_COMPLETE": "complete_bash",
             "COMP_WORDS": "tunesmith job show job-", "COMP_CWORD": "3"},
    )  # fmt: skip
    assert done.stderr == "" and job.job_id in done.stdout


def test_a_split_of_equal_rows_is_refused_before_tokens_are_counted(
    tunesmith: Tunesmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_self: Inspection) -> None:
        raise AssertionError("the inspect worker was waited for")

    monkeypatch.setattr(Inspection, "answer", never)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    refused = tunesmith("plan", MODEL_NAME, str(path), "--json")
    assert (refused.code, refused.json["error"]["code"]) == (3, "SPLIT_NEEDS_TWO")
    assert "3 rows, all equal" in refused.json["error"]["message"]
