"""OpenAI's requests and answers for models, chat and completions, as far as they are offered here.

No field is accepted and ignored: what has no effect here is refused by name, except values that ask for nothing
(`frequency_penalty: 0`, `store: false`), and the three that only label a request (`user`, `metadata`,
`safety_identifier`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypeIs

from tunesmith.spec.base import Spec
from tunesmith.spec.serving import (
    MAXIMUM_CHOICES,
    MAXIMUM_MESSAGES,
    MAXIMUM_NEW_TOKENS,
    MAXIMUM_SEED,
    MAXIMUM_STOP_CHARACTERS,
    MAXIMUM_STOPS,
    FinishReason,
    Sampling,
)

MAXIMUM_PROMPTS = 16
MAXIMUM_PARTS = 100
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own default of /v1/completions


def _refusing(*neutral: Any) -> BeforeValidator:
    """Only null, or a value that asks for nothing."""

    def check(value: Any) -> None:
        if value is None or any(type(value) is type(each) and value == each for each in neutral):
            return None
        words = " or ".join(str(each).lower() if isinstance(each, bool) else repr(each) for each in neutral)
        raise ValueError(f"it is not offered here; leave it out{f', or send {words}' if neutral else ''}")

    return BeforeValidator(check)


NotOffered = Annotated[Any, _refusing(), Field(description="Not offered: refused unless null.")]
NoPenalty = Annotated[Any, _refusing(0, 0.0), Field(description="Not offered: 0 or null.")]
Off = Annotated[Any, _refusing(False), Field(description="Not offered: false or null.")]
EmptyList = Annotated[Any, _refusing([]), Field(description="Not offered: empty or null.")]
EmptyObject = Annotated[Any, _refusing({}), Field(description="Not offered: empty or null.")]


class _Strict(Spec):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


# ---- requests


class StreamOptions(_Strict):
    include_usage: bool = Field(False, description="A last chunk with the counts of tokens.")
    include_obfuscation: Off = None


class TextPart(_Strict):
    """A part of a content. Images, audio and files are not offered, and no URL is ever fetched."""

    type: Literal["text"]
    text: str


class SystemMessage(_Strict):
    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(_Strict):
    role: Literal["user"]
    content: str | list[TextPart]


class AssistantMessage(_Strict):
    """As an earlier answer came; `refusal` and the like are taken back where they are empty."""

    role: Literal["assistant"]
    content: str | list[TextPart]
    refusal: NotOffered = None
    audio: NotOffered = None
    function_call: NotOffered = None
    tool_calls: EmptyList = None
    annotations: EmptyList = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


def content_text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopList = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAXIMUM_STOP_CHARACTERS)]],
    Field(max_length=MAXIMUM_STOPS, description="A text, or up to four, at which an answer ends."),
]


class _CompletionOptions(_Strict):
    """What both kinds of completions share."""

    model: str = Field(min_length=1, max_length=4096, description="A base's name, `set:number` or `set@alias`.")
    temperature: float | None = Field(None, ge=0, le=2, description="Default 1; 0: always the most likely token.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default 1.")
    stop: Annotated[StopList | None, BeforeValidator(_as_list)] = None
    seed: int | None = Field(None, ge=-MAXIMUM_SEED, lt=MAXIMUM_SEED, description="Equal requests, equal answers.")
    n: int | None = Field(None, ge=1, le=MAXIMUM_CHOICES, description="Answers to each prompt; default 1.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512, description="A label of the caller's; it changes nothing.")
    frequency_penalty: NoPenalty = None
    presence_penalty: NoPenalty = None
    logit_bias: EmptyObject = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> _CompletionOptions:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: they need stream: true")
        return self

    def sampling(self, max_tokens: int | None) -> Sampling:
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_tokens=max_tokens,
            stop=self.stop or [],
            seed=self.seed,
            choices=self.n or 1,
        )


class ChatCompletionRequest(_CompletionOptions):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAXIMUM_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MAXIMUM_NEW_TOKENS, description="Default: up to the context.")
    max_completion_tokens: int | None = Field(None, ge=1, le=MAXIMUM_NEW_TOKENS, description="The same, newer name.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Labels; they change nothing.")
    safety_identifier: str | None = Field(None, max_length=512, description="A label; it changes nothing.")
    store: Off = None
    logprobs: Off = None
    top_logprobs: NotOffered = None
    response_format: Annotated[Any, _refusing({"type": "text"})] = None
    modalities: Annotated[Any, _refusing(["text"])] = None
    service_tier: Annotated[Any, _refusing("auto", "default")] = None
    tools: EmptyList = None
    tool_choice: Annotated[Any, _refusing("none", "auto")] = None
    parallel_tool_calls: NotOffered = None
    functions: EmptyList = None
    function_call: Annotated[Any, _refusing("none", "auto")] = None
    reasoning_effort: NotOffered = None
    verbosity: NotOffered = None
    prediction: NotOffered = None
    audio: NotOffered = None
    web_search_options: NotOffered = None
    prompt_cache_key: NotOffered = None
    prompt_cache_retention: NotOffered = None

    @model_validator(mode="after")
    def _check(self) -> ChatCompletionRequest:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last one is the assistant's own; end with what it shall answer")
        if (
            self.max_tokens is not None
            and self.max_completion_tokens is not None
            and self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError("max_tokens: it contradicts max_completion_tokens; send one of them")
        return self


def _is_texts(value: Any) -> TypeIs[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)  # pyright: ignore[reportUnknownVariableType]


def _prompts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not _is_texts(value):
        raise ValueError("it must be a text or a list of texts; lists of token ids are not offered")
    return value


class CompletionRequest(_CompletionOptions):
    prompt: Annotated[list[str], BeforeValidator(_prompts), Field(min_length=1, max_length=MAXIMUM_PROMPTS)]
    max_tokens: int | None = Field(
        None, ge=1, le=MAXIMUM_NEW_TOKENS, description=f"Default {DEFAULT_COMPLETION_TOKENS}."
    )
    echo: Off = None
    best_of: Annotated[Any, _refusing(1)] = None
    logprobs: NotOffered = None
    suffix: NotOffered = None

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if len(self.prompt) * (self.n or 1) > MAXIMUM_PROMPTS:
            raise ValueError(f"prompt: {len(self.prompt)} prompts times n; at most {MAXIMUM_PROMPTS} answers a request")
        return self


# ---- answers


class Usage(Spec):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(Spec):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Spec):
    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(Spec):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = Field(description="What answered: an alias as the version that it pointed at.")
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str = Field(description="Equal fingerprints, equal weights.")


class TextChoice(Spec):
    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason


class Completion(Spec):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str


class ModelObject(Spec):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since the epoch; 0 where it is not known.")
    owned_by: str


class ModelList(Spec):
    object: Literal["list"] = "list"
    data: list[ModelObject]
