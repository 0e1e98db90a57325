"""Projects and policies by command, and `--project` on the commands that speak of a project's objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import Done
from tests.jobs.conftest import submit_job
from tunesmith.cli.app import COMMANDS, OF_NO_PROJECT, LazyCommands
from tunesmith.jobs.state import State
from tunesmith.spec.requests import FinetuneRequest

pytestmark = pytest.mark.slow  # whole commands over whole servers
Tunesmith = Callable[..., Done]


def test_projects_and_policies_are_made_shown_changed_and_deleted(tunesmith: Tunesmith) -> None:
    made = tunesmith("project", "create", "desk", "--description", "The help desk", "--json")
    assert made.code == 0 and made.json["name"] == "desk"
    shown = tunesmith("project", "edit", "desk", "--description", "Both", "--json")
    assert shown.json["description"] == "Both" and tunesmith("project", "show", "desk", "--json").json == shown.json
    assert [each["name"] for each in tunesmith("project", "list", "--json").json["projects"]] == ["default", "desk"]
    made = tunesmith(
        "policy", "create", "night", "--who", "a, b", "--who", "ada", "--may", "job.*", "--may", "location.add",
        "--in", "desk", "--json",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert made.json["who"] == ["a, b", "ada"] and made.json["projects"] == ["desk"]
    changed = tunesmith("policy", "edit", "night", "--in", "default", "--json").json
    assert changed["projects"] == ["default"] and changed["may"] == ["job.*", "location.add"]
    assert "location.add" in tunesmith("policy", "show", "night").out and "night" in tunesmith("policy", "list").out
    assert tunesmith("policy", "edit", "night").code == 2, "nothing says what to change"
    assert tunesmith("policy", "delete", "night", "--json").json == {"deleted": "night"}
    assert tunesmith("project", "delete", "desk", "--json").json == {"deleted": "desk"}
    assert tunesmith("project", "delete", "default").code == 3


def test_a_name_that_no_token_carries_is_told(tunesmith: Tunesmith) -> None:
    made = tunesmith("policy", "create", "night", "--who", "ada", "--may", "use")
    assert made.code == 0 and "No token is called 'ada' now" in made.out
    tunesmith("token", "create", "ada")
    assert "No token" not in tunesmith("policy", "show", "night").out
    assert "everyday, night" in tunesmith("token", "list").out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--who", "ada", "--may", "job.sumbit"], 2, "job.submit"),
        (["--who", "ada", "--may", "quota.*"], 3, "quota.change"),
        (["--who", "ada", "--may", "token.create"], 3, "role admin"),
        (["--who", "ada", "--may", "use", "--in", "dfault"], 2, "default"),
        (["--who", "role:guest", "--may", "use"], 2, "role:user"),
    ],
)
def test_what_a_policy_cannot_say_is_refused_with_the_way_out(
    tunesmith: Tunesmith, words: list[str], code: int, told: str
) -> None:
    done = tunesmith("policy", "create", "p", *words)
    assert done.code == code and told in done.err, done.err


def test_a_check_says_yes_or_no_and_which_policy(tunesmith: Tunesmith) -> None:
    tunesmith("token", "create", "ada")
    tunesmith("project", "create", "desk")
    yes = tunesmith("policy", "check", "ada", "job.submit")
    assert (yes.code, yes.out.strip()) == (0, "yes: the policy everyday")
    no = tunesmith("policy", "check", "ada", "job.submit", "--project", "desk")
    assert (no.code, no.out.strip()) == (6, "no: no policy lets ada do job.submit in desk")
    told = tunesmith("policy", "check", "ada", "project.read", "--project", "desk", "--json")
    assert told.code == 0
    assert told.json == {
        "who": "ada", "action": "project.read", "project": "desk", "is_allowed": True, "by": ["*", "everyday"],
    }  # fmt: skip
    assert tunesmith("policy", "check", "local", "token.create").out.strip() == "yes: a token of the role admin"
    assert tunesmith("policy", "check", "ada", "job.fly").code == 2
    assert tunesmith("policy", "check", "ada", "job.read", "--project", "absent").code == 2


def test_every_command_but_those_of_the_machine_takes_a_project() -> None:
    for name in COMMANDS:
        command: Any = LazyCommands().get_command(None, name)
        for verb, each in getattr(command, "commands", {name: command}).items():
            options = [option for parameter in each.params for option in parameter.opts]
            assert options.count("--project") == (0 if name in OF_NO_PROJECT else 1), (name, verb)


@pytest.fixture
def desk(tunesmith: Tunesmith, state: State) -> str:
    """A job of the project `desk`, by its id."""
    assert tunesmith("project", "create", "desk").code == 0
    request = FinetuneRequest(model="tiny", dataset="rows.jsonl")
    return submit_job(state, results=None, project="desk", request=request, results_root=state.results("desk")).job_id


def test_jobs_are_those_of_the_chosen_project(tunesmith: Tunesmith, desk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(*words: str) -> list[str]:
        return [each["job_id"] for each in tunesmith("job", "list", "--json", *words).json["jobs"]]

    assert listed() == [] and listed("--project", "desk") == [desk]
    assert listed() == [], "the choice is the command's, not the process's"
    assert listed("--project", "desk", "--search", "tiny") == [desk], "over the client, too"
    for verb in ("show", "logs", "cancel", "pause", "resume"):
        done = tunesmith("job", verb, desk)
        assert done.code == 2 and "UNKNOWN_JOB" in done.err, verb
    assert tunesmith("job", "show", desk, "--project", "desk", "--json").json["record"]["project"] == "desk"
    done = tunesmith("job", "list", "--project", "dsk")
    assert done.code == 2 and "Did you mean desk?" in done.err and "UNKNOWN_PROJECT" in done.err
    monkeypatch.setenv("TUNESMITH_PROJECT", "desk")
    assert listed() == [desk] and listed("--project", "default") == []
    assert tunesmith("job", "cancel", desk).code == 0


def test_versions_and_datasets_are_those_of_the_chosen_project(tunesmith: Tunesmith, desk: str, tmp_path: Any) -> None:
    assert tunesmith("version", "list", "--json").json["versions"] == []
    [version] = tunesmith("version", "list", "--project", "desk", "--json").json["versions"]
    assert version["project"] == "desk"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    dataset = tunesmith("dataset", "upload", str(rows), "--project", "desk", "--json").json["dataset_id"]
    assert tunesmith("dataset", "show", dataset).code == 2
    assert tunesmith("dataset", "show", dataset, "--project", "desk").code == 0


@pytest.mark.slow
def test_a_foreground_run_is_of_the_chosen_project(tunesmith: Tunesmith, state: State, tmp_path: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}", "completion": "{n + 1}"}}\n' for n in range(10)))
    run = ["finetune", "tunesmith/demo", str(rows), "--epochs", "1", "--version-set", "bot", "--json"]
    assert tunesmith(*run, "--project", "desk").code == 2, "there is no such project yet"
    tunesmith("project", "create", "desk")
    done = tunesmith(*run, "--project", "desk")
    assert done.code in (0, 5), done.err
    record = state.jobs.read(done.json["job_id"])
    assert record.project == "desk" and "/results/_desk/bot/" in record.results_uri
    resumed = tunesmith("job", "resume", record.job_id, "--project", "desk", "--json")
    assert resumed.json["artifact_uri"] == done.json["artifact_uri"]
