"""How the layers of transformers' model are run in a packed forward pass: compiled one by one, or again in the backward
pass instead of kept.

In: a model. `compile_layers` has torch.compile work on each layer, `checkpoint_layers` chooses how many are computed a
second time. Layers and not the model: one layer's code serves all of them, and compiles in seconds. Nothing here
touches an unpacked forward pass (generation), and nothing changes what a layer computes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.models.attention import current_packing, hide_buckets_from_compiler, packed
from tunesmith.models.packing import Packing

# Graphs of one layer's code: with gradients, and without them with the adapter and for the base, with room for what a
# model's own layers differ in.
RECOMPILE_LIMIT = 16
_INPUT_HOOK = "tunesmith_input_hook"
_COMPILER_MODULES = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


class LayerRun:
    """Stands in for the call of one layer: `nn.Module.__call__` hands over to it where it is set."""

    def __init__(self, layer: nn.Module) -> None:
        self._plain: Callable[..., Any] = layer._call_impl
        self.compiled: Callable[..., Any] | None = None
        self.is_checkpointed = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        packing = current_packing()
        if packing is None:
            return self._plain(*arguments, **options)
        run = self.compiled or self._plain
        if not (self.is_checkpointed and torch.is_grad_enabled()):
            return run(*arguments, **options)
        return checkpoint(
            run,
            *arguments,
            use_reentrant=False,
            preserve_rng_state=False,  # dropout goes by position
            context_fn=lambda: (nullcontext(), _Packed(packing)),  # the backward pass stands outside of the packing
            **options,
        )


class _Packed:
    """`attention.packed`, to be entered as often as the backward pass comes by."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._entered.append(packed(self._packing))
        self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the body, in order."""
    body = cast(Any, model).base_model
    return list(next(child for child in body.children() if isinstance(child, nn.ModuleList)))


def compile_layers(model: nn.Module, *, backend: str = "inductor") -> None:
    """From now on packed forward passes run compiled; what fails, fails at the first of them.

    Sizes are symbolic: a step's token count differs from batch to batch, and one compilation of a few seconds serves
    them all. Fixed sizes would save some per cent of the small operations' time and cost a compilation for each size.
    """
    hide_buckets_from_compiler()
    config = cast(Any, torch._dynamo.config)
    config.recompile_limit = RECOMPILE_LIMIT
    config.fail_on_recompile_limit_hit = True  # else torch goes on without compiling, and only its log tells
    for layer in decoder_layers(model):
        run = _run_of(layer)
        run.compiled = torch.compile(run._plain, dynamic=True, backend=backend)
    if _INPUT_HOOK not in model.__dict__:
        embedding: nn.Module = cast(Any, model).get_input_embeddings()
        model.__dict__[_INPUT_HOOK] = embedding.register_forward_hook(_ask_for_gradient)


def _ask_for_gradient(embedding: nn.Module, inputs: Any, hidden: Tensor) -> None:
    """The first layer's input needs no gradient. With one asked for, its graph is the one of all other layers, whose
    compilation takes 6 s (H200), for 0.2 % of a step's products.
    """
    if torch.is_grad_enabled() and current_packing() is not None:
        hidden.requires_grad_()


def uncompile_layers(model: nn.Module) -> None:
    hook = model.__dict__.pop(_INPUT_HOOK, None)
    if hook is not None:
        hook.remove()
    for layer in decoder_layers(model):
        _run_of(layer).compiled = None


def checkpoint_layers(model: nn.Module, count: int) -> None:
    """The first `count` layers keep only their input and are computed again in the backward pass.

    The first, because the backward pass reaches them last, when what the others kept is already given back.
    """
    for index, layer in enumerate(decoder_layers(model)):
        _run_of(layer).is_checkpointed = index < count


def is_compile_failure(error: BaseException) -> bool:
    """Whether an exception came from the compiler and not from what was compiled."""
    return not isinstance(error, torch.OutOfMemoryError) and type(error).__module__.startswith(_COMPILER_MODULES)


def _run_of(layer: nn.Module) -> LayerRun:
    run = layer._compiled_call_impl  # torch's own place for a compiled call, asked first by `nn.Module.__call__`
    if not isinstance(run, LayerRun):
        run = LayerRun(layer)
        layer._compiled_call_impl = run  # type: ignore[assignment]  # torch declares it None
    return run
