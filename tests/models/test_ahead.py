"""Kernels compiled ahead: every one that a step and an evaluation launch is foreseen, and is compiled once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.models.conftest import MakeModel
from tests.models.test_decoder import batch
from tunesmith.kernels import backend
from tunesmith.kernels.backend import Foreseen, Kernel, compile_foreseen, forced, foreseeing, kernel
from tunesmith.models import ahead, lora
from tunesmith.models.ahead import Product, foreseen_launches, foreseen_of_modules, foreseen_products
from tunesmith.models.base import load_base
from tunesmith.models.decoder import Decoder
from tunesmith.models.forward import output_head
from tunesmith.models.inspect import inspect_model
from tunesmith.models.lora import inject, lora_modules, set_dropout_position
from tunesmith.models.loss import head_loss
from tunesmith.spec.training import TrainingSettings

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
with_triton = pytest.mark.skipif(not backend.HAS_TRITON, reason="triton is not installed")


class Compiled:
    """In the place of Triton's function: counts what it is asked to compile."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.launchers = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        raise AssertionError("launched")

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **options: Any) -> Compiled:
        self.asked.append((arguments, options))
        if options.get("BM") == 13:
            raise ValueError("no such tile")
        return self

    @property
    def run(self) -> None:
        self.launchers += 1


def noted(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """Grows by what is launched from now on: the kernel and its constants."""
    launched: set[tuple[Any, ...]] = set()
    plain = Kernel.__getitem__

    def noting(self: Kernel, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> Any:
            launched.add((self, *sorted(options.items())))
            return plain(self, grid)(*arguments, **options)

        return launch

    monkeypatch.setattr(Kernel, "__getitem__", noting)
    return launched


@with_triton
@pytest.mark.slow  # the interpreter runs up to four layers
@pytest.mark.parametrize(
    ("name", "layers", "changes"),
    [("llama", 4, {}), ("llama", 1, {}), ("qwen2", 3, {"use_sliding_window": False}), ("qwen3", 2, {})],
    ids=["llama", "one layer", "biases", "norms of q and k"],
)
def test_every_kernel_and_product_was_foreseen(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, name: str, layers: int, changes: dict[str, Any]
) -> None:
    facts = inspect_model(make_model(name, **(SIZES | changes), num_hidden_layers=layers), "test/model")
    settings = TrainingSettings(lora_rank=8, lora_dropout=0.1)
    given = batch([37, 20, 11])
    foreseen = {(one.kernel, *sorted(one.options.items())) for one in foreseen_launches(facts, settings)}
    products = foreseen_products(facts, settings, [given])
    model = load_base(facts, dtype=torch.float32, device=CPU, trains_only=True)
    inject(model, settings=settings)
    launched = noted(monkeypatch)
    multiplied: set[tuple[Any, ...]] = set()

    def watched(multiply: Any) -> Any:
        def made(*operands: torch.Tensor, **options: Any) -> Any:
            multiplied.add(tuple(operand.shape for operand in operands))
            return multiply(*operands, **options)

        return made

    with forced("kernels"):  # the references multiply on their own account
        decoder = Decoder(model, settings=settings)
        with pytest.MonkeyPatch.context() as patch:
            for owner, word in ((torch.Tensor, "__matmul__"), (torch, "mm"), (torch, "addmm")):
                patch.setattr(owner, word, watched(getattr(owner, word)))
            decoder.train(given, seed=1, step=1, divisor=1)
        decoder.scores(given)
    assert len(launched) > 12 and len(multiplied) > 8
    assert launched == foreseen
    assert multiplied <= {tuple(form[0] for form in product.operands) for product in products}
    for product in products:
        product.make(CPU)


@with_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "rank", "dropout", "kernels"),
    [("bf16", 8, 0.1, 8), ("bf16", 8, 0.0, 2), ("bf16", 20, 0.1, 8), ("float32", 8, 0.1, 3)],
)
def test_every_kernel_of_the_generic_path_was_foreseen(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, precision: str, rank: int, dropout: float, kernels: int
) -> None:
    facts = inspect_model(make_model("llama", **SIZES, num_hidden_layers=2), "test/model")
    settings = TrainingSettings(lora_rank=rank, lora_dropout=dropout, precision=precision)
    foreseen = {(one.kernel, *sorted(one.options.items())) for one in foreseen_of_modules(facts, settings)}
    half = torch.float16 if precision == "bf16" else torch.float32  # the interpreter's
    model = load_base(facts, dtype=half, device=CPU)
    monkeypatch.setattr(lora, "_draws_in_kernels", lambda _: True)
    inject(model, settings=settings)
    set_dropout_position(model, seed=1, step=1, offset=0)
    launched = noted(monkeypatch)
    with forced("kernels"):
        for module in lora_modules(model)[:7]:
            for needs_input in (True, False):
                x = torch.ones(128, module.in_features, dtype=half, requires_grad=needs_input)
                module(x).sum().backward()
        hidden, labels = torch.ones(5, facts.hidden_size, dtype=half, requires_grad=True), torch.arange(5)
        head_loss(hidden, head=output_head(model), labels_T=labels).loss_sum.backward()
        head_loss(hidden.detach(), head=output_head(model), labels_T=labels)
    assert launched == foreseen and len(launched) >= kernels


@with_triton
def test_what_the_skeleton_does_not_build_is_not_foreseen(make_model: MakeModel) -> None:
    facts = inspect_model(make_model("mistral", **SIZES), "test/model")  # with a sliding window
    assert foreseen_launches(facts, TrainingSettings(lora_rank=8)) == []
    plain = inspect_model(make_model("mistral", **SIZES, sliding_window=None), "test/model")
    assert foreseen_launches(plain, TrainingSettings(lora_rank=8))


@with_triton
def test_what_loading_will_refuse_is_left_to_it(make_model: MakeModel) -> None:
    facts = inspect_model(make_model("llama", **SIZES), "test/model")
    assert foreseen_launches(facts, TrainingSettings(lora_rank=8))
    wrong = TrainingSettings(lora_rank=8, target_modules=["none_of_its"])
    assert foreseen_launches(facts, wrong) == [] and foreseen_of_modules(facts, wrong) == []
    gone = facts.model_copy(update={"path": "/nowhere"})
    assert foreseen_launches(gone, TrainingSettings(lora_rank=8)) == []
    assert foreseen_products(gone, TrainingSettings(lora_rank=8), []) == set()


def test_a_launch_is_noted_and_each_kernel_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    compiled = Compiled()
    one = Kernel(compiled, not_specialized=frozenset({2}))
    x = torch.empty(3, device="meta", dtype=torch.bfloat16)
    monkeypatch.setattr(backend, "HAS_TRITON", True)
    with foreseeing() as foreseen:
        assert backend.runs_triton(x)
        for step in (1, 2, 3):
            one[(4,)](x, 32, step, 0.5, BM=16)
        one[(4,)](x, 48, 1, 0.25, BM=16)  # a multiple of 16 as 32 is
        one[(4,)](x, 33, 1, 0.5, BM=16)
        one[(4,)](x, 32, 1, 0.5, BM=13)  # which cannot be compiled: its launch will tell
    assert len(foreseen) == 6
    compile_foreseen(foreseen, device=torch.device("cuda", 1), threads=2)
    assert set(devices) == {1}
    assert sorted((arguments[1] % 16, options["BM"]) for arguments, options in compiled.asked) == [
        (0, 13), (0, 16), (1, 16),
    ]  # fmt: skip
    assert compiled.launchers == 2
    assert all(arguments[0] is torch.bfloat16 for arguments, _ in compiled.asked)
    with pytest.raises(AssertionError, match="launched"):
        one[(4,)](x)


def test_arguments_are_told_apart_by_what_code_depends_on() -> None:
    def function(x_ptr: Any, step: int, count: int) -> None: ...

    made = kernel(function, do_not_specialize=["step"]) if backend.HAS_TRITON else Kernel(function)
    first, second = (Foreseen(made, (1,), (torch.empty(2), step, 1), {}) for step in (5, 6))
    assert (first.signature == second.signature) is backend.HAS_TRITON
    assert first.signature != Foreseen(made, (1,), (torch.empty(2), 5, 2), {}).signature


@with_triton
@pytest.mark.parametrize(
    ("fault", "free_bytes", "is_fast", "compiles", "multiplies"),
    [(None, 1 << 40, True, True, True), (None, 1 << 20, True, True, False),
     ("no C compiler", 1 << 40, True, False, False), (None, 1 << 40, False, True, False),
     ("no C compiler", 1 << 40, False, False, False)],
    ids=["all", "a full card", "Triton fails", "generic", "generic, Triton fails"],
)  # fmt: skip
def test_what_is_done_ahead_leaves_room_and_asks_triton_first(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, fault: str | None, free_bytes: int, is_fast: bool,
    compiles: bool, multiplies: bool,
) -> None:  # fmt: skip
    facts = inspect_model(make_model("llama", **SIZES), "test/model")
    compiled: list[int] = []
    made: list[Product] = []
    monkeypatch.setattr(ahead, "triton_fault", lambda device: fault)
    monkeypatch.setattr(ahead, "compile_foreseen", lambda foreseen, **_: compiled.append(len(foreseen)))
    monkeypatch.setattr(Product, "make", lambda self, device: made.append(self))
    for name, stand_in in {
        "mem_get_info": lambda index: (free_bytes, 1 << 40),
        "Stream": lambda device: None,
        "stream": lambda stream: nullcontext(),
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    settings = TrainingSettings(lora_rank=8, lora_dropout=0.05, precision="bf16")
    started = ahead.Ahead(facts, settings, device=torch.device("cuda"), is_fast=is_fast)
    started.expect([batch([37, 20, 11])])
    started.wait()
    assert bool(compiled and compiled[0] > 9) is compiles
    assert bool(made) is multiplies
