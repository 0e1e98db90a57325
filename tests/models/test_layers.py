"""Layers compiled one by one, and computed twice: the same loss and gradients, and no compilation for each batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tunesmith.data.batch import Batch
from tunesmith.models import attention, lora
from tunesmith.models.forward import hidden_states, output_head
from tunesmith.models.generate import greedy
from tunesmith.models.layers import (
    checkpoint_layers,
    compile_layers,
    decoder_layers,
    is_compile_failure,
    uncompile_layers,
)
from tunesmith.models.lora import (
    adapter_parameters,
    clear_dropout_position,
    disabled,
    inject,
    lora_modules,
    set_dropout_position,
)
from tunesmith.models.loss import head_loss
from tunesmith.spec.training import TrainingSettings

# torch's own tracing looks at .grad of tensors that are no leaves
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
CPU = torch.device("cpu")
LENGTHS = [[5, 9, 30], [8, 3], [20, 20, 20, 7], [60]]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    config: Any = torch._dynamo.config
    before = config.recompile_limit, config.fail_on_recompile_limit_hit
    torch._dynamo.reset()
    counters.clear()
    yield
    config.recompile_limit, config.fail_on_recompile_limit_hit = before
    torch._dynamo.reset()


def batch(lengths: list[int], vocabulary: int) -> Batch:
    boundaries = np.cumsum([0, *lengths]).astype(np.int32)
    tokens = int(boundaries[-1])
    random = np.random.default_rng(tokens)
    return Batch(
        tokens_T=random.integers(0, vocabulary, tokens),
        labels_T=random.integers(0, vocabulary, tokens),
        positions_T=np.concatenate([np.arange(length) for length in lengths]),
        boundaries=boundaries,
        rows=np.arange(len(lengths)),
        offset_in_step=0,
        num_learned=tokens,
    )


def adapted(load: Any, name: str) -> tuple[nn.Module, int]:
    model, facts = load(name)
    inject(model, settings=TrainingSettings(lora_rank=4, lora_dropout=0.2))
    generator = torch.Generator().manual_seed(1)
    for module in lora_modules(model):
        module.lora_B.data.normal_(0, 0.2, generator=generator)
    return model, facts.vocabulary_size


def loss_and_gradient(model: nn.Module, one: Batch, *, step: int) -> tuple[float, Tensor]:
    parameters = adapter_parameters(model).values()
    for parameter in parameters:
        parameter.grad = None
    set_dropout_position(model, seed=0, step=step, offset=0)
    hidden = hidden_states(model, one, device=CPU)
    loss = head_loss(hidden, head=output_head(model), labels_T=torch.from_numpy(one.labels_T)).loss_sum
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


def require_equal(model: nn.Module, batches: list[Batch], wanted: list[tuple[float, Tensor]]) -> None:
    for step, (one, (loss, gradient)) in enumerate(zip(batches, wanted, strict=True)):
        found = loss_and_gradient(model, one, step=step)
        # float32, products in another order
        assert found[0] == pytest.approx(loss, rel=1e-5)
        assert float((found[1] - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("with_kernel", "draws_in_kernels"),
    [(True, False), (True, True), (False, False)],
    ids=["one operation", "as on a GPU", "buckets"],
)
def test_compiled_layers_equal_plain_ones_and_are_not_compiled_for_each_batch(
    load: Any, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None, with_kernel: bool, draws_in_kernels: bool
) -> None:
    monkeypatch.setattr(lora, "_draws_in_kernels", lambda _: draws_in_kernels)
    model, vocabulary = adapted(load, "llama")
    batches = [batch(lengths, vocabulary) for lengths in LENGTHS]
    wanted = [loss_and_gradient(model, one, step=step) for step, one in enumerate(batches)]
    if with_kernel:
        monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    compile_layers(model, backend="aot_eager")
    require_equal(model, batches[:1], wanted[:1])
    once = counters["stats"]["unique_graphs"]
    assert once == 1 if with_kernel else once > 1, "one for all layers, the first among them"
    require_equal(model, batches, wanted)
    assert counters["stats"]["unique_graphs"] == once, "no batch was a reason to compile anew"
    with torch.no_grad():
        clear_dropout_position(model)
        tuned = hidden_states(model, batches[0], device=CPU)
        with disabled(model):
            base = hidden_states(model, batches[0], device=CPU)
        uncompile_layers(model)
        torch.testing.assert_close(tuned, hidden_states(model, batches[0], device=CPU), rtol=1e-5, atol=1e-6)
        with disabled(model):
            torch.testing.assert_close(base, hidden_states(model, batches[0], device=CPU), rtol=1e-5, atol=1e-6)
    if with_kernel:
        assert counters["stats"]["unique_graphs"] == once + 2


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "qwen3"])
def test_layers_computed_twice_give_the_same_bits(load: Any, name: str) -> None:
    model, vocabulary = adapted(load, name)
    one = batch([5, 9, 30], vocabulary)
    calls = [0]
    decoder_layers(model)[0].register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    loss, gradient = loss_and_gradient(model, one, step=1)
    assert calls == [1]
    checkpoint_layers(model, 1)
    again = loss_and_gradient(model, one, step=1)
    # once forward, once more in the backward pass; softcapped attention has a graph of its own, whose pass is another
    assert calls == [4 if name == "gemma2" else 3]
    assert again[0] == loss and torch.equal(again[1], gradient)
    checkpoint_layers(model, 0)
    loss_and_gradient(model, one, step=1)
    assert calls == [5 if name == "gemma2" else 4]


@pytest.mark.slow
def test_a_compiled_layer_may_be_computed_twice(
    load: Any, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    model, vocabulary = adapted(load, "llama")
    batches = [batch(lengths, vocabulary) for lengths in LENGTHS[:2]]
    wanted = [loss_and_gradient(model, one, step=step) for step, one in enumerate(batches)]
    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    compile_layers(model, backend="aot_eager")
    checkpoint_layers(model, 2)
    require_equal(model, batches, wanted)


@pytest.mark.slow
def test_generation_is_left_alone(load: Any) -> None:
    model, _ = adapted(load, "llama")
    clear_dropout_position(model)
    before = greedy(model, [[1, 2, 3], [4]], max_new_tokens=4, end_ids=frozenset())

    def broken(*_: Any) -> Any:
        raise AssertionError("compiled")

    compile_layers(model, backend=broken)
    checkpoint_layers(model, 2)
    assert greedy(model, [[1, 2, 3], [4]], max_new_tokens=4, end_ids=frozenset()) == before


@pytest.mark.slow
def test_what_the_compiler_breaks_on_is_told_from_what_it_compiles(load: Any, fresh_compiler: None) -> None:
    model, vocabulary = adapted(load, "llama")

    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    compile_layers(model, backend=broken)
    with pytest.raises(Exception) as caught:
        loss_and_gradient(model, batch([4, 4], vocabulary), step=1)
    assert is_compile_failure(caught.value)
    assert not is_compile_failure(RuntimeError("x")) and not is_compile_failure(torch.OutOfMemoryError("x"))
