"""Answers of several models to the same prompts: base beside tuned, two versions beside each other.

In: up to four models and sixteen prompts. Out: each model's answer to each prompt, whole, or in pieces under
`Accept: text/event-stream`. A prompt stands before each model as in training: under the chat template where that was
used, as plain text otherwise; a base gets it as the tuned models beside it do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import Body, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tunesmith.errors import TunesmithError
from tunesmith.jobs.served_model import ServedModel
from tunesmith.jobs.serving import Question
from tunesmith.server.answering import EVENT_STREAM, NOBODY, Answers, AnswerStream, CallerGone
from tunesmith.server.routes import Route
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.answers import Answer, AnswerList, AnswerPiece, AnswersRequest
from tunesmith.spec.serving import ChatTurn, DoneFrame, PieceFrame, StartedFrame


async def compare_answers(
    call: CallNow, request: Annotated[AnswersRequest, Body()], accept: Annotated[str | None, Header()] = None
) -> Response:
    """Ask several models the same; one prompt after the other, all models at once.

    A model that is not here refuses the request. One that breaks off later has its `error` beside its answer.
    """
    models = [
        await run_in_threadpool(
            call.service.serving.find, name, project=call.project, allows_folders=call.principal.is_local
        )
        for name in request.models
    ]
    asking = _Asking(call, request, models)
    if EVENT_STREAM in (accept or ""):
        return AnswerStream(asking.frames(), asking.close)
    try:
        return Response((await asking.whole()).model_dump_json(), media_type="application/json")
    except CallerGone:
        return Response(status_code=NOBODY)
    finally:
        asking.close()


class _Asking:
    """One request on its way: which questions are with the workers now."""

    def __init__(self, call: Call, request: AnswersRequest, models: Sequence[ServedModel]) -> None:
        self._call = call
        self._request = request
        self._models = models
        self._now: Answers | None = None
        self._is_chat = _is_chat(models)

    def close(self) -> None:
        if self._now is not None:
            self._now.close()

    def _question(self, model: ServedModel, prompt: str) -> Question:
        sampling = self._request.sampling()
        if model.adapter is None and self._is_chat and model.render == "chat":
            return Question(messages=[ChatTurn(role="user", content=prompt)], sampling=sampling)
        return Question(prompt=prompt, sampling=sampling)

    async def pieces(self, *, is_watched: bool) -> AsyncIterator[AnswerPiece]:
        for place, prompt in enumerate(self._request.prompts):
            asked = [(model, self._question(model, prompt)) for model in self._models]
            try:
                self._now = Answers(self._call.service.serving, asked)
            except TunesmithError as error:
                for number in range(len(self._models)):
                    yield AnswerPiece(kind="failed", model=number, prompt=place, error=error.form())
                continue
            while (told := await self._now.next(self._call.request if is_watched else None)) is not None:
                number, each = told
                match each:
                    case TunesmithError():
                        yield AnswerPiece(kind="failed", model=number, prompt=place, error=each.form())
                    case StartedFrame():
                        yield AnswerPiece(kind="started", model=number, prompt=place)
                    case PieceFrame():
                        yield AnswerPiece(kind="piece", model=number, prompt=place, text=each.text)
                    case DoneFrame():
                        yield AnswerPiece(kind="done", model=number, prompt=place, finish_reason=each.finish_reason)

    async def frames(self) -> AsyncIterator[bytes]:
        async for piece in self.pieces(is_watched=False):
            yield b"data: " + piece.model_dump_json(exclude_defaults=True).encode() + b"\n\n"
        yield b"event: end\ndata: {}\n\n"

    async def whole(self) -> AnswerList:
        texts: dict[tuple[int, int], list[str]] = {}
        ends: dict[tuple[int, int], AnswerPiece] = {}
        async for piece in self.pieces(is_watched=True):
            place = (piece.prompt, piece.model)
            texts.setdefault(place, []).append(piece.text)
            if piece.kind in ("done", "failed"):
                ends[place] = piece
        return AnswerList(
            answers=[
                Answer(
                    model=self._request.models[model], resolved=self._models[model].name, prompt=prompt,
                    text="".join(texts[prompt, model]), finish_reason=ends[prompt, model].finish_reason,
                    error=ends[prompt, model].error,
                )
                for prompt in range(len(self._request.prompts))
                for model in range(len(self._models))
            ]
        )  # fmt: skip


def _is_chat(models: Sequence[ServedModel]) -> bool:
    """How a base is asked: as the tuned models beside it are; alone, by its own template where it has one."""
    tuned = [model for model in models if model.adapter is not None]
    return any(model.render == "chat" for model in tuned or models)


ROUTES = [
    Route(
        method="POST", path="/api/answers", handler=compare_answers, permission="model.use",
        summary="Answers of several models to the same prompts", answer=AnswerList, refusals=(404, 409), body="json",
        content={EVENT_STREAM: {"schema": {"type": "string", "description": "Pieces as they come, then `end`."}}},
        request_example={"models": ["tunesmith/demo", "support-bot@prod"], "prompts": ["Where is my order?"]},
    ),
]  # fmt: skip
