"""Answers of several models to the same prompts: the request, and what comes back, whole or in pieces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunesmith.errors import ErrorForm
from tunesmith.spec.base import Spec
from tunesmith.spec.serving import MAXIMUM_SEED, FinishReason, Sampling

MAXIMUM_MODELS = 4
MAXIMUM_PROMPTS = 16
MAXIMUM_PROMPT_CHARACTERS = 200_000
DEFAULT_TOKENS = 256

ModelName = Annotated[str, Field(min_length=1, max_length=300)]
Prompt = Annotated[str, Field(min_length=1, max_length=MAXIMUM_PROMPT_CHARACTERS)]


class AnswersRequest(Spec):
    models: list[ModelName] = Field(
        min_length=1, max_length=MAXIMUM_MODELS, description="Bases, `set:number` or `set@alias`; each once."
    )
    prompts: list[Prompt] = Field(min_length=1, max_length=MAXIMUM_PROMPTS)
    temperature: float = Field(0.0, ge=0, le=2, description="0: always the most likely token, so that answers compare.")
    max_tokens: int = Field(DEFAULT_TOKENS, ge=1, le=4096, description="Of each answer.")
    seed: int | None = Field(None, ge=-MAXIMUM_SEED, lt=MAXIMUM_SEED)

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: list[str]) -> list[str]:
        if len(set(models)) < len(models):
            raise ValueError("a model is named twice")
        return models

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=1.0, max_tokens=self.max_tokens, seed=self.seed, choices=1)


class AnswerPiece(Spec):
    """One event of the stream. `model` and `prompt` are places in the request's lists, from 0."""

    kind: Literal["started", "piece", "done", "failed"]
    model: int
    prompt: int
    text: str = ""
    finish_reason: FinishReason | None = None
    error: ErrorForm | None = None


class Answer(Spec):
    model: str = Field(description="As it was asked for.")
    resolved: str = Field(description="The base or version that answered, where an alias was asked.")
    prompt: int = Field(description="Its place in the request's list, from 0.")
    text: str
    finish_reason: FinishReason | None
    error: ErrorForm | None = Field(description="Why there is no answer, or not all of it.")


class AnswerList(Spec):
    answers: list[Answer] = Field(description="Prompt by prompt, the models in their order.")
