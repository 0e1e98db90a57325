"""`tunesmith chat`: talk to a base model or a model version, over the server that runs, or without one.

A version that was trained on plain text has no conversation: each line is then a prompt of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.connected import JsonOption, complete_version, connected
from tunesmith.cli.output import Output
from tunesmith.errors import TunesmithError, UsageFault

if TYPE_CHECKING:
    from tunesmith.client.synchronous.wire import Wire

PLAIN_TOKENS = 256  # of a plain answer: text that goes on need not end
NEW = "/new"

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def chat(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", autocompletion=complete_version,
            help="A base model, SET:NUMBER, SET@ALIAS, or the folder of a model or of an artifact.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this one text, and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system turn before the conversation.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, max=2, help="0: always the likeliest. [default: 1]")
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Above 0. [default: 1]")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Of each answer.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; up to four.")] = None,
    json_wanted: JsonOption = False,
) -> int:  # fmt: skip
    """Talk to a model: a line each turn, /new for a new conversation, Ctrl-D to end."""
    output = Output(json_wanted=json_wanted)
    if json_wanted and prompt is None:
        raise UsageFault(
            "OPTIONS_EXCLUDE", "--json ends with the object of one answer: it needs --prompt.", field="json",
            hint="Add --prompt TEXT.",
        )  # fmt: skip
    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed, "stop": stop}
    with connected() as client:
        talk = _Talk(
            client.wire, output, model=_absolute(target), system=system,
            options={name: value for name, value in options.items() if value is not None},
        )  # fmt: skip
        if prompt is not None:
            output.result(talk.answer(prompt))
            return 0
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            output.say(f"Talking to {target}. {NEW} begins a new conversation, Ctrl-D ends.")
        for line in _lines(is_terminal=is_terminal):
            if line == NEW:
                talk.begin()
            elif line.strip():
                _turn(talk, line, output, is_terminal=is_terminal)
    return 0


def _turn(talk: _Talk, line: str, output: Output, *, is_terminal: bool) -> None:
    """One turn at a terminal: a refusal, or Ctrl-C in an answer, ends the turn and not the conversation."""
    from tunesmith.cli.app import Interrupted

    if not is_terminal:
        talk.answer(line)
        return
    try:
        talk.answer(line)
    except TunesmithError as error:
        output.error(error.form())
    except Interrupted:
        output.say()
        output.say("(stopped)")


class _Talk:
    """A conversation and how its answers are asked for."""

    def __init__(self, wire: Wire, output: Output, *, model: str, system: str | None, options: dict[str, Any]) -> None:
        self._wire = wire
        self._output = output
        self._model = model
        self._options = options
        self._system = system
        self._is_chat = True
        self._turns: list[dict[str, str]] = []
        self.begin()

    def begin(self) -> None:
        self._turns = [] if self._system is None else [{"role": "system", "content": self._system}]

    def answer(self, text: str) -> dict[str, Any]:
        """Show the answer as it comes; returns it whole. An answer that was broken off leaves no turn."""
        if self._is_chat:
            try:
                return self._chat(text)
            except TunesmithError as error:
                if error.code != "CHAT_NOT_OFFERED" or self._system is not None:
                    raise
                self._is_chat = False
                self._output.warn(f"! {error.message} Each line is a prompt of its own.")
        plain = {"max_tokens": PLAIN_TOKENS} | self._options
        return self._read("/v1/completions", {"model": self._model, "prompt": text} | plain)

    def _chat(self, text: str) -> dict[str, Any]:
        turns = [*self._turns, {"role": "user", "content": text}]
        found = self._read("/v1/chat/completions", {"model": self._model, "messages": turns} | self._options)
        self._turns = [*turns, {"role": "assistant", "content": found["text"]}]
        return found

    def _read(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        from tunesmith.client.answers import stream_answer

        pieces: list[str] = []
        found: dict[str, Any] = {}
        for chunk in stream_answer(self._wire, path, request):
            found |= {"model": chunk["model"], "system_fingerprint": chunk["system_fingerprint"]}
            if chunk.get("usage"):
                found["usage"] = chunk["usage"]
            for choice in chunk["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                pieces.append(text)
                self._output.piece(text)
                if choice["finish_reason"]:
                    found["finish_reason"] = choice["finish_reason"]
        self._output.say()
        return {"text": "".join(pieces)} | found


def _absolute(target: str) -> str:
    """A folder as the server must know it: it works in another one."""
    path = Path(target).expanduser()
    is_folder = target.startswith((".", "~", os.sep)) or (os.sep in target and path.is_dir())
    return str(path.absolute()) if is_folder else target


def _lines(*, is_terminal: bool) -> Iterator[str]:
    if not is_terminal:
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with contextlib.suppress(ImportError):  # editing and history, by being imported; not every Python has it
        importlib.import_module("readline")
    while True:
        try:
            yield input("> ")
        except EOFError:
            sys.stdout.write("\n")
            return
