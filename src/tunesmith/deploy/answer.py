"""One answer to one prompt: token by token until an end token, a stop text, or the limit.

In: the prompt's tokens and how to choose. Out: text in pieces, the reason of its end, the number of its tokens.
"""

from __future__ import annotations

from torch import nn

from tunesmith.data.pieces import TextPieces
from tunesmith.data.render import Renderer
from tunesmith.deploy.choose import Chooser
from tunesmith.deploy.stops import StopTexts
from tunesmith.errors import InputRefused
from tunesmith.models.generate import Decoding
from tunesmith.spec.serving import FinishReason, GenerateFrame

TOKENS_BEFORE = 8  # of a prompt whose text goes on: what a tokenizer may look at to its left


class Answer:
    def __init__(
        self, model: nn.Module, frame: GenerateFrame, *, prompt: list[int], room: int, choice: int, renderer: Renderer
    ) -> None:
        """room: tokens that may be made."""
        # An untuned base goes on with the prompt's text, its first space included. A tuned one learned completions,
        # which were encoded apart from their prompts.
        goes_on = frame.adapter is None and frame.render == "plain"
        self._decoding = Decoding(model, prompt)
        self._chooser = Chooser(frame.sampling, choice=choice)
        self._pieces = TextPieces(renderer.tokenizer.decode, before=prompt[-TOKENS_BEFORE:] if goes_on else ())
        self._stops = StopTexts(frame.sampling.stop)
        self._end_ids = frozenset(renderer.stop_ids)
        self._room = room
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def step(self) -> str:
        """The next token's text, which may be empty; `finish_reason` is set with the last."""
        logits_V = self._decoding.advance()
        if logits_V is None:
            return ""
        token = self._chooser.choose(logits_V)
        self.num_tokens += 1
        if token in self._end_ids:
            self.finish_reason = "stop"
            return self._ending()
        text = self._stops.add(self._pieces.add(token))
        if self._stops.is_found:
            self.finish_reason = "stop"
        elif self.num_tokens == self._room:
            self.finish_reason = "length"
            text += self._ending()
        else:
            self._decoding.add(token)
        return text

    def _ending(self) -> str:
        text = self._stops.add(self._pieces.rest())
        if self._stops.is_found:
            self.finish_reason = "stop"
        return text + self._stops.rest()


def require_room(frame: GenerateFrame, *, prompt: list[int], context_length: int) -> int:
    """How many tokens may be made. Raises InputRefused where prompt and answer do not fit the model's context."""
    if not prompt:
        raise InputRefused(
            "PROMPT_WITHOUT_TOKENS",
            "The prompt is empty, and this model has no start token that could stand for it.",
            field="prompt",
            hint="Give at least one character.",
        )
    room = context_length - len(prompt)
    wanted = frame.sampling.max_tokens
    if room < 1 or (wanted is not None and wanted > room):
        asked = "" if wanted is None else f" and {wanted:,} more are asked for"
        raise InputRefused(
            "CONTEXT_LENGTH_EXCEEDED",
            f"The prompt has {len(prompt):,} tokens{asked}; the model's context is {context_length:,}.",
            field="max_tokens" if room > 0 else "prompt" if frame.messages is None else "messages",
            hint="Shorten the prompt, or ask for fewer tokens.",
        )
    return room if wanted is None else wanted
