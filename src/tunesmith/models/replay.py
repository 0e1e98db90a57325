"""Passes recorded as CUDA graphs: a small model's device waits for the host, which needs 40 microseconds a launch.

In: a pass as a function of tensors that stay where they are, whose launches depend on a `Form` alone. At a form's
second batch the pass is recorded, from the third on replayed: all its launches cost the host about one. What it
computes is the same, bit for bit.

Recordings share one pool of memory: each overwrites what the last left in it, so a result is used before the next run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.decoder_inputs import Form, Laid

MOST_RECORDINGS = 64  # of as many forms; a recording takes some megabytes beside the pool


class Recording:
    """What a function launches on the device, and its result, the same tensor after each replay.

    stream: to record on; memory of a pool is used again by what is recorded on the same one.
    Raises RuntimeError (torch.OutOfMemoryError among them) where it cannot be recorded; nothing was computed then.
    """

    def __init__(self, work: Callable[[], Tensor], *, stream: torch.cuda.Stream, pool: Any = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            # other threads (a checkpoint's, the next batch's) may go on with what they do
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self._result = work()
            finally:
                self._graph.capture_end()
        current.wait_stream(stream)

    def replay(self) -> Tensor:
        self._graph.replay()
        return self._result


@dataclass(frozen=True, slots=True)
class Static:
    """Where a recording reads its batch, the step's key (int32) and the loss's factor (float32)."""

    laid: Laid
    step: Tensor
    factor: Tensor


Pass = Callable[[Laid, Tensor, Tensor], Tensor]


class Replays:
    """Runs a pass over batches, from recordings while `is_on`. fault: why it went back to single launches."""

    def __init__(self, run: Pass, *, device: torch.device) -> None:
        self._run, self._device = run, device
        self._seen: set[Any] = set()
        self._recorded: dict[Any, tuple[Static, Recording]] = {}
        self._pool: Any = None
        self._stream: Any = None
        self.is_on = False
        self.fault: str | None = None

    def forget(self) -> None:
        """Give the recordings' memory back."""
        self._seen.clear()
        self._recorded.clear()
        self._pool = None

    def fail(self, reason: RuntimeError | str) -> None:
        """Go on launch by launch."""
        self.fault = " ".join(str(reason).split())[:200]
        self.is_on = False
        self.forget()

    def run(self, laid: Laid, step: Tensor, factor: Tensor, *, state: Any) -> Tensor:
        """state: what the pass's launches depend on beside the form."""
        key: tuple[Form, Any] = (laid.form, state)
        if not self.is_on or (key not in self._recorded and not self._record(key, laid, step, factor)):
            return self._run(laid, step, factor)
        static, recording = self._recorded[key]
        static.laid.copy_(laid)
        static.step.copy_(step)
        static.factor.copy_(factor)
        return recording.replay()

    def _lack(self) -> str | None:
        """Why recordings would take memory that is needed: they keep theirs, and other passes run beside them."""
        needed = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        if free < 2 * needed:
            torch.cuda.empty_cache()  # a recording cannot do so itself
            free, _ = torch.cuda.mem_get_info(self._device)
        if free >= 2 * needed or self._pool is not None:  # which holds what a pass needs
            return None
        return (
            f"a pass takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: recordings want as much again"
        )

    def _record(self, key: Any, laid: Laid, step: Tensor, factor: Tensor) -> bool:
        """Whether the pass is recorded now. Its first run, launch by launch, loads what it needs."""
        if key not in self._seen:
            self._seen.add(key)
            return False
        if len(self._recorded) == MOST_RECORDINGS:
            self._recorded.clear()
            self._pool = None  # torch takes none again whose recordings are all gone
        if (lack := self._lack()) is not None:
            self.fail(lack)
            return False
        static = Static(laid.clone(), step.clone(), factor.clone())
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        self._stream = self._stream or torch.cuda.Stream(self._device)
        try:
            recording = Recording(
                lambda: self._run(static.laid, static.step, static.factor), stream=self._stream, pool=self._pool
            )
        except RuntimeError as error:
            self.fail(error)
            return False
        self._recorded[key] = static, recording
        return True
