"""One loaded base with its adapters, and the requests that it answers in turns, a token each.

In: `GenerateFrame`s. Out: frames of their answers, in order for each request. It knows no socket and no thread. A
faster engine takes the place of this one by offering the same four: `add`, `cancel`, `is_idle` and `step`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from pathlib import Path

import torch
from torch import nn

from tunesmith.data.render import Renderer, resolve_mode
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.deploy.answer import Answer, require_room
from tunesmith.errors import InputRefused, TunesmithError
from tunesmith.files import sha256_of
from tunesmith.models.adapter_file import load_adapter
from tunesmith.models.adapter_form import CONFIG_NAME, WEIGHTS_NAME
from tunesmith.models.base import load_base
from tunesmith.models.lora import LoraLinear, attach, detach
from tunesmith.spec.serving import (
    AdapterSource,
    DeployRequest,
    DoneFrame,
    FromWorker,
    GenerateFrame,
    PieceFrame,
    StartedFrame,
)

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Engine:
    """Answers with one base model. Not for several threads at once."""

    def __init__(self, request: DeployRequest) -> None:
        """Loads the base, which must still be what was inspected. Raises InputRefused, MachineCannot."""
        self._facts = request.base
        self._maximum_adapters = request.maximum_adapters
        self._maximum_active = request.maximum_active
        self._model: nn.Module = load_base(
            request.base,
            dtype=DTYPES[request.precision],
            device=torch.device(request.device),
            cache_folder=Path(request.cache_folder) if request.cache_folder else None,
        )
        self._tokenizer = load_tokenizer(Path(request.base.path))
        self._renderers: dict[str, Renderer] = {}
        self._adapters: OrderedDict[str, list[LoraLinear]] = OrderedDict()  # the longest unused first
        self._attached: str | None = None
        self._waiting: deque[GenerateFrame] = deque()
        self._turns: deque[_Request] = deque()

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._turns

    def add(self, frame: GenerateFrame) -> None:
        self._waiting.append(frame)

    def cancel(self, request_id: int) -> None:
        """Nobody waits for this answer any more. One that is over already is nothing to cancel."""
        self._waiting = deque(frame for frame in self._waiting if frame.id != request_id)
        self._turns = deque(request for request in self._turns if request.frame.id != request_id)

    def step(self) -> list[FromWorker]:
        """One token of one request, or the start of one. Raises RequestFailed, after which the others go on."""
        if self._waiting and len(self._turns) < self._maximum_active:
            frame = self._waiting.popleft()
            try:
                self._turns.append(self._start(frame))
            except Exception as error:
                raise RequestFailed(frame.id) from error
            return [StartedFrame(id=frame.id, prompt_tokens=len(self._turns[-1].prompt))]
        request = self._turns.popleft()
        try:
            self._attach(request.frame.adapter)
            frames = request.step(self._model)
        except Exception as error:
            raise RequestFailed(request.frame.id) from error
        if not request.is_done:
            self._turns.append(request)
        return frames

    # ---- one request

    def _start(self, frame: GenerateFrame) -> _Request:
        self._attach(frame.adapter)
        renderer = self._renderer(frame)
        prompt = render(renderer, frame)
        room = require_room(frame, prompt=prompt, context_length=self._facts.context_length)
        return _Request(frame, prompt=prompt, room=room, renderer=renderer)

    def _renderer(self, frame: GenerateFrame) -> Renderer:
        if frame.render not in self._renderers:
            has_template = self._tokenizer.chat_template is not None
            mode = resolve_mode(frame.render, has_template=has_template)
            self._renderers[frame.render] = Renderer(self._tokenizer, mode=mode)
        return self._renderers[frame.render]

    # ---- adapters

    def _attach(self, source: AdapterSource | None) -> None:
        """Give the model this adapter, or none."""
        wanted = source.digest if source is not None else None
        if wanted == self._attached:
            return
        detach(self._model)
        self._attached = None
        if source is None:
            return
        if source.digest in self._adapters:
            self._adapters.move_to_end(source.digest)
            attach(self._model, self._adapters[source.digest])
        else:
            self._adapters[source.digest] = self._load(source)
            while len(self._adapters) > self._maximum_adapters:
                self._adapters.popitem(last=False)
        self._attached = source.digest

    def _load(self, source: AdapterSource) -> list[LoraLinear]:
        folder = Path(source.folder)
        known = {file.path: file for file in source.files}
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            file = known.get(name)
            try:
                is_whole = file is not None and sha256_of(folder / name) == file.sha256
            except OSError as error:
                raise _damaged(folder / name, f"cannot be read: {error.strerror}") from error
            if not is_whole:
                raise _damaged(folder / name, "does not have the SHA-256 of the version's manifest")
        try:
            modules = load_adapter(folder, self._model, base=self._facts)
        except BaseException:
            detach(self._model)
            raise
        return modules


class RequestFailed(Exception):  # named for what happened, as all of ours
    """One request ended by the exception that is this one's cause."""

    def __init__(self, request_id: int) -> None:
        super().__init__(f"request {request_id}")
        self.request_id = request_id


class _Request:
    """One request with its answers, which are made one after the other."""

    def __init__(self, frame: GenerateFrame, *, prompt: list[int], room: int, renderer: Renderer) -> None:
        self.frame = frame
        self.prompt = prompt
        self._room = room
        self._renderer = renderer
        self._choice = 0
        self._answer: Answer | None = None

    @property
    def is_done(self) -> bool:
        return self._choice == self.frame.sampling.choices

    def step(self, model: nn.Module) -> list[FromWorker]:
        if self._answer is None:
            self._answer = Answer(
                model, self.frame, prompt=self.prompt, room=self._room, choice=self._choice, renderer=self._renderer
            )
        answer = self._answer
        text = answer.step()
        number, choice = self.frame.id, self._choice
        frames: list[FromWorker] = [PieceFrame(id=number, choice=choice, text=text)] if text else []
        if answer.finish_reason is not None:
            frames.append(
                DoneFrame(
                    id=number, choice=choice, finish_reason=answer.finish_reason, completion_tokens=answer.num_tokens
                )
            )
            self._choice, self._answer = self._choice + 1, None
        return frames


def render(renderer: Renderer, frame: GenerateFrame) -> list[int]:
    """The prompt's tokens, exactly as training placed them before an answer."""
    from tunesmith.data.rows import Message

    if frame.messages is not None:
        return renderer.render_prompt([Message(role=turn.role, content=turn.content) for turn in frame.messages])
    assert frame.prompt is not None
    return renderer.render_prompt(frame.prompt)


def _damaged(path: Path, fault: str) -> TunesmithError:
    return InputRefused(
        "ARTIFACT_DAMAGED",
        f"{path.name} of the model version {fault}.",
        field="model",
        hint="Restore the artifact's files, or train the version again.",
    )
