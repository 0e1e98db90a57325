"""Generation with a key-value cache: whole greedy answers to a few prompts, or one answer token by token.

`greedy` (samples, the verdict's exact match) runs left-padded batches, with whatever adapter the model carries at that
moment; finished answers leave the batch. A model with a decoder (the fast path) answers by that. `Decoding` is one
answer whose tokens somebody else chooses, one at a time; `deploy/` serves by it. In come token ids of rendered prompts.

Dimensions: B prompts of a batch, L longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.models.decoder import decoder_of
from tunesmith.models.decoder_answers import batches_of, greedy_batch
from tunesmith.models.lora import is_enabled

BATCH_TOKENS = 16_384  # prompt and answer places of one batch; bounds the cache
PREFILL_TOKENS = 1_024  # of a long prompt in one forward; bounds its attention mask


@torch.inference_mode()
def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Collection[int]
) -> list[list[int]]:
    """The most likely next token, again and again, until an end token or `max_new_tokens`; in the prompts' order.

    Raises ValueError for an empty prompt.
    """
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    answers: list[list[int]] = [[] for _ in prompts]
    if (decoder := decoder_of(model)) is not None:
        decoder.refresh(is_enabled=is_enabled(model))
        for batch in batches_of(prompts, max_new_tokens=max_new_tokens):
            found = greedy_batch(
                decoder, [prompts[index] for index in batch], max_new_tokens=max_new_tokens, end_ids=frozenset(end_ids)
            )
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
        return answers
    by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while by_length:
        places = len(prompts[by_length[0]]) + max_new_tokens
        count = max(1, BATCH_TOKENS // places)
        batch, by_length = by_length[:count], by_length[count:]
        found = _greedy_batch(model, [prompts[index] for index in batch], max_new_tokens, frozenset(end_ids))
        for index, answer in zip(batch, found, strict=True):
            answers[index] = answer
    return answers


def _greedy_batch(
    model: nn.Module, prompts: list[Sequence[int]], max_new_tokens: int, end_ids: frozenset[int]
) -> list[list[int]]:
    from transformers import DynamicCache

    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = torch.tensor(
        [[0] * missing + list(prompt) for missing, prompt in zip(padding, prompts, strict=True)], device=device
    )
    is_real = torch.arange(longest + max_new_tokens, device=device) >= torch.tensor(padding, device=device)[:, None]
    positions = (torch.arange(longest, device=device) - torch.tensor(padding, device=device)[:, None]).clamp_(min=0)
    cache = DynamicCache(config=cast(Any, model).config)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # of each place in the batch
    finished: set[int] = set()
    for number in range(max_new_tokens):
        logits_BV = _next_logits(model, tokens, is_real[:, : longest + number], positions, cache)
        chosen = logits_BV.argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if token in end_ids:
                finished.add(row)
            elif row not in finished:
                answers[row].append(token)
        going_on = [place for place, row in enumerate(rows) if row not in finished]
        if not going_on:
            break
        if 2 * len(going_on) <= len(rows):  # dropping rows copies the cache: done when it halves the work
            keep = torch.tensor(going_on, device=device)
            cache.batch_select_indices(keep)
            is_real, positions, chosen = is_real[keep], positions[keep], chosen[keep]
            rows = [rows[place] for place in going_on]
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
    return answers


class Decoding:
    """One prompt and the answer so far. The adapter that the model carries must be the same at every call.

    Raises ValueError for an empty prompt.
    """

    def __init__(self, model: nn.Module, prompt: Sequence[int]) -> None:
        from transformers import DynamicCache

        if not prompt:
            raise ValueError("a prompt needs at least one token")
        self._model = model
        self._device = next(model.parameters()).device
        self._cache = DynamicCache(config=cast(Any, model).config)
        self._waiting = list(prompt)  # not yet in the cache
        self._num_cached = 0

    def advance(self) -> Tensor | None:
        """Logits (V,) float32 of the next token; None while a part of a long prompt is still to be read."""
        part, self._waiting = self._waiting[:PREFILL_TOKENS], self._waiting[PREFILL_TOKENS:]
        first, self._num_cached = self._num_cached, self._num_cached + len(part)
        with torch.inference_mode():
            logits_BV = _next_logits(
                self._model,
                torch.tensor([part], device=self._device),
                torch.ones(1, self._num_cached, dtype=torch.bool, device=self._device),
                torch.arange(first, self._num_cached, device=self._device)[None, :],
                self._cache,
            )
        return None if self._waiting else logits_BV[0].float()

    def add(self, token: int) -> None:
        """The token that was chosen after the last `advance`."""
        self._waiting.append(token)


def _next_logits(model: nn.Module, tokens: Tensor, is_real: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Logits (B, V) after the last of `tokens`; the cache grows by them."""
    output = model(
        input_ids=tokens,
        attention_mask=is_real.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]
