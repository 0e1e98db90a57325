"""One optimiser step: the step's rows in, one update of the adapter out.

The tokens of the whole step are counted first and divided by once, so 8 x 1, 4 x 2 and 1 x 8 micro-batches give
the same loss and gradient (means of means would not: batches hold different token counts).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.data.batch import Batch, padded
from tunesmith.models.decoder import decoder_of
from tunesmith.models.forward import hidden_states, output_head
from tunesmith.models.lora import set_dropout_position
from tunesmith.models.loss import HeadLoss, head_loss
from tunesmith.train.optimizer import FlatAdamW

GPU_TOKENS_MULTIPLE = 128  # rows of the largest block that a kernel works on


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    loss: float  # nats a learned token; may be non-finite, then no update was made
    gradient_norm: float
    tokens: int
    learned_tokens: int
    seconds: float
    waited_seconds: float  # of them, for the device, after all was handed to it

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def forward_scores(model: nn.Module, batch: Batch, *, device: torch.device) -> HeadLoss:
    """Run one packed batch through the model; the head sees labelled positions only.

    Without gradients it takes the fast path where the model has one; `Decoder.refresh` has been called before.
    """
    if not torch.is_grad_enabled() and (decoder := decoder_of(model)) is not None:
        return decoder.scores(batch)
    if device.type == "cuda":
        batch = padded(batch, multiple=GPU_TOKENS_MULTIPLE)
    labels_T = torch.from_numpy(batch.labels_T).to(device, non_blocking=True)
    return head_loss(hidden_states(model, batch, device=device), head=output_head(model), labels_T=labels_T)


def train_step(
    model: nn.Module,
    optimizer: FlatAdamW,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    learning_rate: float,
    max_gradient_norm: float,
    device: torch.device,
    meanwhile: Callable[[], None] = lambda: None,
) -> StepOutcome:
    """Forward, backward and update over the micro-batches of a step; a non-finite loss or gradient changes nothing.

    `meanwhile` is called while the device still computes: the place to make the next step's batches.
    """
    started = time.perf_counter()
    learned_tokens = sum(batch.num_learned for batch in batches)
    loss_sum = torch.zeros((), device=device)
    optimizer.zero_gradient()
    decoder = decoder_of(model)
    if decoder is not None:
        decoder.refresh(is_enabled=True)
    for batch in batches:
        # Masks depend on the token's place in the step, so they do not move with the micro-batches.
        if decoder is not None:
            loss_sum += decoder.train(batch, seed=seed, step=step, divisor=learned_tokens)
            continue
        set_dropout_position(model, seed=seed, step=step, offset=batch.offset_in_step)
        scores = forward_scores(model, batch, device=device)
        (scores.loss_sum / learned_tokens).backward()
        loss_sum += scores.loss_sum.detach()
    both = torch.stack([loss_sum, optimizer.gradient_norm()])
    meanwhile()
    handed_over = time.perf_counter()
    total, norm = both.tolist()  # waits for the device
    waited = time.perf_counter() - handed_over
    loss = total / learned_tokens
    if math.isfinite(loss) and math.isfinite(norm):
        optimizer.update(learning_rate=learning_rate, norm=norm, max_norm=max_gradient_norm)
    return StepOutcome(
        loss=loss,
        gradient_norm=norm,
        tokens=sum(len(batch.tokens_T) for batch in batches),
        learned_tokens=learned_tokens,
        seconds=time.perf_counter() - started,
        waited_seconds=waited,
    )
