"""One optimiser step: the step's rows in, one update of the adapter out.

The tokens of the whole step are counted first and divided by once, so 8 x 1, 4 x 2 and 1 x 8 micro-batches give
the same loss and gradient (means of means would not: batches hold different token counts).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    was_idle: bool = False  # the device had done all that it was handed before the host came with more

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


@dataclass(frozen=True, slots=True)
class Begun:
    """A step whose first micro-batch is on its way through the device. loss: summed."""

    step: int
    first: Batch
    loss: Tensor


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
    begun: Begun | None = None,
    upcoming: Callable[[], Sequence[Batch]] = list,
) -> tuple[StepOutcome, Begun | None]:
    """Forward, backward and update over the micro-batches of a step; a non-finite loss or gradient changes nothing.

    `upcoming` is called while the device still computes: the place to make the next step's batches. If it returns them,
    the fast path on a GPU begins that step before it waits for this one; hand what comes second to the next call.
    """
    started = time.perf_counter()
    learned_tokens = sum(batch.num_learned for batch in batches)
    if begun is None or begun.step != step or begun.first is not batches[0]:
        begun = _begin(model, optimizer, batches, seed=seed, step=step, device=device)
    loss_sum, decoder = begun.loss, decoder_of(model)
    if decoder is not None and len(batches) > 1:
        decoder.refresh(is_enabled=True)  # an evaluation of the base may have come between
    for batch in batches[1:]:
        loss_sum = loss_sum + _pass(model, batch, seed=seed, step=step, divisor=learned_tokens, device=device)
    told = torch.stack([loss_sum, optimizer.gradient_norm()])
    clipping = {"learning_rate": learning_rate, "max_norm": max_gradient_norm}
    next_begun: Begun | None = None
    if is_asynchronous(device):
        arrival = _Arrival(told)
        next_batches = upcoming()  # it may fail: before the update, so that the step can be repeated
        was_idle = arrival.is_there()
        optimizer.update_unless_bad(loss=told[0], norm=told[1], **clipping)
        if next_batches and decoder is not None:
            with suppress(RuntimeError):  # no memory: that step meets it again, when it can be repeated
                next_begun = _begin(model, optimizer, next_batches, seed=seed, step=step + 1, device=device)
        total, norm = arrival.values()
        optimizer.updates += math.isfinite(total) and math.isfinite(norm)
    else:
        upcoming()
        was_idle = False
        total, norm = told.tolist()
        if math.isfinite(total) and math.isfinite(norm):
            optimizer.update(norm=norm, **clipping)
    outcome = StepOutcome(
        loss=total / learned_tokens,
        gradient_norm=norm,
        tokens=sum(len(batch.tokens_T) for batch in batches),
        learned_tokens=learned_tokens,
        seconds=time.perf_counter() - started,
        was_idle=was_idle,
    )
    return outcome, next_begun


def is_asynchronous(device: torch.device) -> bool:
    """Whether the device goes on with what it was handed while the host does other things."""
    return device.type == "cuda"


def _begin(
    model: nn.Module, optimizer: FlatAdamW, batches: Sequence[Batch], *, seed: int, step: int, device: torch.device
) -> Begun:
    optimizer.zero_gradient()
    if (decoder := decoder_of(model)) is not None:
        decoder.refresh(is_enabled=True)
    learned_tokens = sum(batch.num_learned for batch in batches)
    loss = _pass(model, batches[0], seed=seed, step=step, divisor=learned_tokens, device=device)
    return Begun(step, batches[0], loss.clone())


def _pass(model: nn.Module, batch: Batch, *, seed: int, step: int, divisor: int, device: torch.device) -> Tensor:
    """Summed loss of a micro-batch; its gradients are added.

    Masks depend on the token's place in the step, so they do not move with the micro-batches.
    """
    if (decoder := decoder_of(model)) is not None:
        return decoder.train(batch, seed=seed, step=step, divisor=divisor)
    set_dropout_position(model, seed=seed, step=step, offset=batch.offset_in_step)
    scores = forward_scores(model, batch, device=device)
    (scores.loss_sum / divisor).backward()
    return scores.loss_sum.detach()


class _Arrival:
    """Values on their way to the host; nothing that the device is handed later is waited for."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._event = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def is_there(self) -> bool:
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()
