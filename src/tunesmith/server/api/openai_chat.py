"""OpenAI's surface for models that answer: /v1/models, /v1/chat/completions, /v1/completions.

In: OpenAI's requests (`spec/openai.py`). Out: its answers and streams, made by the pool of deploy workers. A caller
that leaves stops the generation. What refuses a request comes as a status, also for streams; what ends a stream in its
middle comes as an `error` event.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Body
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.catalog import models, versions
from tunesmith.errors import TunesmithError
from tunesmith.jobs.served_model import ServedModel, is_version_name
from tunesmith.jobs.serving import Chunk, Question
from tunesmith.server.answering import EVENT_STREAM, NOBODY, Answers, AnswerStream, CallerGone
from tunesmith.server.errors import error_response
from tunesmith.server.routes import Route
from tunesmith.server.service import Call, CallNow
from tunesmith.spec import openai
from tunesmith.spec.catalog import MAXIMUM_PAGE, VersionState
from tunesmith.spec.serving import ChatTurn, DoneFrame, FinishReason, PieceFrame, StartedFrame

LISTED_PAGES = 10


# ---- models


def list_served_models(call: CallNow) -> openai.ModelList:
    """Everything that answers: bases, ACTIVE versions (`set:number`, the newest first) and aliases (`set@alias`)."""
    found: list[openai.ModelObject] = []
    with call.database.read() as connection:
        after: str | None = None
        for _ in range(LISTED_PAGES):
            bases = models.list_models(connection, after=after, limit=MAXIMUM_PAGE)
            found += [_object(base.name, base.created_at, owner="base") for base in bases.items]
            if (after := bases.next) is None:
                break
        after = None
        for _ in range(LISTED_PAGES):
            page = versions.list_versions(
                connection, project=call.project, state=VersionState.ACTIVE, after=after, limit=MAXIMUM_PAGE
            )
            for version in page.items:
                names = [version.model_version, *(f"{version.version_set}@{alias}" for alias in version.aliases)]
                found += [_object(name, version.created_at, owner=call.project) for name in names]
            if (after := page.next) is None:
                break
    return openai.ModelList(data=found)


def show_served_model(call: CallNow, model: str) -> openai.ModelObject:
    """One model that answers. An alias is shown under its own name."""
    if not is_version_name(model):
        with call.database.read() as connection:
            return _object(model, models.find_model(connection, model).created_at, owner="base")
    return _object(model, call.service.serving.find(model, project=call.project).created_at, owner=call.project)


def _object(name: str, created_at: str | None, *, owner: str) -> openai.ModelObject:
    created = 0 if created_at is None else int(datetime.fromisoformat(created_at).timestamp())
    return openai.ModelObject(id=name, created=created, owned_by="tunesmith" if owner == "base" else owner)


# ---- completions


async def create_chat_completion(call: CallNow, request: Annotated[openai.ChatCompletionRequest, Body()]) -> Response:
    """Answer a conversation under the model's own chat template, whole or as a stream."""
    model = await _find(call, request.model)
    turns = [
        ChatTurn(
            role="system" if message.role == "developer" else message.role,
            content=openai.content_text(message.content),
        )
        for message in request.messages
    ]
    sampling = request.sampling(request.max_completion_tokens or request.max_tokens)
    form = _ChatForm(head=_head("chatcmpl", model))
    return await _answer(call, request, model, [Question(messages=turns, sampling=sampling)], form)


async def create_completion(call: CallNow, request: Annotated[openai.CompletionRequest, Body()]) -> Response:
    """Go on with a text. A tuned version gets it as the prompts of its training: a chat version under its template."""
    model = await _find(call, request.model)
    sampling = request.sampling(request.max_tokens or openai.DEFAULT_COMPLETION_TOKENS)
    questions = [Question(prompt=prompt, sampling=sampling) for prompt in request.prompt]
    return await _answer(call, request, model, questions, _TextForm(head=_head("cmpl", model)))


async def _find(call: Call, name: str) -> ServedModel:
    # the user of this machine may name folders of it
    return await run_in_threadpool(
        call.service.serving.find, name, project=call.project, allows_folders=call.principal.is_local
    )


def _head(prefix: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid4().hex}",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": model.fingerprint,
    }


async def _answer(
    call: Call,
    request: openai.ChatCompletionRequest | openai.CompletionRequest,
    model: ServedModel,
    questions: Sequence[Question],
    form: _ChatForm | _TextForm,
) -> Response:
    answers = Answers(call.service.serving, [(model, question) for question in questions])
    choices = questions[0].sampling.choices
    try:
        first = await _next(answers, choices, call.request)  # a refusal comes before the answer begins
        assert first is not None, "an answer begins with its start"
        if request.stream:
            has_usage = request.stream_options is not None and request.stream_options.include_usage
            frames = _frames(answers, form, first, choices=choices, questions=len(questions), has_usage=has_usage)
            return AnswerStream(frames, answers.close)
        collected = _Collected(choices * len(questions))
        collected.add(*first)
        while (each := await _next(answers, choices, call.request)) is not None:
            collected.add(*each)
        return _json(form.whole(collected))
    except CallerGone:
        answers.close()
        return Response(status_code=NOBODY)
    except BaseException:
        answers.close()
        raise


async def _next(answers: Answers, choices: int, watched: Request | None = None) -> tuple[int, Chunk] | None:
    """(number of its question's first choice, frame); None when all is told. Raises what ends an answer."""
    told = await answers.next(watched)
    if told is None:
        return None
    number, each = told
    if isinstance(each, TunesmithError):
        raise each
    return number * choices, each


async def _frames(
    answers: Answers,
    form: _ChatForm | _TextForm,
    first: tuple[int, Chunk],
    *,
    choices: int,
    questions: int,
    has_usage: bool,
) -> AsyncIterator[bytes]:
    num_choices = choices * questions
    collected = _Collected(num_choices, keeps_text=False)

    def events(base: int, chunk: Chunk) -> list[dict[str, Any]]:
        collected.add(base, chunk)
        match chunk:
            case StartedFrame():
                return form.beginnings(base, num_choices)
            case PieceFrame():
                return [form.piece(base + chunk.choice, chunk.text)]
            case DoneFrame():
                return [form.end(base + chunk.choice, chunk.finish_reason)]

    no_usage: dict[str, Any] = {"usage": None} if has_usage else {}
    try:
        for event in events(*first):
            yield _event(event | no_usage)
        while (each := await _next(answers, choices)) is not None:
            for event in events(*each):
                yield _event(event | no_usage)
    except TunesmithError as error:
        yield b"data: " + bytes(error_response(error, path="/v1/").body) + b"\n\n"
        return
    if has_usage:
        yield _event(form.chunk([]) | {"usage": collected.usage().as_json()})
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _json(value: openai.ChatCompletion | openai.Completion) -> Response:
    return Response(value.model_dump_json(), media_type="application/json")


class _Collected:
    """Texts, endings and counts of all choices."""

    def __init__(self, num_choices: int, *, keeps_text: bool = True) -> None:
        self._keeps_text = keeps_text
        self._pieces: list[list[str]] = [[] for _ in range(num_choices)]
        self._endings: list[FinishReason] = ["stop"] * num_choices
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def add(self, base: int, chunk: Chunk) -> None:
        match chunk:
            case StartedFrame():
                self._prompt_tokens += chunk.prompt_tokens
            case PieceFrame():
                if self._keeps_text:
                    self._pieces[base + chunk.choice].append(chunk.text)
            case DoneFrame():
                self._endings[base + chunk.choice] = chunk.finish_reason
                self._completion_tokens += chunk.completion_tokens

    def choices(self) -> list[tuple[int, str, FinishReason]]:
        joined = ("".join(pieces) for pieces in self._pieces)
        return [(index, text, end) for index, (text, end) in enumerate(zip(joined, self._endings, strict=True))]

    def usage(self) -> openai.Usage:
        total = self._prompt_tokens + self._completion_tokens
        return openai.Usage(
            prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens, total_tokens=total
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChatForm:
    """Chunks and answers of /v1/chat/completions."""

    head: dict[str, Any] = field(default_factory=dict[str, Any])

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", **self.head, "choices": choices}

    def _choice(self, index: int, delta: dict[str, Any], ending: str | None = None) -> dict[str, Any]:
        return self.chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": ending}])

    def beginnings(self, base: int, count: int) -> list[dict[str, Any]]:
        return [self._choice(index, {"role": "assistant", "content": ""}) for index in range(base, count)]

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self._choice(index, {"content": text})

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return self._choice(index, {}, reason)

    def whole(self, collected: _Collected) -> openai.ChatCompletion:
        choices = [
            openai.ChatChoice(index=index, message=openai.AnswerMessage(content=text), finish_reason=end)
            for index, text, end in collected.choices()
        ]
        return openai.ChatCompletion(**self.head, choices=choices, usage=collected.usage())


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextForm:
    """Chunks and answers of /v1/completions."""

    head: dict[str, Any] = field(default_factory=dict[str, Any])

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": "text_completion", **self.head, "choices": choices}

    def beginnings(self, base: int, count: int) -> list[dict[str, Any]]:
        return []

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self.chunk([{"index": index, "text": text, "logprobs": None, "finish_reason": None}])

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return self.chunk([{"index": index, "text": "", "logprobs": None, "finish_reason": reason}])

    def whole(self, collected: _Collected) -> openai.Completion:
        choices = [
            openai.TextChoice(index=index, text=text, finish_reason=end) for index, text, end in collected.choices()
        ]
        return openai.Completion(**self.head, choices=choices, usage=collected.usage())


STREAM = {EVENT_STREAM: {"schema": {"type": "string", "description": "With `stream: true`: chunks, then [DONE]."}}}
ROUTES = [
    Route(
        method="GET", path="/v1/models", handler=list_served_models, permission="model.read",
        summary="List what answers", answer=openai.ModelList,
    ),
    Route(
        method="GET", path="/v1/models/{model:path}", handler=show_served_model, permission="model.read",
        summary="Show a model that answers", answer=openai.ModelObject, refusals=(404,),
    ),
    Route(
        method="POST", path="/v1/chat/completions", handler=create_chat_completion, permission="model.use",
        summary="Answer a conversation", answer=openai.ChatCompletion, refusals=(404, 409), content=STREAM,
        body="json",
        request_example={"model": "tunesmith/demo", "messages": [{"role": "user", "content": "Hello!"}]},
    ),
    Route(
        method="POST", path="/v1/completions", handler=create_completion, permission="model.use",
        summary="Go on with a text", answer=openai.Completion, refusals=(404, 409), content=STREAM,
        body="json",
        request_example={"model": "tunesmith/demo", "prompt": "Once upon a time", "max_tokens": 32},
    ),
]  # fmt: skip
