"""What passes between control and a deploy worker: its request file, and the frames of both directions.

Frames travel as JSON over one socket (`tunesmith/frames.py`). Every number of a request is bounded here, before
anything is allocated for it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from tunesmith.errors import ErrorForm
from tunesmith.spec.artifacts import ManifestFile
from tunesmith.spec.base import Spec
from tunesmith.spec.models import ModelFacts

MAXIMUM_CHOICES = 8
MAXIMUM_STOPS = 4
MAXIMUM_STOP_CHARACTERS = 1000
MAXIMUM_MESSAGES = 2000
MAXIMUM_NEW_TOKENS = 1 << 20
MAXIMUM_SEED = 1 << 63

FinishReason = Literal["stop", "length"]


class DeployRequest(Spec):
    """`request.json` of `python -m tunesmith.deploy`: one base model, and the socket on which control waits."""

    socket: str = Field(description="Path of the Unix socket that control listens on.")
    base: ModelFacts
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bf16"]
    threads: int = Field(ge=1, le=4096)
    cache_folder: str | None = None
    maximum_adapters: int = Field(16, ge=1, le=1024, description="Adapters kept in memory; the longest unused goes.")
    maximum_active: int = Field(4, ge=1, le=64, description="Requests that are answered at the same time, in turns.")


class Sampling(Spec):
    """How the next token is chosen, and where an answer ends."""

    temperature: float = Field(1.0, ge=0, le=2, description="0: always the most likely token.")
    top_p: float = Field(1.0, gt=0, le=1, description="Only the likeliest tokens that make up this share.")
    max_tokens: int | None = Field(None, ge=1, le=MAXIMUM_NEW_TOKENS, description="None: up to the model's context.")
    stop: list[Annotated[str, Field(min_length=1, max_length=MAXIMUM_STOP_CHARACTERS)]] = Field(
        default_factory=list[str], max_length=MAXIMUM_STOPS, description="Texts at which an answer ends, without them."
    )
    seed: int | None = Field(None, ge=-MAXIMUM_SEED, lt=MAXIMUM_SEED, description="Equal requests: equal answers.")
    choices: int = Field(1, ge=1, le=MAXIMUM_CHOICES)


class ChatTurn(Spec):
    role: Literal["system", "user", "assistant"]
    content: str


class AdapterSource(Spec):
    """An adapter on this machine, pinned by its manifest: the worker checks each file that it opens."""

    digest: str = Field(description="SHA-256 of the manifest: which adapter this is.")
    folder: str
    files: list[ManifestFile]


class GenerateFrame(Spec):
    kind: Literal["generate"] = "generate"
    id: int
    adapter: AdapterSource | None = None
    render: Literal["chat", "plain"]
    prompt: str | None = Field(None, description="Text of a prompt; or `messages`.")
    messages: list[ChatTurn] | None = Field(None, max_length=MAXIMUM_MESSAGES)
    sampling: Sampling


class CancelFrame(Spec):
    kind: Literal["cancel"] = "cancel"
    id: int


class ReadyFrame(Spec):
    """The base is loaded."""

    kind: Literal["ready"] = "ready"
    device_name: str


class FailedFrame(Spec):
    """The base cannot be loaded; the worker ends."""

    kind: Literal["failed"] = "failed"
    error: ErrorForm
    family: str


class StartedFrame(Spec):
    kind: Literal["started"] = "started"
    id: int
    prompt_tokens: int


class PieceFrame(Spec):
    """More text of one choice; never half a character, never a part of a stop text."""

    kind: Literal["piece"] = "piece"
    id: int
    choice: int
    text: str


class DoneFrame(Spec):
    """One choice is finished."""

    kind: Literal["done"] = "done"
    id: int
    choice: int
    finish_reason: FinishReason
    completion_tokens: int = Field(description="Tokens made, an end token included.")


class RefusedFrame(Spec):
    """The request ends here."""

    kind: Literal["refused"] = "refused"
    id: int
    error: ErrorForm
    family: str


ToWorker = GenerateFrame | CancelFrame
FromWorker = ReadyFrame | FailedFrame | StartedFrame | PieceFrame | DoneFrame | RefusedFrame
TO_WORKER: TypeAdapter[ToWorker] = TypeAdapter(Annotated[ToWorker, Field(discriminator="kind")])
FROM_WORKER: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])
