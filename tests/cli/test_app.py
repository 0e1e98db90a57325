from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.cli.conftest import Done
from tunesmith import __version__
from tunesmith.cli import app as edge
from tunesmith.cli.app import _command_of
from tunesmith.errors import FAMILIES
from tunesmith.jobs.home import Home

Tunesmith = Callable[..., Done]
LONG = "0" * 300


def test_help_is_quick_and_imports_no_worker() -> None:
    """0.3 s of processor time, which on an idle machine is the time that passes; company must not decide."""
    probe = (
        "import sys; from tunesmith.cli.app import run; run(['--help']); "
        "assert not {'torch', 'transformers', 'pydantic', 'rich', 'numpy'} & set(sys.modules); "
        "import time; print(time.process_time())"
    )
    done = [subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True) for _ in range(3)]
    assert all(name in done[0].stdout for name in edge.COMMANDS)
    assert min(float(each.stdout.splitlines()[-1]) for each in done) < 0.3


def test_the_version_is_told(tunesmith: Tunesmith) -> None:
    done = tunesmith("--version")
    assert (done.code, done.out) == (0, f"tunesmith {__version__}\n")


def test_every_family_of_errors_has_its_exit_code() -> None:
    assert set(edge.EXIT_CODES) == set(FAMILIES.values())
    assert set(edge.EXIT_CODES.values()) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["job", "lst"], "Did you mean 'list'?"),
        (["job", "list", "--wrong"], "--wrong"),
        (["job", "show"], "JOB"),
        (["job", "logs", "job-000000000000", "--lines", "0"], "--lines"),
        (["dataset", "check"], "FILE"),
    ],
)
def test_faulty_usage_comes_in_our_form(tunesmith: Tunesmith, arguments: list[str], words: str) -> None:
    done = tunesmith(*arguments)
    assert done.code == 2 and words in done.err and done.out == ""
    done = tunesmith(*arguments, "--json")
    assert done.code == 2
    error = done.json["error"]
    assert set(error) == {"code", "message", "field", "hint"}
    assert error["code"] == "USAGE" and words in error["message"]


def test_a_command_group_alone_shows_its_help(tunesmith: Tunesmith) -> None:
    done = tunesmith("job")
    assert done.code == 2 and "resume" in done.err


def test_an_unexpected_exception_is_a_fault_of_ours_with_its_log(
    tunesmith: Tunesmith, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("something unforeseen \x1b[31m")

    monkeypatch.setattr("tunesmith.jobs.store.JobStore.records", broken)
    done = tunesmith("job", "list", "--json")
    assert done.code == 1
    assert done.json["error"]["code"] == "INTERNAL"
    assert "\x1b" not in done.err
    [log] = home.logs.glob("fault-*.log")
    assert "something unforeseen" in log.read_text() and "Traceback" in log.read_text()
    assert str(log) in done.json["error"]["hint"]


def test_a_full_disk_is_no_fault_of_ours(tunesmith: Tunesmith, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    monkeypatch.setattr("tunesmith.jobs.store.JobStore.records", full)
    done = tunesmith("job", "list", "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "DISK_FULL")
    assert "/some/file" in done.json["error"]["message"]


def test_a_reader_that_goes_away_ends_nothing_badly(home: Home) -> None:
    script = f"{sys.executable} -m tunesmith doctor | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TUNESMITH_HOME": str(home.root)},
    )
    assert done.stdout.strip() == "0" and done.stderr == ""


def test_an_unwritable_home_is_refused_with_the_way_out(
    tunesmith: Tunesmith, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.root / "file").write_text("x")
    monkeypatch.setenv("TUNESMITH_HOME", str(home.root / "file"))
    done = tunesmith("job", "list", "--json")
    assert done.code == 4 and done.json["error"]["code"] == "HOME_NOT_WRITABLE"


@pytest.mark.slow
def test_a_shell_can_complete_commands_and_options(home: Home) -> None:
    def completions(line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from tunesmith.cli import main; main()"],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "TUNESMITH_HOME": str(home.root),
                "_TUNESMITH_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split()) - 1),
            },
        )
        assert done.stderr == ""
        return done.stdout

    assert "finetune" in completions("tunesmith fin")
    assert "--learning-rate" in completions("tunesmith finetune --lear")


def test_a_missing_value_points_to_the_help_of_its_own_command(tunesmith: Tunesmith) -> None:
    assert "See `tunesmith plan --help`." in tunesmith("plan", "m", "d", "--epochs").err


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", LONG, "rows.jsonl"), ("plan", "tunesmith/demo", LONG), ("model", "show", LONG),
        ("model", "register", "x", LONG), ("bench", LONG), ("dataset", "check", LONG),
        ("version", "export", "a:1", LONG), ("state", "backup", LONG),
    ],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_refused_in_words(tunesmith: Tunesmith, words: tuple[str, ...]) -> None:
    done = tunesmith(*words)
    assert done.code == 3 and "BAD_LOCATION" in done.err and "too long" in done.err and len(done.err) < 400


def test_a_fault_that_the_server_found_points_to_the_help_of_its_command(tunesmith: Tunesmith) -> None:
    done = tunesmith("version", "list", "--search", "x" * 300, "--json")
    assert done.code == 2 and done.json["error"]["hint"] == "See `tunesmith version list --help`."


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["job", "clone", "job-1", "--set", "x=1"], "tunesmith job clone"), (["chat", "list"], "tunesmith chat"),
        (["job"], "tunesmith job"), (["no-such"], "tunesmith"), ([], "tunesmith"),
    ],
)  # fmt: skip
def test_a_command_is_named_without_its_arguments(words: list[str], named: str) -> None:
    assert _command_of(words) == named
