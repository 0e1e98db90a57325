"""One optimiser step: the step's rows in, one update of the adapter out.

The tokens of the whole step are counted first and divided by once, so 8 x 1, 4 x 2 and 1 x 8 micro-batches give
the same loss and gradient (means of means would not: batches hold different token counts).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.data.batch import Batch
from tunesmith.models.forward import hidden_states, output_head
from tunesmith.models.lora import set_dropout_position
from tunesmith.models.loss import HeadLoss, head_loss
from tunesmith.train.optimizer import FlatAdamW


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    loss: float  # nats a learned token; may be non-finite, then no update was made
    gradient_norm: float
    tokens: int
    learned_tokens: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def forward_scores(model: nn.Module, batch: Batch, *, device: torch.device) -> HeadLoss:
    """Run one packed batch through the model; the head sees labelled positions only."""
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
) -> StepOutcome:
    """Forward, backward and update over the micro-batches of a step; a non-finite loss or gradient changes nothing."""
    started = time.perf_counter()
    learned_tokens = sum(batch.num_learned for batch in batches)
    loss_sum = torch.zeros((), device=device)
    optimizer.zero_gradient()
    for batch in batches:
        # Masks depend on the token's place in the step, so they do not move with the micro-batches.
        set_dropout_position(model, seed=seed, step=step, offset=batch.offset_in_step)
        scores = forward_scores(model, batch, device=device)
        (scores.loss_sum / learned_tokens).backward()
        loss_sum += scores.loss_sum.detach()
    loss, norm = float(loss_sum) / learned_tokens, optimizer.gradient_norm()
    if math.isfinite(loss) and math.isfinite(norm):
        optimizer.update(learning_rate=learning_rate, norm=norm, max_norm=max_gradient_norm)
    return StepOutcome(
        loss=loss,
        gradient_norm=norm,
        tokens=sum(len(batch.tokens_T) for batch in batches),
        learned_tokens=learned_tokens,
        seconds=time.perf_counter() - started,
    )
