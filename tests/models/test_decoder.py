"""The fast path equals transformers' modules: loss, hits and gradients, for each architecture that it claims."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tunesmith.data.batch import IGNORE_INDEX, Batch
from tunesmith.kernels.backend import ROW_MULTIPLE
from tunesmith.kernels.dropout import site_keep_rate, site_key, site_mask, step_key, step_places
from tunesmith.models.decoder import Decoder, why_not
from tunesmith.models.decoder_answers import CACHE_PLACES, batches_of
from tunesmith.models.generate import greedy
from tunesmith.models.lora import (
    LoraLinear,
    adapter_parameters,
    disabled,
    inject,
    lora_modules,
    set_dropout_position,
)
from tunesmith.models.loss import HeadLoss
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.step import forward_scores

pytestmark = pytest.mark.slow  # six architectures, forward and backward, on references made for being read
CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", SIZES),
    "llama, rope of Llama 3 and biases": (
        "llama",
        {
            **SIZES,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama, yarn": (
        "llama",
        {
            **SIZES,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
            },
        },
    ),
    "mistral, window": ("mistral", SIZES),
    "qwen2, biases, a window in some layers": ("qwen2", SIZES),
    "qwen3, norms of q and k": ("qwen3", {**SIZES, "num_hidden_layers": 3}),
}  # fmt: skip


def batch(lengths: list[int], *, offset: int = 0, seed: int = 0) -> Batch:
    """Documents whose later part is learned; one has labels in two places, one none at all."""
    random = np.random.default_rng(seed)
    boundaries = np.append(0, np.cumsum(lengths)).astype(np.int32)
    tokens = random.integers(0, 256, boundaries[-1])
    labels = np.full(len(tokens), IGNORE_INDEX)
    for number, (start, end) in enumerate(pairwise(boundaries.tolist())):
        first = start + (end - start) // 2
        if number == 1:
            labels[start + 2 : start + 4] = tokens[start + 3 : start + 5]
        if number != 2:
            labels[first : end - 1] = tokens[first + 1 : end]
    return Batch(
        tokens_T=tokens,
        labels_T=labels,
        positions_T=np.concatenate([np.arange(length) for length in lengths]),
        boundaries=boundaries,
        rows=np.arange(len(lengths)),
        offset_in_step=offset,
        num_learned=int((labels != IGNORE_INDEX).sum()),
    )


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-30))


def trained(model: nn.Module, *, seed: int = 1) -> None:
    """Adapters that are not at their start: B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def mask_like_the_decoder(model: nn.Module, *, seed: int, step: int) -> None:
    """Let the modules of the generic path compute plainly, with the masks that the fast path draws."""
    sites = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]
    for module in lora_modules(model):
        layer, last = int(module.name.split(".layers.")[1].split(".")[0]), module.name.split(".")[-1]
        group = next(index for index, names in enumerate(sites) if last in names.split())
        names = sites[group].split()

        def forward(
            x: Tensor, module: LoraLinear = module, site: int = 4 * layer + group, names: list[str] = names
        ) -> Tensor:
            position = module.clock.position
            assert position is not None
            mask = site_mask(
                step_places(
                    torch.arange(x.shape[1], dtype=torch.int32) + position.offset, step_key(seed=seed, step=step)
                ),
                site=site_key(site),
                num_features=x.shape[2],
                count=len(names),
                index=names.index(module.name.split(".")[-1]),
                probability=module.dropout,
            )
            kept = x * mask / site_keep_rate(module.dropout, len(names))
            return module.base(x) + module.scaling * (kept @ module.lora_A.t()) @ module.lora_B.t()

        module.forward = forward  # type: ignore[method-assign]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in adapter_parameters(model).items()}
    for parameter in adapter_parameters(model).values():
        parameter.grad = None
    return found


def test_every_case_is_claimed(load: Callable[..., Any]) -> None:
    for name, changes in CASES.values():
        model, _ = load(name, **changes)
        assert why_not(model, TrainingSettings()) is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_loss_and_gradients_equal_the_generic_path(load: Callable[..., Any], case: str, dropout: float) -> None:
    name, changes = CASES[case]
    settings = TrainingSettings(lora_rank=5, lora_dropout=dropout)
    model, _ = load(name, **changes)
    inject(model, settings=settings)
    trained(model)
    if dropout:
        mask_like_the_decoder(model, seed=4, step=3)
    parts = [batch([37, 20, 11, 30]), batch([50, 9], offset=98, seed=1)]
    wanted_loss = 0.0
    for part in parts:
        set_dropout_position(model, seed=4, step=3, offset=part.offset_in_step)
        loss = forward_scores(model, part, device=CPU).loss_sum
        (loss / 70).backward()
        wanted_loss += float(loss.detach())
    wanted = gradients(model)
    decoder = Decoder(model, settings=settings)
    found_loss = sum(float(decoder.train(part, seed=4, step=3, divisor=70)) for part in parts)
    assert found_loss == pytest.approx(wanted_loss, rel=1e-5)
    found = gradients(model)
    for key, gradient in wanted.items():
        assert off(found[key], gradient) < 2e-5, key  # float32, sums in another order


@pytest.mark.parametrize("case", CASES)
def test_a_last_layer_that_goes_on_with_the_tails_alone_computes_the_same(load: Callable[..., Any], case: str) -> None:
    """Documents long enough that most of their tokens carry no label and come before one that does."""
    name, changes = CASES[case]
    settings = TrainingSettings(lora_rank=4, lora_dropout=0.0)
    model, _ = load(name, **changes)
    inject(model, settings=settings)
    trained(model)
    given = batch([400, 41, 300, 170])
    scores = forward_scores(model, given, device=CPU)
    (scores.loss_sum / 70).backward()
    wanted = gradients(model)
    decoder = Decoder(model, settings=settings)
    inputs = decoder.inputs(given)
    assert len(inputs.tail_Q) < 0.7 * len(inputs.tokens_T)
    assert float(decoder.train(given, seed=0, step=1, divisor=70)) == pytest.approx(
        float(scores.loss_sum.detach()), rel=1e-5
    )
    found = gradients(model)
    for key, gradient in wanted.items():
        assert off(found[key], gradient) < 2e-5, key
    with torch.no_grad():
        assert off(decoder.scores(given).nll_N, scores.nll_N.detach()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_the_generic_path_with_and_without_adapter(load: Callable[..., Any], case: str) -> None:
    name, changes = CASES[case]
    settings = TrainingSettings(lora_rank=4)
    model, _ = load(name, **changes)
    inject(model, settings=settings)
    trained(model)
    given = batch([37, 20, 11, 30])

    def whole(scores: HeadLoss) -> tuple[Tensor, Tensor, Tensor]:
        return scores.positions_N, scores.nll_N, scores.is_right_N

    with torch.no_grad():
        wanted = [whole(forward_scores(model, given, device=CPU))]
        with disabled(model):
            wanted.append(whole(forward_scores(model, given, device=CPU)))
    decoder = Decoder(model, settings=settings)
    found = [whole(decoder.scores(given))]
    decoder.refresh(is_enabled=False)
    found.append(whole(decoder.scores(given)))
    assert off(wanted[0][1], wanted[1][1]) > 0.01
    for (positions, nll, right), (at, expected, hits) in zip(found, wanted, strict=True):
        assert torch.equal(positions, at)
        assert off(nll, expected) < 1e-5
        assert torch.equal(right, hits)


def test_the_model_goes_on_working_and_sees_its_weights(load: Callable[..., Any]) -> None:
    model, _ = load("qwen2", **SIZES)
    settings = TrainingSettings(lora_rank=4)
    inject(model, settings=settings)
    trained(model)
    before = greedy(model, [[5, 6, 7, 8]], max_new_tokens=12, end_ids=[256])
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    Decoder(model, settings=settings)
    assert greedy(model, [[5, 6, 7, 8]], max_new_tokens=12, end_ids=[256]) == before
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_some_targets_only(load: Callable[..., Any]) -> None:
    """Modules without an adapter stay the base's; a site may have none at all."""
    settings = TrainingSettings(lora_rank=4, lora_dropout=0.0, target_modules=("q_proj", "v_proj", "up_proj"))
    model, _ = load("llama", **SIZES)
    inject(model, settings=settings)
    trained(model)
    given = batch([37, 20, 11])
    loss = forward_scores(model, given, device=CPU).loss_sum
    loss.backward()
    wanted = gradients(model)
    found_loss = Decoder(model, settings=settings).train(given, seed=0, step=1, divisor=1)
    assert float(found_loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    for key, gradient in gradients(model).items():
        assert off(gradient, wanted[key]) < 2e-5


def test_layers_that_run_forward_again_give_the_same_gradients(load: Callable[..., Any]) -> None:
    settings = TrainingSettings(lora_rank=4)
    model, _ = load("qwen3", **SIZES, num_hidden_layers=3)
    inject(model, settings=settings)
    trained(model)
    decoder = Decoder(model, settings=settings)
    found = []
    for layers in (0, 2, 3):
        decoder.recomputed = layers
        decoder.train(batch([37, 20, 11]), seed=0, step=1, divisor=1)
        found.append(gradients(model))
    for other in found[1:]:
        assert all(torch.equal(other[key], gradient) for key, gradient in found[0].items())


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma2", {}, "gemma2 is not one of"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "kind dynamic"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("llama", {"mlp_bias": True}, "MLP has biases"),
        ("llama", {"head_dim": 24}, "heads of 24 values"),
        ("llama", {"intermediate_size": 88}, "sizes 48 and 88"),
    ],
)
def test_what_it_does_not_claim_it_names(
    load: Callable[..., Any], name: str, changes: dict[str, Any], reason: str
) -> None:
    model, _ = load(name, **{"head_dim": 32, **changes})
    said = why_not(model, TrainingSettings())
    assert said is not None and reason in said
    with pytest.raises(ValueError, match=reason):
        Decoder(model, settings=TrainingSettings())


def test_a_rank_above_the_largest_is_named(load: Callable[..., Any]) -> None:
    model, _ = load("llama", head_dim=32)
    assert "rank of 256" in str(why_not(model, TrainingSettings(lora_rank=256)))


@pytest.mark.parametrize("case", CASES)
def test_answers_equal_those_of_transformers(load: Callable[..., Any], case: str) -> None:
    """Of prompts of unlike lengths, past a sliding window, with the adapter and without; some end early."""
    name, changes = CASES[case]
    model, _ = load(name, **changes)
    settings = TrainingSettings(lora_rank=4)
    inject(model, settings=settings)
    trained(model)
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 256, length).tolist() for length in (23, 3, 11, 1)]
    wanted = {True: greedy(model, prompts, max_new_tokens=14, end_ids={999})}
    end = wanted[True][1][4]
    with disabled(model):
        wanted[False] = greedy(model, prompts, max_new_tokens=14, end_ids={999})
    ended = greedy(model, prompts, max_new_tokens=14, end_ids={end})
    Decoder(model, settings=settings)
    assert greedy(model, prompts, max_new_tokens=14, end_ids={999}) == wanted[True]
    with disabled(model):
        assert greedy(model, prompts, max_new_tokens=14, end_ids={999}) == wanted[False]
    assert greedy(model, prompts, max_new_tokens=14, end_ids={end}) == ended
    assert wanted[True] != wanted[False] and len(ended[1]) <= 4


def test_answers_to_many_prompts_come_in_batches() -> None:
    prompts = [[1] * length for length in (10, 20_000, 30, *range(1, 300))]
    found = batches_of(prompts, max_new_tokens=50)
    assert sorted(index for batch in found for index in batch) == list(range(len(prompts)))
    for batch in found:
        longest = max(len(prompts[index]) for index in batch)
        assert len(batch) <= ROW_MULTIPLE and len(batch) * (longest + 50) <= CACHE_PLACES
