"""Which code computes the layers of a run, and how: set up once, after the adapter is on; changed when memory asks.

In: the model with its adapter, and what the plan settled. Out: a `Path` that tells what runs and why, with the layers
compiled or computed twice as settled, and with passes replayed where the first steps show that the device waits for the
host. Nothing here changes what is computed.
"""

from __future__ import annotations

from importlib import util
from typing import Literal

import torch
from torch import nn

from tunesmith.errors import MachineCannot
from tunesmith.kernels.backend import triton_fault
from tunesmith.models.decoder import Decoder, why_not
from tunesmith.models.layers import checkpoint_layers, compile_layers, decoder_layers, uncompile_layers
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.paths import why_not_fast
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.step import StepOutcome

OBSERVED_STEPS = 3  # after the first, which compiles
REPLAY_PAYS_SECONDS = 4.0  # of steps to come: ten forms of batches take about a second to record


class Path:
    """What runs: name, reason, whether it is compiled or replayed, and how many layers are computed twice.

    triton_fault: what Triton failed with here, though it is installed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: Literal["fast", "generic"],
        reason: str,
        decoder: Decoder | None = None,
        triton_fault: str | None = None,
    ) -> None:
        self._model = model
        self.triton_fault = triton_fault
        self._decoder = decoder
        self.name: Literal["fast", "generic"] = name
        self.reason = reason
        self.is_compiled = False
        self.checkpointed_layers = 0
        self._observed = 0
        self._host_bound = 0

    @property
    def is_replayed(self) -> bool:
        return self._decoder is not None and self._decoder.replays.is_on

    @property
    def replay_fault(self) -> str | None:
        """Why passes could not be recorded, or go on being."""
        return None if self._decoder is None else self._decoder.replays.fault

    def observe(self, outcome: StepOutcome, *, steps_left: int) -> bool:
        """Whether passes are replayed from now on, since one of the first steps; they are where it pays."""
        self._observed += 1
        if self._decoder is None or self._decoder.device.type != "cuda" or self.is_replayed or self.replay_fault:
            return False
        if self._observed > 1 + OBSERVED_STEPS:
            return False
        self._host_bound += self._observed > 1 and outcome.was_idle
        if self._host_bound < OBSERVED_STEPS or steps_left * outcome.seconds < REPLAY_PAYS_SECONDS:
            return False
        self._decoder.replays.is_on = True
        return True

    def forget_recordings(self) -> None:
        """Give their memory back; they are made anew."""
        if self._decoder is not None:
            self._decoder.replays.forget()

    @property
    def num_layers(self) -> int:
        return len(decoder_layers(self._model))

    def compile(self) -> None:
        compile_layers(self._model)
        self.is_compiled = True

    def uncompile(self) -> None:
        uncompile_layers(self._model)
        self.is_compiled = False

    def checkpoint(self, count: int) -> None:
        if self._decoder is not None:
            self._decoder.recomputed = count
        else:
            checkpoint_layers(self._model, count)
        self.checkpointed_layers = count


def may_be_fast(facts: ModelFacts, settings: TrainingSettings, *, device: torch.device) -> bool:
    """Whether the fast path can take this run, as far as is known before the GPU is asked anything."""
    return settings.path != "generic" and _why_not_fast(facts, settings, device) is None


def why_generic(facts: ModelFacts, settings: TrainingSettings, *, device: torch.device) -> str | None:
    """Why this run takes the generic path on this machine, as far as is known without the model."""
    if settings.path == "generic":
        return "as planned"
    obstacle = _why_not_fast(facts, settings, device)
    if obstacle is None and (fault := _fault(device)) is not None:
        obstacle = f"Triton, which its kernels are written in, fails on this machine: {fault}"
    return obstacle


def _why_not_fast(facts: ModelFacts, settings: TrainingSettings, device: torch.device) -> str | None:
    return why_not_fast(facts, settings, device=device.type, has_triton=_has_triton())


def _has_triton() -> bool:
    return util.find_spec("triton") is not None


def _fault(device: torch.device) -> str | None:
    return triton_fault(device) if device.type == "cuda" and _has_triton() else None


def set_up_path(model: nn.Module, *, facts: ModelFacts, settings: TrainingSettings, device: torch.device) -> Path:
    """Raises MachineCannot where the path that was asked for cannot compute this run."""
    obstacle = why_generic(facts, settings, device=device)
    if obstacle is None:
        obstacle = why_not(model, settings)
    if settings.path == "fast" and obstacle is not None:
        raise MachineCannot("PATH_NOT_POSSIBLE", f"The fast path cannot compute this run: {obstacle}.", field="path")
    recomputed = 0 if settings.checkpointed_layers == "auto" else settings.checkpointed_layers
    if obstacle is None:
        path = Path(model, name="fast", reason="as planned", decoder=Decoder(model, settings=settings))
        path.checkpoint(recomputed)
        return path
    fault = _fault(device)
    path = Path(model, name="generic", reason=obstacle, triton_fault=fault)
    path.checkpoint(recomputed)
    if settings.compile_layers != "off" and device.type == "cuda" and _has_triton() and fault is None:
        path.compile()
    return path
