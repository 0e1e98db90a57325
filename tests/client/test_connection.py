from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.client.connection import find_endpoint, running_server
from tunesmith.errors import UsageFault
from tunesmith.jobs.launcher import process_started_at

URL = "http://127.0.0.1:8440"


def serving(home: Path, *, pid: int | None = None, earlier_seconds: float = 0.0) -> dict[str, str]:
    """An environment whose home has a server, as far as its files tell."""
    home.mkdir(exist_ok=True)
    began = process_started_at(os.getpid())
    assert began is not None
    told = {"url": URL, "pid": pid or os.getpid(), "process_started_at": began - earlier_seconds}
    (home / "server.json").write_text(json.dumps(told))
    (home / "token").write_text("home-token\n")
    return {"TUNESMITH_HOME": str(home)}


def test_what_the_caller_gives_comes_first(tmp_path: Path) -> None:
    environment = serving(tmp_path) | {"TUNESMITH_URL": "http://other:1", "TUNESMITH_TOKEN": "theirs"}
    found = find_endpoint("https://mine.example/", "mine", environment=environment)
    assert (found.url, found.token, found.is_in_process) == ("https://mine.example", "mine", False)


def test_then_the_environment(tmp_path: Path) -> None:
    environment = serving(tmp_path) | {"TUNESMITH_URL": "http://other:1", "TUNESMITH_TOKEN": "theirs"}
    found = find_endpoint(None, None, environment=environment)
    assert (found.url, found.token) == ("http://other:1", "theirs")


def test_then_the_server_of_the_state_folder(tmp_path: Path) -> None:
    found = find_endpoint(None, None, environment=serving(tmp_path))
    assert (found.url, found.token, found.is_in_process) == (URL, "home-token", False)


def test_the_project_is_the_callers_or_the_environments(tmp_path: Path) -> None:
    environment = {"TUNESMITH_HOME": str(tmp_path), "TUNESMITH_PROJECT": "lab"}
    assert find_endpoint(None, None, environment=environment).project == "lab"
    assert find_endpoint(URL, "t", environment=environment, project="desk").project == "desk"
    assert find_endpoint(None, None, environment=environment | {"TUNESMITH_PROJECT": ""}).project is None


def test_then_none(tmp_path: Path) -> None:
    found = find_endpoint(None, None, environment={"TUNESMITH_HOME": str(tmp_path / "absent")})
    assert found.is_in_process and found.token is None
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("named", ["caller", "environment"])
def test_the_home_token_goes_to_the_home_server_alone(tmp_path: Path, named: str) -> None:
    environment = serving(tmp_path)

    def token_for(url: str) -> str | None:
        given = url if named == "caller" else None
        return find_endpoint(given, None, environment=environment | ({} if given else {"TUNESMITH_URL": url})).token

    assert token_for(URL + "/") == "home-token"
    assert token_for("http://127.0.0.1:9999") is None
    assert token_for("http://evil.example:8440") is None


def test_the_file_of_a_killed_server_is_not_believed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    serving(tmp_path, pid=process.pid)
    assert running_server(tmp_path) is None


def test_a_process_that_got_the_pid_of_a_killed_server_is_not_believed(tmp_path: Path) -> None:
    serving(tmp_path, earlier_seconds=3600)
    assert running_server(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"url": 1, "pid": "x"}', '{"url": "u", "pid": 1}'])
def test_a_file_that_is_none_of_ours_is_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)
    assert running_server(tmp_path) is None


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8440", "ftp://x", "http://", "http://user:secret@host", "http://x:99999", "http://[::1"]
)
def test_a_faulty_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageFault) as caught:
        find_endpoint(url, None, environment={"TUNESMITH_HOME": str(tmp_path)})
    assert caught.value.code == "BAD_URL"


@pytest.mark.parametrize(
    ("url", "is_loopback"),
    [
        (URL, True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1", False),
        ("http://x", False),
    ],
)
def test_what_stays_on_this_machine_is_known(tmp_path: Path, url: str, is_loopback: bool) -> None:
    environment = {"TUNESMITH_HOME": str(tmp_path)}
    assert find_endpoint(url, "t", environment=environment).is_loopback is is_loopback
