"""`tunesmith chat` with the bundled model: one answer as JSON, a conversation from a pipe, refusals."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.conftest import Done
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.client import answers
from tunesmith.errors import InputRefused
from tunesmith.jobs.home import Home

Run = Callable[..., Done]


def test_json_needs_a_prompt(tunesmith: Run) -> None:
    done = tunesmith("chat", MODEL_NAME, "--json")
    assert done.code == 2
    assert done.json["error"]["code"] == "OPTIONS_EXCLUDE"


def test_what_is_no_model_is_refused_before_anything_starts(tunesmith: Run) -> None:
    done = tunesmith("chat", "nothing", "--prompt", "hi", "--json")
    assert done.code == 2
    assert done.json["error"]["code"] == "UNKNOWN_MODEL"


@pytest.mark.slow
def test_one_answer_is_the_same_by_name_and_by_folder(tunesmith: Run, home: Home) -> None:
    options = ("--prompt", "Hello!", "--temperature", "0", "--max-tokens", "12", "--json")
    named = tunesmith("chat", MODEL_NAME, *options)
    assert named.code == 0, named.err
    assert set(named.json) == {"text", "model", "finish_reason", "usage", "system_fingerprint"}
    assert named.json["model"] == MODEL_NAME
    assert named.json["text"] and named.json["text"] in named.err  # shown as it came, beside the object
    by_folder = tunesmith("chat", str(MODEL_FOLDER), *options)
    assert by_folder.json["text"] == named.json["text"]
    assert by_folder.json["system_fingerprint"] == named.json["system_fingerprint"]
    assert list((home.root / "serving").iterdir()) == [], "no worker's folder is left"


@pytest.mark.slow
def test_a_conversation_from_a_pipe(tunesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        done = tunesmith("chat", MODEL_NAME, "--temperature", "0", "--max-tokens", "12")
        assert done.code == 0, done.err
        return done.out.splitlines()

    once = talk("Hello!\nWhere is the station?\n")
    assert len(once) == 2
    assert talk("Where is the station?\n/new\nHello!\n\nWhere is the station?\n")[1:] == once


def test_turns_are_remembered_until_a_new_conversation(tunesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/new\nthree\n"))
    done = tunesmith("chat", "bot:1", "--system", "Be brief.", "--seed", "4", "--stop", "END")
    assert done.code == 0 and done.out == "answer\nanswer\nanswer\n"
    system = {"role": "system", "content": "Be brief."}
    first, answer = {"role": "user", "content": "one"}, {"role": "assistant", "content": "answer"}
    assert [request["messages"] for _, request in asked] == [
        [system, first],
        [system, first, answer, {"role": "user", "content": "two"}],
        [system, {"role": "user", "content": "three"}],
    ]
    assert all(request["seed"] == 4 and request["stop"] == ["END"] for _, request in asked)
    assert "temperature" not in asked[0][1], "what was not asked for is the server's to choose"


def test_a_plain_version_gets_each_line_as_a_prompt(tunesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, is_plain=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    done = tunesmith("chat", "bot:1")
    assert done.code == 0 and "Each line is a prompt of its own" in done.err
    assert [(path, request["prompt"]) for path, request in asked] == [
        ("/v1/completions", "one"),
        ("/v1/completions", "two"),
    ]
    refused = tunesmith("chat", "bot:1", "--system", "Be brief.", "--prompt", "x", "--json")
    assert refused.json["error"]["code"] == "CHAT_NOT_OFFERED"  # the system turn would be lost


def test_an_answer_cannot_act_on_the_terminal(tunesmith: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, text="\x1b[2Jgone\u202e")
    assert tunesmith("chat", "bot:1", "--prompt", "x").out == "\\x1b[2Jgone\\u202e\n"


def answering(
    monkeypatch: pytest.MonkeyPatch, *, text: str = "answer", is_plain: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """Answers of no model; returns what was asked."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def stream_answer(_wire: object, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        is_chat = path == "/v1/chat/completions"
        if is_plain and is_chat:
            raise InputRefused("CHAT_NOT_OFFERED", "bot:1 cannot chat: it was trained on plain text.", field="model")
        asked.append((path, request))
        for piece, ending in ((text[:2], None), (text[2:], None), ("", "stop")):
            choice = {"delta": {"content": piece}} if is_chat else {"text": piece}
            yield {"model": "bot:1", "system_fingerprint": "fp", "choices": [{**choice, "finish_reason": ending}]}

    monkeypatch.setattr(answers, "stream_answer", stream_answer)
    return asked


@pytest.mark.slow
def test_answers_of_models_to_the_same_prompts(tunesmith: Run) -> None:
    options = ("--prompt", "Hello!", "--prompt", "Where is the station?", "--max-tokens", "12")
    done = tunesmith("version", "answers", MODEL_NAME, *options, "--json")
    assert done.code == 0, done.err
    assert [(each["prompt"], each["model"]) for each in done.json["answers"]] == [(0, MODEL_NAME), (1, MODEL_NAME)]
    assert all(each["text"] and each["error"] is None for each in done.json["answers"])
    said = tunesmith("version", "answers", MODEL_NAME, *options).out
    assert said.count("> ") == 2 and done.json["answers"][1]["text"] in said
    alone = tunesmith("chat", MODEL_NAME, "--prompt", "Hello!", "--temperature", "0", "--max-tokens", "12", "--json")
    assert done.json["answers"][0]["text"] == alone.json["text"], "as a chat has it"
