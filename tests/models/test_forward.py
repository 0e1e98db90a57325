"""Packed equals unpacked, for every architecture: hidden states, loss and adapter gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.models.conftest import EVERY_ARCHITECTURE
from tunesmith.data.batch import Batch
from tunesmith.errors import MachineCannot
from tunesmith.models.forward import hidden_states, output_head
from tunesmith.models.lora import adapter_parameters, disabled, inject, lora_modules
from tunesmith.models.loss import IGNORE_INDEX, head_loss, logits_of
from tunesmith.spec.training import TrainingSettings

CPU = torch.device("cpu")
LENGTHS = (20, 5, 13, 2, 20, 31)  # some longer than the sliding windows of 7
SETTINGS = TrainingSettings.model_validate({"lora_rank": 4, "lora_alpha": 8.0})


def documents(seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, length) for length in LENGTHS]


def batch_of(tokens: Sequence[np.ndarray]) -> Batch:
    """The documents packed; every second token is learned."""
    labels = []
    for document in tokens:
        shifted = np.append(document[1:], IGNORE_INDEX)
        shifted[::2] = IGNORE_INDEX
        labels.append(shifted)
    return Batch(
        tokens_T=np.concatenate(tokens).astype(np.int64),
        labels_T=np.concatenate(labels).astype(np.int64),
        positions_T=np.concatenate([np.arange(len(document)) for document in tokens]).astype(np.int64),
        boundaries=np.cumsum([0] + [len(document) for document in tokens]).astype(np.int32),
        rows=np.arange(len(tokens)),
        offset_in_step=0,
        num_learned=int(sum((label != IGNORE_INDEX).sum() for label in labels)),
    )


def with_adapter(model: nn.Module) -> nn.Module:
    inject(model, settings=SETTINGS)
    generator = torch.Generator().manual_seed(1)
    for module in lora_modules(model):
        module.lora_B.data.normal_(0, 0.1, generator=generator)
    return model


def loss_and_gradients(
    model: nn.Module, batches: Sequence[Batch]
) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    parameters = adapter_parameters(model)
    for parameter in parameters.values():
        parameter.grad = None
    total, losses = 0.0, []
    for batch in batches:
        found = head_loss(
            hidden_states(model, batch, device=CPU),
            head=output_head(model),
            labels_T=torch.from_numpy(batch.labels_T),
        )
        found.loss_sum.backward()
        total += float(found.loss_sum.detach())
        losses.append(found.nll_N)
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    assert len(gradients) == len(parameters)
    return total, gradients, torch.cat(losses)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_packed_equals_each_document_alone(name: str, load: Any) -> None:
    model, _ = load(name)
    with_adapter(model)
    tokens = documents()
    together, gradients, losses = loss_and_gradients(model, [batch_of(tokens)])
    apart, expected, losses_apart = loss_and_gradients(model, [batch_of([document]) for document in tokens])
    assert together == pytest.approx(apart, rel=1e-5)
    torch.testing.assert_close(losses, losses_apart, rtol=1e-5, atol=2e-5)
    for key, gradient in gradients.items():
        difference = float((gradient - expected[key]).norm() / expected[key].norm())
        assert difference < 1e-5, (key, difference)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_logits_equal_transformers_own_model(name: str, load: Any) -> None:
    model, facts = load(name)
    with_adapter(model)
    judge = AutoModelForCausalLM.from_pretrained(facts.path, attn_implementation="eager", dtype=torch.float32).eval()
    tokens = documents()
    with torch.no_grad(), disabled(model):
        logits = logits_of(hidden_states(model, batch_of(tokens), device=CPU), output_head(model))
        expected = torch.cat([judge(torch.from_numpy(document)[None]).logits[0] for document in tokens])
    # relative to the largest logit: single logits cancel to near zero
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_adapter_gradients_equal_plain_autograd(name: str, load: Any) -> None:
    """Our hand-written backward passes against autograd through the same formula in plain modules."""
    model, _ = load(name)
    with_adapter(model)
    batch = batch_of(documents()[:3])
    _, gradients, _ = loss_and_gradients(model, [batch])

    class Plain(nn.Module):
        def __init__(self, lora: Any) -> None:
            super().__init__()
            self.base, self.scaling = lora.base, lora.scaling
            self.a = nn.Parameter(lora.lora_A.detach().clone())
            self.b = nn.Parameter(lora.lora_B.detach().clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.scaling * (x @ self.a.t() @ self.b.t())

    plain: dict[str, Plain] = {}
    for module in lora_modules(model):
        parent, _, last = module.name.rpartition(".")
        plain[module.name] = Plain(module)
        setattr(model.get_submodule(parent), last, plain[module.name])
    model.set_attn_implementation("eager")
    edges, labels = batch.boundaries.tolist(), torch.from_numpy(batch.labels_T)
    loss = torch.zeros(())
    for start, end in pairwise(edges):
        logits = model(torch.from_numpy(batch.tokens_T[start:end])[None], use_cache=False).logits[0]
        loss = loss + nn.functional.cross_entropy(logits, labels[start:end], reduction="sum")
    loss.backward()
    for name_, module in plain.items():
        for side, parameter in (("A", module.a), ("B", module.b)):
            found, expected = gradients[f"{name_}.lora_{side}.weight"], parameter.grad
            assert expected is not None
            assert float((found - expected).norm() / expected.norm()) < 1e-5, (name_, side)


def test_the_first_layer_asks_for_no_input_gradient(load: Any) -> None:
    model, _ = load("llama")
    with_adapter(model)
    seen: list[bool] = []
    lora_modules(model)[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].requires_grad))
    hidden_states(model, batch_of(documents()), device=CPU)
    assert seen == [False]


def test_a_head_that_is_no_linear_module_is_refused() -> None:
    class Odd(nn.Module):
        class config:  # noqa: N801 - stands in for a transformers config
            model_type = "odd"

        def get_output_embeddings(self) -> nn.Module:
            return nn.Sequential()

    with pytest.raises(MachineCannot, match="odd"):
        output_head(Odd())
