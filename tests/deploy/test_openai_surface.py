"""OpenAI's surface: the official client against a real server, and every refusal by name."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.deploy.catalog import publish, tuned_artifact
from tests.deploy.endless import LONG, endless_base, time_of, wait_until_it_computes, wait_until_it_stands_still
from tests.train.conftest import tiny_base
from tunesmith.bundled import MODEL_NAME
from tunesmith.jobs.home import open_home
from tunesmith.jobs.launcher import process_started_at
from tunesmith.jobs.state import open_state

__all__ = ["tiny_base"]
pytestmark = pytest.mark.servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    url: str
    token: str
    pid: int
    home: Path

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"base_url": f"{self.url}/v1", "api_key": self.token, "max_retries": 0} | options
        return openai.OpenAI(**given)

    def worker(self, base: Path) -> int:
        """The deploy worker of this base; a small answer starts it."""
        self.client().completions.create(model=str(base), prompt="count 1:", max_tokens=2)
        found = [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdecimal() and str(self.home / "serving") in (command := _command(path))
            and json.loads(Path(command.split()[-1]).read_bytes())["base"]["path"] == str(base)
        ]  # fmt: skip
        assert len(found) == 1, self.told()
        return found[0]

    def told(self) -> str:
        """What the server and its workers wrote, for a failure's message."""
        logs = [self.home / "server-output.log", *sorted((self.home / "logs").glob("*"))]
        return "\n".join(f"---- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs)


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def served(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real server whose catalog has a chat version, a plain version and an alias."""
    root = tmp_path_factory.mktemp("served") / "home"
    state = open_state(open_home({"TUNESMITH_HOME": str(root)}))
    for render in ("chat", "plain"):
        artifact = tuned_artifact(tiny_base, tmp_path_factory.mktemp("artifacts") / render, render=render)
        publish(state, artifact, version_set=f"bot-{render}", alias="prod")
    state.database.close()
    log = (root / "server-output.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--json"],
        env={**os.environ, "TUNESMITH_HOME": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, Path(log.name).read_text()
    yield Served(url=json.loads(line)["url"], token=(root / "token").read_text().strip(), pid=process.pid, home=root)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    process.stdout.close()
    log.close()
    assert process.returncode == 0
    assert not any(str(root / "serving") in _command(path) for path in Path("/proc").iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_base(tmp_path_factory.mktemp("endless") / "base")


IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}
HELLO: Any = [{"role": "user", "content": "count 1:"}]


def test_models_are_listed_and_shown(served: Served) -> None:
    client = served.client()
    listed = {model.id: model for model in client.models.list()}
    assert {MODEL_NAME, "bot-chat:1", "bot-chat@prod", "bot-plain:1", "bot-plain@prod"} == set(listed)
    assert client.models.retrieve("bot-chat@prod").id == "bot-chat@prod"
    assert client.models.retrieve(MODEL_NAME).owned_by == "tunesmith"
    assert listed["bot-chat:1"].created > 1_700_000_000


def test_chat_whole_and_streamed_are_the_same_text(served: Served) -> None:
    client = served.client()
    asked: Any = {"model": "bot-chat@prod", "messages": HELLO, "temperature": 0, "max_completion_tokens": 24}
    whole = client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert whole.object == "chat.completion" and whole.model == "bot-chat:1"
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert (
        whole.usage is not None
        and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    )
    assert 0 < whole.usage.completion_tokens <= 24
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert {(chunk.object, chunk.model, chunk.id) for chunk in chunks} == {
        ("chat.completion.chunk", "bot-chat:1", chunks[0].id)
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [
        choice.finish_reason
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}
    without = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.usage is None for chunk in without) and len(without) == len(chunks) - 1


def test_an_answer_goes_back_into_the_conversation(served: Served) -> None:
    client = served.client()
    first = client.chat.completions.create(model="bot-chat:1", messages=HELLO, max_tokens=8).choices[0].message
    turns: Any = [{"role": "developer", "content": "Be brief."}, *HELLO, first, {"role": "user", "content": [
        {"type": "text", "text": "count "}, {"type": "text", "text": "2:"}]}]  # fmt: skip
    assert client.chat.completions.create(model="bot-chat:1", messages=turns, max_tokens=8).choices


def test_a_base_and_its_version_differ_and_choices_are_seeded(served: Served) -> None:
    client = served.client()
    asked: Any = {"model": MODEL_NAME, "messages": HELLO, "temperature": 1.2, "n": 3, "seed": 4, "max_tokens": 12}
    once, again = (client.chat.completions.create(**asked) for _ in range(2))
    assert [choice.index for choice in once.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in once.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1


def test_completions_of_several_prompts_and_a_stop_text(served: Served) -> None:
    client = served.client()
    prompts = ["count 1:", "count 2:"]
    asked: Any = {"model": "bot-plain:1", "prompt": prompts, "temperature": 0, "max_tokens": 16}
    whole = client.completions.create(**asked)
    assert whole.object == "text_completion"
    assert [choice.index for choice in whole.choices] == [0, 1]
    for prompt, choice in zip(prompts, whole.choices, strict=True):
        alone = client.completions.create(**asked | {"prompt": prompt})
        assert alone.choices[0].text == choice.text
    text = whole.choices[0].text
    cut = client.completions.create(**asked | {"prompt": prompts[0], "stop": text[3:5]})
    assert cut.choices[0].text == text[: text.index(text[3:5])] and cut.choices[0].finish_reason == "stop"
    streamed = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in whole.choices]


def test_a_plain_version_refuses_chat_with_the_reason(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="trained on plain text") as refused:
        served.client().chat.completions.create(model="bot-plain:1", messages=HELLO)
    assert refused.value.code == "CHAT_NOT_OFFERED"
    with pytest.raises(openai.BadRequestError):
        served.client().chat.completions.create(model="bot-plain:1", messages=HELLO, stream=True)


def test_wrong_keys_and_unknown_models(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        served.client(api_key="ts_wrong").models.list()
    for model in ("nothing", "bot-chat:9", "bot-chat@nowhere", "no/such"):
        with pytest.raises(openai.NotFoundError):
            served.client().chat.completions.create(model=model, messages=HELLO)
        with pytest.raises(openai.NotFoundError):
            served.client().models.retrieve(model)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"50": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"top_k": 5}, "top_k"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"n": 1_000_000_000}, "n "),
        ({"n": 0}, "n "),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "1,000,000 more"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "text"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "name"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(served: Served, changes: dict[str, Any], word: str) -> None:
    body = {"model": "bot-chat:1", "messages": HELLO} | changes
    answer = httpx2.post(
        f"{served.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {served.token}"}, timeout=60
    )
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]


def test_labels_and_values_that_ask_for_nothing_are_taken(served: Served) -> None:
    answer = served.client().chat.completions.create(
        model="bot-chat:1", messages=HELLO, max_tokens=2, user="me", metadata={"a": "b"}, store=False, n=1,
        frequency_penalty=0, presence_penalty=0.0, logprobs=False, tools=[], response_format={"type": "text"},
        stop=None, logit_bias={}, top_p=1, service_tier="auto",
    )  # fmt: skip
    assert answer.choices


@pytest.mark.parametrize(
    "changes",
    [
        {"echo": True},
        {"best_of": 2},
        {"suffix": "x"},
        {"logprobs": 1},
        {"prompt": [1, 2]},
        {"prompt": []},
        {"prompt": ["x"] * 17},
        {"prompt": ["x"] * 8, "n": 4},
    ],
    ids=str,
)
def test_what_completions_do_not_offer_is_refused_by_name(served: Served, changes: dict[str, Any]) -> None:
    body = {"model": "bot-plain:1", "prompt": "x"} | changes
    answer = httpx2.post(
        f"{served.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {served.token}"}, timeout=60
    )
    assert answer.status_code == 400
    assert next(iter(changes)) in answer.json()["error"]["message"]


def test_a_worker_killed_in_the_middle_of_a_stream_ends_it_cleanly_and_the_next_request_works(
    served: Served, endless: Path
) -> None:
    victim = served.worker(endless)
    client = served.client()
    chunks = iter(client.completions.create(**long_body(endless), stream=True))
    for _ in range(3):
        next(chunks)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="another worker is started"):
        list(chunks)
    assert client.completions.create(model=str(endless), prompt="count 1:", max_tokens=4).choices


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_caller_that_leaves_stops_the_generation(served: Served, endless: Path, is_stream: bool) -> None:
    worker = served.worker(endless)
    before = time_of(worker)
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    headers = {"Authorization": f"Bearer {served.token}", "Content-Type": "application/json"}
    body = json.dumps(long_body(endless) | {"stream": is_stream})
    try:
        connection.request("POST", "/v1/completions", body=body, headers=headers)
        if is_stream:
            assert connection.getresponse().readline().startswith(b"data: ")
        wait_until_it_computes(worker, since=before)
    finally:
        connection.close()
    wait_until_it_stands_still(worker)
    assert served.client().completions.create(model=str(endless), prompt="count 1:", max_tokens=4).choices


def long_body(base: Path) -> dict[str, Any]:
    return {
        "model": str(base), "prompt": "count 1:", "max_tokens": LONG["max_tokens"], "n": LONG["choices"],
        "temperature": 0,
    }  # fmt: skip


def test_several_models_answer_the_same_prompts(served: Served) -> None:
    models = ["bot-plain:1", "bot-chat@prod", MODEL_NAME]
    body = {"models": models, "prompts": ["count 1:", "count 2:"], "max_tokens": 4}
    headers = {"Authorization": f"Bearer {served.token}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=60) as http:
        whole = http.post("/api/answers", json=body).json()["answers"]
        assert [(each["prompt"], each["model"]) for each in whole] == [
            (prompt, model) for prompt in (0, 1) for model in models
        ]
        assert [each["resolved"] for each in whole[:3]] == ["bot-plain:1", "bot-chat:1", MODEL_NAME]
        assert all(each["error"] is None and each["finish_reason"] for each in whole)
        streamed: dict[tuple[int, int], str] = {}
        with http.stream("POST", "/api/answers", json=body, headers={"Accept": "text/event-stream"}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-2:] == ["event: end", "data: {}"]
        for line in lines[:-2]:
            piece = json.loads(line.removeprefix("data: "))
            place = (piece["prompt"], piece["model"])
            streamed[place] = streamed.get(place, "") + piece.get("text", "")
        assert [streamed[each["prompt"], models.index(each["model"])] for each in whole] == [
            each["text"] for each in whole
        ]
        # each as it was trained: as the OpenAI surface answers the same
        alone = http.post("/v1/completions", json={"model": models[0], "prompt": "count 1:", "max_tokens": 4} | COLD)
        assert alone.json()["choices"][0]["text"] == whole[0]["text"]
        turns = [{"role": "user", "content": "count 1:"}]
        base = http.post("/v1/chat/completions", json={"model": MODEL_NAME, "messages": turns, "max_tokens": 4} | COLD)
        assert base.json()["choices"][0]["message"]["content"] == whole[2]["text"], "beside a chat version it chats"
        refused = http.post("/api/answers", json={**body, "models": ["bot-plain:1", "bot-plain:9"]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "UNKNOWN_VERSION")


COLD = {"temperature": 0}


def test_the_server_names_these_routes_in_its_description(served: Served) -> None:
    paths = httpx2.get(f"{served.url}/openapi.json", timeout=60).json()["paths"]
    assert {"/v1/models", "/v1/models/{model}", "/v1/chat/completions", "/v1/completions"} <= set(paths)
    schema = paths["/v1/chat/completions"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("OpenAIErrorAnswer")
    assert process_started_at(served.pid) is not None
