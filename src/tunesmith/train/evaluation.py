"""Scores of a set of rows: loss, token accuracy, completion accuracy, and each row's own figures.

One code for base and tuned model, training and validation rows. Dropout is off; no logits are kept: the loss
head hands back each labelled position's negative log-likelihood and whether its arg-max was right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tunesmith.data.batch import Batch, evaluation_batches
from tunesmith.data.prepare import ExampleSet
from tunesmith.models.decoder import decoder_of
from tunesmith.models.lora import clear_dropout_position, is_enabled
from tunesmith.models.loss import HeadLoss
from tunesmith.spec.metrics import SplitMetrics
from tunesmith.spec.training import sampled_rows
from tunesmith.train.step import forward_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """Per row, in the order of the rows asked for: sums over its completion tokens."""

    nll_R: np.ndarray  # float64, nats
    tokens_R: np.ndarray  # int64
    right_R: np.ndarray  # int64, tokens whose arg-max is right
    end_is_right_R: np.ndarray  # bool, the last learned token, the end token unless cut

    def metrics(self) -> SplitMetrics:
        tokens = int(self.tokens_R.sum())
        return SplitMetrics(
            loss=float(self.nll_R.sum() / tokens),
            token_accuracy=float(self.right_R.sum() / tokens),
            completion_accuracy=float(np.mean(self.right_R == self.tokens_R)),
        )


def training_sample(num_training: int, num_validation: int, *, seed: int) -> np.ndarray:
    """The fixed rows on which training metrics are measured; how many, `sampled_rows` says."""
    wanted = sampled_rows(training=num_training, validation=num_validation)
    if wanted == num_training:
        return np.arange(num_training)
    chosen = np.random.Generator(np.random.Philox(key=[seed, 0x5A4D])).choice(num_training, wanted, replace=False)
    return np.sort(chosen)


@torch.no_grad()
def score_rows(
    model: nn.Module,
    examples: ExampleSet,
    rows: np.ndarray,
    *,
    device: torch.device,
    max_tokens: int,
    between_batches: Callable[[int, int], None] = lambda done, total: None,
) -> RowScores:
    """Score `rows` of `examples`. `between_batches(rows done, rows in all)` may raise to stop."""
    place = {int(row): index for index, row in enumerate(rows)}
    nll_R = np.zeros(len(rows))
    tokens_R = np.zeros(len(rows), dtype=np.int64)
    right_R = np.zeros(len(rows), dtype=np.int64)
    end_R = np.zeros(len(rows), dtype=bool)
    done = 0
    clear_dropout_position(model)
    if (decoder := decoder_of(model)) is not None:
        decoder.refresh(is_enabled=is_enabled(model))
    waiting: tuple[Batch, HeadLoss] | None = None
    for upcoming in (*evaluation_batches(examples, rows, max_tokens=max_tokens), None):
        # a batch is handed to the device before the one ahead of it is waited for
        launched = None if upcoming is None else (upcoming, forward_scores(model, upcoming, device=device))
        found, waiting = waiting, launched
        if found is None:
            continue
        batch, scores = found
        nll_N = scores.nll_N.double().cpu().numpy()
        right_N = scores.is_right_N.cpu().numpy()
        document_N = np.searchsorted(batch.boundaries, scores.positions_N.cpu().numpy(), side="right") - 1
        index_N = np.array([place[row] for row in batch.rows])[document_N]
        np.add.at(nll_R, index_N, nll_N)
        np.add.at(tokens_R, index_N, 1)
        np.add.at(right_R, index_N, right_N)
        end_R[index_N] = right_N  # the last labelled token of a row is written last
        done += len(batch.rows)
        between_batches(done, len(rows))
    return RowScores(nll_R=nll_R, tokens_R=tokens_R, right_R=right_R, end_is_right_R=end_R)
