"""LoRA on the frozen linear modules of a base model (Hu et al. 2021), as PEFT defines it.

`inject` replaces each targeted nn.Linear or transformers Conv1D by a `LoraLinear` that holds it: y = base(x) +
scaling * B A drop(x), with A (r, in) and B (out, r) in float32. The forward and backward passes are written by hand
(`lora_product.py`): no gradient for the frozen weight, no input gradient where nothing asks for it. Dropout is drawn by
position (`kernels/dropout.py`), so a module needs to know where in the run it stands: `set_dropout_position` before a
training forward, `clear_dropout_position` for evaluation.

Dimensions: N tokens, I in_features, O out_features, r LoRA rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.errors import MachineCannot, TunesmithError
from tunesmith.kernels.dropout import column_keys, keep_rate, row_keys, site_key, step_key, step_places
from tunesmith.models.lora_product import kept_product, lora_product
from tunesmith.models.targets import choose_targets, require_rank
from tunesmith.spec.training import TrainingSettings, scaling

PARAMETER_A = "lora_A.weight"
PARAMETER_B = "lora_B.weight"
_CLOCK = "tunesmith_clock"


@dataclass(slots=True)
class DropoutPosition:
    """A place in the run: the first token of the forward pass is number `offset` of the step."""

    seed: int
    step: int
    offset: int


class LoraClock:
    """What all LoRA modules of one model share: whether they are on, and where in the run the next forward stands.

    rows: dropout keys of the next forward's tokens (`lora_product.py`), made once for all modules; None while dropout
    is off.
    """

    def __init__(self) -> None:
        self.is_enabled = True
        self.position: DropoutPosition | None = None
        self.rows: Tensor | None = None

    def move(self, position: DropoutPosition | None) -> None:
        self.position = position
        self.rows = None

    def expect(self, count: int, device: torch.device) -> None:
        """The next forward has `count` tokens. A compiled layer only reads what this makes."""
        keys, place = self.rows, self.position
        if place is None or (keys is not None and keys.shape[0] == count and keys.device == device):
            return
        if _draws_in_kernels(device):
            places_N = torch.arange(place.offset, place.offset + count, dtype=torch.int32, device=device)
            self.rows = step_places(places_N, step_key(seed=place.seed, step=place.step))
        else:
            self.rows = row_keys(seed=place.seed, step=place.step, offset=place.offset, count=count, device=device)


class LoraLinear(nn.Module):
    """A frozen linear module with its adapter. `lora_A` and `lora_B` are the only trainable parameters."""

    def __init__(self, base: nn.Module, *, name: str, index: int, settings: TrainingSettings, clock: LoraClock) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        self.base = base
        self.name = name
        self.index = index
        self.is_transposed = _is_conv1d(base)
        self.in_features, self.out_features = _sizes(base)
        self.scaling = scaling(settings)
        self.dropout = settings.lora_dropout
        self.clock = clock
        self.columns: Tensor | None = None  # dropout keys: `lora_product.py`
        if self.dropout > 0 and _draws_in_kernels(weight.device):
            self.columns = torch.tensor(site_key(index))
        elif self.dropout > 0:
            self.columns = column_keys(module_index=index, num_features=self.in_features, device=weight.device)
        rank = settings.lora_rank
        self.lora_A = nn.Parameter(_initial_a(rank, self.in_features, seed=settings.seed, name=name).to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=weight.device))

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, r={self.lora_A.shape[0]}, scaling={self.scaling}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.clock.is_enabled:
            return self.base(x)
        weight, bias = self.base.weight, self.base.bias
        assert isinstance(weight, Tensor) and not isinstance(bias, nn.Module)
        weight_OI = weight.t() if self.is_transposed else weight
        x_NI = x.reshape(-1, self.in_features)
        clock = self.clock
        if clock.position is not None and not torch.compiler.is_compiling():
            clock.expect(x_NI.shape[0], x_NI.device)
        rows, columns, factor = clock.rows, self.columns, self.scaling
        if rows is None or columns is None:
            rows = columns = None
        else:
            factor /= keep_rate(self.dropout)
        is_one_operation = _draws_in_kernels(x_NI.device) or torch.compiler.is_compiling()
        product = lora_product if is_one_operation else kept_product
        y_NO = product(
            x_NI, weight_OI, bias, self.lora_A, self.lora_B, rows, columns, dropout=self.dropout, factor=factor
        )
        return y_NO.view(*x.shape[:-1], self.out_features)


def _draws_in_kernels(device: torch.device) -> bool:
    """Which of the two formulas of dropout serves this device."""
    return device.type == "cuda"


def inject(model: nn.Module, *, settings: TrainingSettings) -> list[LoraLinear]:
    """Put an adapter on every targeted module of a frozen model, in the model's own order. B starts at zero.

    `all-linear` is every nn.Linear and Conv1D but the head (what PEFT means by it). Raises InputRefused for names
    that no linear module ends in and for a rank above a target's sizes, MachineCannot for DoRA.
    """
    if settings.adapter == "dora":
        raise MachineCannot(
            "NOT_BUILT", "DoRA adapters are not built yet.", field="adapter", hint="Use --adapter lora or rslora."
        )
    linear = linear_modules(model)
    chosen = choose_targets(list(linear), targets=settings.target_modules)
    for name in chosen:
        require_rank(name, *_sizes(linear[name]), settings=settings)
    clock = LoraClock()
    model.__dict__[_CLOCK] = clock
    modules: list[LoraLinear] = []
    for index, name in enumerate(chosen):
        module = LoraLinear(linear[name], name=name, index=index, settings=settings, clock=clock)
        _put(model, name, module)
        modules.append(module)
    return modules


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every nn.Linear and Conv1D except the head, by full name, in the model's order."""
    head = cast(Any, model).get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or _is_conv1d(module)) and module is not head
    }


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name (`<module>.lora_A.weight`), sorted by name."""
    found: dict[str, nn.Parameter] = {}
    for module in lora_modules(model):
        found[f"{module.name}.{PARAMETER_A}"] = module.lora_A
        found[f"{module.name}.{PARAMETER_B}"] = module.lora_B
    return dict(sorted(found.items()))


def lora_modules(model: nn.Module) -> list[LoraLinear]:
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def set_dropout_position(model: nn.Module, *, seed: int, step: int, offset: int) -> None:
    """Dropout on: the next forward's first token is number `offset` of step `step`. Call it before each micro-batch."""
    _clock(model).move(DropoutPosition(seed=seed, step=step, offset=offset))


def expect_tokens(model: nn.Module, count: int, *, device: torch.device) -> None:
    """Make what the modules of the next forward, of `count` tokens, only read. Compiled layers need it."""
    clock = model.__dict__.get(_CLOCK)
    if isinstance(clock, LoraClock):
        clock.expect(count, device)


def clear_dropout_position(model: nn.Module) -> None:
    """Dropout off, as after `inject`: for evaluation and generation."""
    _clock(model).move(None)


def detach(model: nn.Module) -> list[LoraLinear]:
    """Take the adapter off, so that the model is the base again; returns what `attach` puts back."""
    modules = lora_modules(model)
    for module in modules:
        _put(model, module.name, module.base)
    model.__dict__.pop(_CLOCK, None)
    return modules


def attach(model: nn.Module, modules: list[LoraLinear]) -> None:
    """Put an adapter that was taken off this model back on it. The model carries none at that moment."""
    assert _CLOCK not in model.__dict__, "another adapter is on"
    for module in modules:
        _put(model, module.name, module)
    if modules:
        model.__dict__[_CLOCK] = modules[0].clock


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The base model: the adapter plays no part inside."""
    clock = _clock(model)
    before, clock.is_enabled = clock.is_enabled, False
    try:
        yield
    finally:
        clock.is_enabled = before


def is_enabled(model: nn.Module) -> bool:
    """False inside of `disabled`."""
    return _clock(model).is_enabled


def _clock(model: nn.Module) -> LoraClock:
    clock = model.__dict__.get(_CLOCK)
    if not isinstance(clock, LoraClock):
        raise TunesmithError("NO_ADAPTER", "This model carries no adapter: call inject first.")
    return clock


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear module."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    first, second = weight.shape
    return (first, second) if _is_conv1d(module) else (second, first)


def _is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D (GPT-2): a linear module whose weight is (in, out). Told by name: importing it is slow."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _initial_a(rank: int, in_features: int, *, seed: int, name: str) -> Tensor:
    """kaiming_uniform(a=sqrt(5)): uniform within 1/sqrt(in), from the module's own generator: order is no matter."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    bound = in_features**-0.5
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
