"""The pool over real workers: tuned versions, kills, idleness, cancelling; and its refusals, which start nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.catalog import in_creation, publish, tuned_artifact
from tests.deploy.endless import LONG, endless_base, wait_until_it_stands_still
from tests.storage.conftest import Service, moto
from tests.train.conftest import tiny_base
from tunesmith.bundled import MODEL_NAME
from tunesmith.errors import InputRefused, MachineCannot, Unknown, UsageFault
from tunesmith.jobs import serving
from tunesmith.jobs.home import open_home
from tunesmith.jobs.launcher import process_started_at
from tunesmith.jobs.served_model import find_served
from tunesmith.jobs.serving import Question, ServingPool, needed_bytes
from tunesmith.jobs.state import State, open_state
from tunesmith.plan.machine import this_machine
from tunesmith.spec.serving import ChatTurn, DoneFrame, PieceFrame, Sampling, StartedFrame
from tunesmith.storage.publish import publish as publish_artifact

__all__ = ["moto", "tiny_base"]

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    state = open_state(open_home({"TUNESMITH_HOME": str(tmp_path_factory.mktemp("home"))}))
    yield state
    state.database.close()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def artifacts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {render: tuned_artifact(tiny_base, folder / render, render=render) for render in ("chat", "plain")}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_base(tmp_path_factory.mktemp("endless") / "base")


@pytest.fixture(scope="module")
def pool(state: State, environment: dict[str, str]) -> Iterator[ServingPool]:
    pool = ServingPool(state, environment)
    yield pool
    pids = pool.pids()
    pool.stop()
    assert all(process_started_at(pid) is None for pid in pids), "no worker is left"
    assert list(pool.folder.iterdir()) == []


def asked(text: str, *, chat: bool = True, **sampling: Any) -> Question:
    chosen = Sampling.model_validate({"temperature": 0.0, "max_tokens": 20} | sampling)
    if chat:
        return Question(messages=[ChatTurn(role="user", content=text)], sampling=chosen)
    return Question(prompt=text, sampling=chosen)


def text_of(frames: Any) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, PieceFrame))


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- names: no worker is needed


def test_what_is_no_model_here_is_unknown(pool: ServingPool) -> None:
    for target in ("nothing", "set:1", "set@prod", "set:x", "a/b", "../tiny", "/etc"):
        with pytest.raises(Unknown):
            pool.find(target, project="default")
    with pytest.raises(InputRefused, match="too long"):
        pool.find("0" * 300, project="default", allows_folders=True)


def test_a_version_in_creation_is_not_served(pool: ServingPool, state: State) -> None:
    name = in_creation(state, version_set="soon")
    with pytest.raises(Unknown) as refused:
        pool.find(name, project="default")
    assert refused.value.code == "VERSION_NOT_ACTIVE"


@pytest.mark.slow
def test_an_alias_is_pinned_to_the_version_that_it_points_at(
    pool: ServingPool, state: State, artifacts: dict[str, Path]
) -> None:
    first = publish(state, artifacts["chat"], version_set="pinned", alias="prod")
    before = pool.find("pinned@prod", project="default")
    second = publish(state, artifacts["plain"], version_set="pinned", alias="prod")
    after = pool.find("pinned@prod", project="default")
    assert (before.name, after.name) == (first, second)
    assert before.fingerprint != after.fingerprint
    assert before.fingerprint == pool.find(first, project="default").fingerprint
    assert (before.render, after.render) == ("chat", "plain")


@pytest.mark.slow
def test_a_plain_version_refuses_chat_with_the_reason(
    pool: ServingPool, state: State, artifacts: dict[str, Path]
) -> None:
    name = publish(state, artifacts["plain"], version_set="plain")
    with pytest.raises(UsageFault) as refused:
        list(pool.complete(name, asked("hi")))
    assert refused.value.code == "CHAT_NOT_OFFERED"
    assert "trained on plain text" in refused.value.message


@pytest.mark.slow
def test_a_damaged_artifact_is_refused_by_its_files_name(
    pool: ServingPool, state: State, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in artifacts["chat"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    name = publish(state, copy, version_set="damaged")
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputRefused) as refused:
        list(pool.complete(name, asked("hi")))
    assert refused.value.code == "ARTIFACT_DAMAGED" and "adapter_model.safetensors" in refused.value.message
    (copy / "job.json").write_text("{}")
    with pytest.raises(InputRefused) as refused:
        pool.find(name, project="default")
    assert "job.json" in refused.value.message


def test_a_base_that_needs_more_memory_than_is_free_is_never_started(
    pool: ServingPool, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_served(MODEL_NAME, state=pool.state, environment=environment, project="default")
    machine = this_machine(environment)
    assert needed_bytes(model.base, machine) > model.base.parameters * 4
    monkeypatch.setattr(serving, "RUNTIME_BYTES", {"cpu": 1 << 60, "cuda": 1 << 60})
    small = ServingPool(pool.state, environment)
    for _ in range(4):  # and is no crash that would open the breaker
        with pytest.raises(MachineCannot) as refused:
            list(small.complete(model, asked("hi")))
        assert refused.value.code == "MODEL_TOO_LARGE_NOW"
    assert small.pids() == []
    small.stop()


@pytest.mark.slow
def test_a_version_in_a_bucket_is_fetched_once_by_its_pinned_versions(
    state: State, artifacts: dict[str, Path], moto: Service
) -> None:
    bucket = moto.bucket()
    uri = f"s3://{bucket}/tuned"
    manifest = publish_artifact(artifacts["chat"], uri, environment=moto.environment)
    name = publish(state, artifacts["chat"], version_set="bucket", published=(uri, manifest))
    # a newer object under the same key is not what the version is
    moto.client().put_object(Bucket=bucket, Key="tuned/adapter_model.safetensors", Body=b"other")
    found = find_served(name, state=state, environment=moto.environment, project="default")
    assert found.adapter is not None
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (Path(found.adapter.folder) / file).read_bytes() == (artifacts["chat"] / file).read_bytes()
    moto.client().delete_object(Bucket=bucket, Key="tuned/job.json")
    nowhere = moto.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert find_served(name, state=state, environment=nowhere, project="default") == found


# ---- answers


@pytest.mark.slow
@pytest.mark.parametrize("render", ["chat", "plain"])
def test_tuned_answers_are_the_trainers_own_samples_and_not_the_bases(
    pool: ServingPool, state: State, artifacts: dict[str, Path], tiny_base: Path, render: str
) -> None:
    name = publish(state, artifacts[render], version_set=f"tuned-{render}")
    samples = json.loads((artifacts[render] / "samples.json").read_text())
    assert len(samples) == 3
    different = 0
    for sample in samples:
        # the trainer stops a little behind the longest completion
        question = asked(sample["prompt"], chat=render == "chat", max_tokens=24)
        frames = list(pool.complete(name, question))
        text = text_of(frames)
        assert text.startswith(sample["tuned"]) or sample["tuned"].startswith(text)
        assert len(text) >= min(8, len(sample["tuned"]))
        if render == "chat":
            base = pool.find(str(tiny_base), project="default", allows_folders=True)
            base_text = text_of(pool.complete(base, question))
            assert base_text.startswith(sample["base"]) or sample["base"].startswith(base_text)
            different += base_text != text
        assert isinstance(frames[0], StartedFrame) and isinstance(frames[-1], DoneFrame)
    assert render == "plain" or different == 3
    assert len(pool.loaded()) == 1, "one worker for the base and all of its versions"


@pytest.mark.slow
def test_requests_at_once_are_answered_alike(pool: ServingPool, state: State, artifacts: dict[str, Path]) -> None:
    name = publish(state, artifacts["chat"], version_set="many")
    question = asked("count 3:", max_tokens=16)
    alone = text_of(pool.complete(name, question))
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(text_of(pool.complete(name, question)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [alone] * 8


def long_answer(pool: ServingPool, base: Path) -> tuple[Any, Any]:
    """An answer that has begun and is far from its end, and its worker."""
    question = asked("count 1:", chat=False, **LONG)
    answer: Any = pool.complete(pool.find(str(base), project="default", allows_folders=True), question)
    assert isinstance(next(answer), StartedFrame)
    for _ in range(5):
        assert isinstance(next(answer), PieceFrame)
    return answer, next(each for each in pool._workers.values() if each.facts.path == str(base))


@pytest.mark.slow
def test_a_reader_that_leaves_stops_the_answer(pool: ServingPool, endless: Path) -> None:
    answer, worker = long_answer(pool, endless)
    assert not worker.is_idle
    answer.close()
    assert worker.is_idle
    wait_until_it_stands_still(worker.pid)


@pytest.mark.slow
def test_a_killed_worker_ends_its_requests_cleanly_and_the_next_one_works(pool: ServingPool, endless: Path) -> None:
    answer, worker = long_answer(pool, endless)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(MachineCannot) as ended:
        list(answer)
    assert ended.value.code == "MODEL_WORKER_DIED"
    assert "again" in (ended.value.hint or "")
    again, another = long_answer(pool, endless)
    assert another.pid != worker.pid
    again.close()


@pytest.mark.slow
def test_a_worker_that_keeps_dying_is_waited_for_longer_and_longer(
    state: State, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "DEPLOYER", "tunesmith.no_such_worker")
    pool = ServingPool(state, environment)
    for _ in range(2):
        with pytest.raises(MachineCannot) as died:
            list(pool.complete(MODEL_NAME, asked("hi")))
        assert died.value.code == "MODEL_WORKER_DIED"
    crashes = pool._crashes[pool.find(MODEL_NAME, project="default").base.digest]
    crashes.last += 100  # this machine may be slower than the wait is long
    with pytest.raises(MachineCannot) as refused:
        list(pool.complete(MODEL_NAME, asked("hi")))
    assert refused.value.code == "MODEL_KEEPS_FAILING"
    assert "seconds" in (refused.value.hint or "")
    crashes.last -= 103  # the time has passed
    with pytest.raises(MachineCannot) as again:
        list(pool.complete(MODEL_NAME, asked("hi")))
    assert again.value.code == "MODEL_WORKER_DIED"
    crashes.count = serving.BREAKER_CRASHES
    crashes.last -= 100
    with pytest.raises(MachineCannot) as opened:
        list(pool.complete(MODEL_NAME, asked("hi")))
    assert opened.value.code == "MODEL_KEEPS_FAILING"
    pool.stop()


@pytest.mark.slow
def test_an_idle_worker_is_unloaded_and_comes_back_on_demand(
    state: State, environment: dict[str, str], endless: Path
) -> None:
    pool = ServingPool(state, environment, idle_seconds=0.1)
    answer, worker = long_answer(pool, endless)
    assert pool.loaded() != []
    answer.close()
    until(lambda: pool.loaded() == [])
    until(lambda: process_started_at(worker.pid) is None)
    again, another = long_answer(pool, endless)
    assert another.pid != worker.pid
    again.close()
    pool.stop()
    with pytest.raises(MachineCannot) as refused:
        list(pool.complete(MODEL_NAME, asked("hello")))
    assert refused.value.code == "SERVER_STOPPING"


@pytest.mark.slow
def test_a_worker_ends_when_its_server_is_killed(state: State, environment: dict[str, str], tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import os, sys; from tunesmith.jobs.home import open_home; from tunesmith.jobs.state import open_state\n"
        "from tunesmith.jobs.serving import ServingPool, Question; from tunesmith.spec.serving import Sampling\n"
        "pool = ServingPool(open_state(open_home(os.environ)), os.environ)\n"
        f"list(pool.complete({MODEL_NAME!r}, Question(prompt='a', sampling=Sampling(max_tokens=2))))\n"
        "print(pool.pids()[0], flush=True); sys.stdin.read()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program], env=environment | {"TUNESMITH_HOME": str(state.home.root)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None and server.stdin is not None
    pid = int(server.stdout.readline())
    assert process_started_at(pid) is not None
    server.kill()
    server.wait()
    until(lambda: process_started_at(pid) is None)
    for stream in (server.stdin, server.stdout):
        stream.close()
    left = {path.name for path in (state.home.root / "serving").iterdir()}
    assert any(name.startswith(f"{server.pid}-") for name in left)
    ServingPool(state, environment)
    assert not any(path.name.startswith(f"{server.pid}-") for path in (state.home.root / "serving").iterdir())


@pytest.mark.slow
def test_a_deep_state_folder_has_a_socket_too(tmp_path: Path, environment: dict[str, str]) -> None:
    state = open_state(open_home({"TUNESMITH_HOME": str(tmp_path / ("deep" * 20) / ("er" * 20))}))
    pool = ServingPool(state, environment)
    assert text_of(pool.complete(MODEL_NAME, asked("hello", max_tokens=5)))
    pool.stop()
    state.database.close()


@pytest.mark.slow
def test_the_user_of_this_machine_names_the_folder_of_an_artifact(
    pool: ServingPool, artifacts: dict[str, Path]
) -> None:
    found = pool.find(str(artifacts["chat"]), project="default", allows_folders=True)
    assert found.name == "tiny:1" and found.adapter is not None and found.render == "chat"
    with pytest.raises(Unknown):
        pool.find(str(artifacts["chat"]), project="default")
    with pytest.raises(InputRefused):
        pool.find("./no-such-folder", project="default", allows_folders=True)
