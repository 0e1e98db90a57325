"""`list` and `show` of every noun give the same keys in this process and over a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers.processes import end
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.jobs.home import Home
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State
from tunesmith.jobs.supervisor import StopWish, run_job

pytestmark = pytest.mark.servers

ROWS = b"".join(b'{"prompt": "%d", "completion": "%d"}\n' % (number, number + 1) for number in range(20))


@contextmanager
def serving(home: Home) -> Generator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"TUNESMITH_HOME": str(home.root)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.stdout.close()
    finally:
        end(process)


def keys(value: Any) -> Any:
    """The shape of an object: its keys at every depth; of a list that of its items together."""
    if isinstance(value, dict):
        return {name: keys(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [keys(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    return None


def differences(left: Any, right: Any, at: str = "") -> list[str]:
    """Where two shapes differ. A null fits anything: the bundled model's facts are looked at by a server's start."""
    if left is None or right is None:
        return []
    if isinstance(left, dict) and isinstance(right, dict):
        names = sorted(set(left) | set(right))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return [
            told
            for name in names
            for told in (
                differences(left[name], right[name], f"{at}.{name}")
                if name in left and name in right
                else [f"{at}.{name} is in one alone"]
            )
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = zip(left, right, strict=True)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return [told for number, pair in enumerate(pairs) for told in differences(*pair, f"{at}[{number}]")]
    return [f"{at}: {left} and {right}"]


def test_lists_and_shows_have_the_same_keys_in_process_and_over_a_server(
    tunesmith: Callable[..., Any],
    home: Home,
    state: State,
    job: JobFolder,
    worker: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_job(job, state=state, environment={}, on_event=lambda _: None, wish=StopWish(), command=worker("succeeds"))
    version = state.jobs.read(job.job_id).model_version
    version_set = version.rpartition(":")[0]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS)

    def object_of(*words: str) -> Any:
        done = tunesmith(*words, "--json")
        assert done.code == 0, (words, done.out, done.err)
        return done.json

    dataset = object_of("dataset", "upload", str(rows))["dataset_id"]
    object_of("model", "register", "mine", str(MODEL_FOLDER))
    object_of("location", "add", "team", tmp_path.as_uri())
    object_of("log", "add", "kept")
    object_of("network", "add", "rack", "10.0.0.0/24")
    object_of("token", "create", "colleague")
    object_of("quota", "edit", "colleague", "--versions", "3")
    object_of("project", "create", "desk")
    object_of("policy", "create", "night", "--who", "colleague", "--may", "use", "--in", "desk")
    object_of("version", "alias", f"{version_set}@prod", version.rpartition(":")[2])
    shown = {
        "job": job.job_id, "dataset": dataset, "model": "mine", "version": version, "version-set": version_set,
        "location": "team", "log": "kept", "network": "rack", "quota": "colleague", "shape": "local",
        "project": "desk", "policy": "night",
    }  # fmt: skip
    listed = [*shown, "token", "audit", "download"]
    commands = [(noun, "list") for noun in listed] + [(noun, "show", name) for noun, name in shown.items()]
    commands += [("job", "logs", job.job_id), ("model", "show", MODEL_NAME), ("system", "permissions")]
    commands += [("policy", "check", "colleague", "job.submit", "--project", "desk")]

    alone = {words: object_of(*words) for words in commands}
    with serving(home) as url:
        monkeypatch.setenv("TUNESMITH_URL", url)
        monkeypatch.setenv("TUNESMITH_TOKEN", (home.root / "token").read_text().strip())
        served = {words: object_of(*words) for words in commands}
    for words in commands:
        assert differences(keys(served[words]), keys(alone[words])) == [], words
    shown_job = served["job", "show", job.job_id]
    assert {name for name in alone["job", "show", job.job_id] if name not in shown_job} == set()
    assert shown_job["settings"] == alone["job", "show", job.job_id]["settings"] and shown_job["record"]
