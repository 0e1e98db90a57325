"""What the first steps on a GPU would wait for, done while rows are prepared and weights are read.

In: facts, settings and, once they are known, the first batches. A decoder with as many layers as differ (first, middle,
last) runs them on the meta device, which computes nothing. The kernels that it would have launched are compiled by
threads; they lie in Triton's cache afterwards, so a machine's second run of the kind finds them. Its products are made
once on the device with any values: cuBLAS looks up and loads a kernel for each new size, and does so in each process.

Of the generic path only the kernels of ours are foreseen, from the sizes of the modules that get an adapter.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith.data.batch import IGNORE_INDEX, Batch
from tunesmith.errors import TunesmithError
from tunesmith.kernels.backend import Foreseen, compile_foreseen, foreseeing, triton_fault
from tunesmith.kernels.cross_entropy import cross_entropy
from tunesmith.models import lora_product, skeleton
from tunesmith.models.decoder import Decoder
from tunesmith.models.folder import CONFIG, MAXIMUM_CONFIG_BYTES, read_json
from tunesmith.models.lora import inject
from tunesmith.models.targets import choose_targets
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

DIFFERENT_LAYERS = 3  # the first has no input gradient, the last goes on with the labelled tokens
THREADS = 16
ROOM_BYTES = 8 << 30  # free beside the weights: the products' operands must be in nobody's way while those are read
_TOKENS = 512


class Product(NamedTuple):
    """A product's operation and the sizes, strides and dtypes of its operands."""

    operation: Any
    operands: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]

    def make(self, device: torch.device) -> None:
        self.operation(*(torch.empty_strided(*form[:2], dtype=form[2], device=device) for form in self.operands))


class Ahead:
    """Works from now on; `wait` before the first launch, or the same kernel would be compiled twice."""

    def __init__(self, facts: ModelFacts, settings: TrainingSettings, *, device: torch.device, is_fast: bool) -> None:
        self._facts, self._settings, self._device, self._is_fast = facts, settings, device, is_fast
        self._threads: list[threading.Thread] = []
        self._start(self._compile)

    def expect(self, batches: Sequence[Batch]) -> None:
        """The first ones to train on."""
        if self._is_fast:
            self._start(lambda: self._multiply(batches))

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()
        torch.cuda.empty_cache()  # what the products lay in belongs to a stream that is not used again

    def _start(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()

    def _compile(self) -> None:
        if triton_fault(self._device) is not None:
            return
        foreseen = (foreseen_launches if self._is_fast else foreseen_of_modules)(self._facts, self._settings)
        compile_foreseen(foreseen, device=self._device, threads=min(THREADS, os.cpu_count() or 1))

    def _multiply(self, batches: Sequence[Batch]) -> None:
        needed = 2 * self._facts.parameters + ROOM_BYTES
        if triton_fault(self._device) is not None or torch.cuda.mem_get_info(self._device.index or 0)[0] < needed:
            return
        products = foreseen_products(self._facts, self._settings, batches)
        # memory, a fault of the driver's: nothing depends on it here, and where something does, the run tells
        with suppress(RuntimeError), torch.no_grad(), torch.cuda.stream(torch.cuda.Stream(self._device)):
            for product in products:
                product.make(self._device)


def foreseen_launches(facts: ModelFacts, settings: TrainingSettings) -> list[Foreseen]:
    """Of a training step and an evaluation; none for a model that `skeleton.build` does not build."""
    with foreseeing() as foreseen:
        decoder = _decoder(facts, settings)
        if decoder is not None:
            decoder.train(_batch(), seed=0, step=1, divisor=1)
            decoder.scores(_batch())
    return foreseen


def foreseen_of_modules(facts: ModelFacts, settings: TrainingSettings) -> list[Foreseen]:
    """Of a training step and an evaluation on the generic path; none for what loading will refuse."""
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    names = {module.name: module.in_features for module in facts.linear_modules}
    try:
        sizes = {names[name] for name in choose_targets(list(names), targets=settings.target_modules)}
    except TunesmithError:
        return []
    with foreseeing() as foreseen, torch.device("meta"):
        for features in sorted(sizes):
            lora_product.foresee(features, rank=settings.lora_rank, dropout=settings.lora_dropout, dtype=dtype)
        logits_NV = torch.empty(1, facts.vocabulary_size, dtype=dtype)
        for factor in (torch.ones(()), None):
            cross_entropy(logits_NV, torch.empty(1, dtype=torch.int64), factor=factor)
    return foreseen


def foreseen_products(facts: ModelFacts, settings: TrainingSettings, batches: Sequence[Batch]) -> set[Product]:
    """Of training on these batches."""
    found: set[Product] = set()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func in _PRODUCTS:
                tensors = [part for part in args if isinstance(part, Tensor)]
                forms = tuple((part.shape, part.stride(), part.dtype) for part in tensors)
                found.add(Product(_PRODUCTS[func], forms))
            return func(*args, **(kwargs or {}))

    with foreseeing():
        decoder = _decoder(facts, settings)
        if decoder is not None:
            with Noting():
                for batch in batches:
                    decoder.train(batch, seed=0, step=1, divisor=1)
    return found


_PRODUCTS: dict[Any, Any] = {
    torch.ops.aten.mm.default: torch.mm, torch.ops.aten.mm.out: torch.mm, torch.ops.aten.addmm.default: torch.addmm,
}  # fmt: skip


def _decoder(facts: ModelFacts, settings: TrainingSettings) -> Decoder | None:
    """On the meta device. None where we do not build the model, or where loading it will say what is wrong."""
    try:
        config = read_json(Path(facts.path) / CONFIG, limit=MAXIMUM_CONFIG_BYTES)
        if skeleton.why_not(config) is not None:
            return None
        few = facts.model_copy(update={"num_layers": min(DIFFERENT_LAYERS, facts.num_layers)})
        model = skeleton.build(few, config).to(torch.bfloat16).requires_grad_(False)
        model.model.rotary_emb.to("meta")
        inject(model, settings=settings)
        return Decoder(model, settings=settings)
    except (TunesmithError, OSError, ValueError):
        return None


def _batch() -> Batch:
    labels = np.full(_TOKENS, IGNORE_INDEX, np.int64)
    labels[_TOKENS // 2 : -1] = 0
    return Batch(
        tokens_T=np.zeros(_TOKENS, np.int64), labels_T=labels, positions_T=np.arange(_TOKENS),
        boundaries=np.array([0, _TOKENS], np.int32), rows=np.zeros(1, np.int64), offset_in_step=0,
        num_learned=int((labels >= 0).sum()),
    )  # fmt: skip
