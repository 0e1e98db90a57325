"""Kernels of the fast path, compiled while rows are prepared and weights are read.

In: facts and settings. A decoder with as many layers as differ (first, middle, last) runs a step and an evaluation on
the meta device, which computes nothing; the kernels that it would have launched are compiled by threads. What is
compiled lies in Triton's cache afterwards, so a machine's second run of the kind finds all of it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import torch

from tunesmith.data.batch import IGNORE_INDEX, Batch
from tunesmith.errors import TunesmithError
from tunesmith.kernels.backend import Foreseen, compile_foreseen, foreseeing
from tunesmith.models import skeleton
from tunesmith.models.decoder import Decoder
from tunesmith.models.folder import CONFIG, MAXIMUM_CONFIG_BYTES, read_json
from tunesmith.models.lora import inject
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

DIFFERENT_LAYERS = 3  # the first has no input gradient, the last goes on with the labelled tokens
THREADS = 16
_TOKENS = 512


class Ahead:
    """Compiles from now on; `wait` before the first launch, or the same kernel would be compiled twice."""

    def __init__(self, facts: ModelFacts, settings: TrainingSettings, *, device: torch.device) -> None:
        self._thread = threading.Thread(target=self._run, args=(facts, settings, device), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    @staticmethod
    def _run(facts: ModelFacts, settings: TrainingSettings, device: torch.device) -> None:
        try:
            found = foreseen_launches(facts, settings)
        except (TunesmithError, OSError):
            return  # loading refuses the model, and says why
        compile_foreseen(found, device=device, threads=min(THREADS, os.cpu_count() or 1))


def foreseen_launches(facts: ModelFacts, settings: TrainingSettings) -> list[Foreseen]:
    """Of a training step and an evaluation; none for a model that `skeleton.build` does not build."""
    config = read_json(Path(facts.path) / CONFIG, limit=MAXIMUM_CONFIG_BYTES)
    if skeleton.why_not(config) is not None:
        return []
    few = facts.model_copy(update={"num_layers": min(DIFFERENT_LAYERS, facts.num_layers)})
    model = skeleton.build(few, config).to(torch.bfloat16).requires_grad_(False)
    model.model.rotary_emb.to("meta")
    inject(model, settings=settings)
    with foreseeing() as foreseen:
        decoder = Decoder(model, settings=settings)
        decoder.train(_batch(), seed=0, step=1, divisor=1)
        decoder.scores(_batch())
    return foreseen


def _batch() -> Batch:
    labels = np.full(_TOKENS, IGNORE_INDEX, np.int64)
    labels[_TOKENS // 2 : -1] = 0
    return Batch(
        tokens_T=np.zeros(_TOKENS, np.int64), labels_T=labels, positions_T=np.arange(_TOKENS),
        boundaries=np.array([0, _TOKENS], np.int32), rows=np.zeros(1, np.int64), offset_in_step=0,
        num_learned=int((labels >= 0).sum()),
    )  # fmt: skip
