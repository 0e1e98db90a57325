"""The LoRA linear module: values and gradients against the formula, targets against PEFT, start values, dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.models.conftest import EVERY_ARCHITECTURE
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.kernels import backend
from tunesmith.kernels.backend import forced
from tunesmith.kernels.dropout import (
    column_keys,
    keep_mask,
    keep_rate,
    masked,
    row_keys,
    site_key,
    site_mask,
    step_key,
    step_places,
)
from tunesmith.models import lora, lora_product
from tunesmith.models.lora import (
    LoraClock,
    LoraLinear,
    adapter_parameters,
    clear_dropout_position,
    disabled,
    inject,
    linear_modules,
    lora_modules,
    set_dropout_position,
)
from tunesmith.spec.training import TrainingSettings, scaling

CPU = torch.device("cpu")
# peft 0.21 asks transformers 5.23 for a property that the latter has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"lora_rank": 4, "lora_alpha": 6.0, "lora_dropout": 0.2, **changes})


class TwoLayers(nn.Module):
    """A stand-in with a head, so that inject can be looked at closely."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 10)
        self.second = Conv1D(8, 10)
        self.head = nn.Linear(8, 20, bias=False)
        self.requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def alive(model: nn.Module) -> nn.Module:
    """B away from zero, so that every path carries a gradient."""
    generator = torch.Generator().manual_seed(5)
    for module in lora_modules(model):
        module.lora_B.data.normal_(0, 0.3, generator=generator)
    return model


def formula(module: LoraLinear, x: Tensor, mask: Tensor | None) -> Tensor:
    base: Any = module.base
    weight = base.weight.t() if module.is_transposed else base.weight
    dropped = x if mask is None else x * mask / keep_rate(module.dropout)
    return x @ weight.t() + base.bias + module.scaling * dropped @ module.lora_A.t() @ module.lora_B.t()


@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("needs_input_gradient", [False, True])
def test_values_and_gradients_equal_the_formula(name: str, with_dropout: bool, needs_input_gradient: bool) -> None:
    torch.manual_seed(0)
    model = TwoLayers()
    inject(model, settings=settings())
    alive(model)
    module: Any = model.get_submodule(name)
    x = torch.randn(2, 9, module.in_features, requires_grad=needs_input_gradient)
    mask = None
    if with_dropout:
        set_dropout_position(model, seed=3, step=2, offset=7)
        rows = row_keys(seed=3, step=2, offset=7, count=18, device=CPU)
        columns = column_keys(module_index=module.index, num_features=module.in_features, device=CPU)
        mask = keep_mask(rows, columns, num_features=module.in_features, probability=0.2, dtype=torch.float32)
        mask = mask.view(x.shape)
    weights = torch.randn(2, 9, module.out_features)
    inputs = [module.lora_A, module.lora_B, *([x] if needs_input_gradient else [])]
    found, expected = module(x), formula(module, x, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for gradient, wanted in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)
    assert module.base.weight.grad is None


@pytest.mark.slow
@pytest.mark.skipif(not backend.HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize("needs_input_gradient", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tokens", "rank", "features", "is_fused"),
    [(torch.float16, 128, 4, 96, True), (torch.float16, 256, 24, 80, True), (torch.float16, 77, 4, 96, False),
     (torch.float16, 128, 4, 90, False), (torch.float16, 128, 160, 96, False), (torch.float32, 128, 4, 96, False)],
)  # fmt: skip
def test_as_one_operation_of_kernels_it_equals_the_formula(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int, rank: int, features: int, is_fused: bool,
    needs_input_gradient: bool,
) -> None:  # fmt: skip
    """As on a GPU, in Triton's interpreter; an input that is not contiguous."""
    out, factor = 72, 0.75
    places = step_places(torch.arange(500, 500 + tokens, dtype=torch.int32), step_key(seed=3, step=2))
    mask = site_mask(places, site=site_key(5), num_features=features, count=1, index=0, probability=0.2)
    draw = torch.Generator().manual_seed(1)
    x, weight, bias, a, b = (
        torch.randn(*shape, generator=draw) * scale
        for shape, scale in (((tokens, features + 8), 1), ((out, features), 0.1), ((out,), 1), ((rank, features), 0.1),
                             ((out, rank), 0.1))
    )  # fmt: skip
    x, weight, bias = x.to(dtype)[:, 8:], weight.to(dtype), bias.to(dtype)
    leaves = [tensor.detach().requires_grad_() for tensor in (a, b, x)][: 2 + needs_input_gradient]
    given = [*leaves, x][:3]
    options: Any = {"dropout": 0.2, "factor": factor / keep_rate(0.2)}
    masks: list[int] = []
    monkeypatch.setattr(lora_product, "masked", lambda x, *args, **more: masks.append(1) or masked(x, *args, **more))
    with forced("kernels"):
        found = lora_product.lora_product(
            given[2], weight, bias, given[0], given[1], places, torch.tensor(site_key(5)), **options
        )
        weights = torch.randn(tokens, out, generator=draw).to(dtype)
        gradients = torch.autograd.grad((found * weights).sum(), leaves)
    assert len(masks) == (0 if is_fused else 2 + needs_input_gradient), "fused, no masked copy of the input is made"
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    last = exact[2] if needs_input_gradient else x.double()
    dropped = last * mask / keep_rate(0.2)
    wanted = last @ weight.double().t() + bias.double() + factor * dropped @ exact[0].t() @ exact[1].t()
    rounding = 2e-3 if dtype == torch.float16 else 1e-6
    pairs = zip([found, *gradients], [wanted, *torch.autograd.grad((wanted * weights).sum(), exact)], strict=True)
    for ours, formula in pairs:
        assert float((ours.detach().double() - formula.detach()).norm() / formula.detach().norm()) < rounding
    assert gradients[0].dtype == gradients[1].dtype == torch.float32


@pytest.mark.parametrize("draws_in_kernels", [False, True])
def test_dropout_moves_with_the_position_only(monkeypatch: pytest.MonkeyPatch, draws_in_kernels: bool) -> None:
    monkeypatch.setattr(lora, "_draws_in_kernels", lambda _: draws_in_kernels)
    torch.manual_seed(0)
    model = TwoLayers()
    inject(model, settings=settings())
    alive(model)
    x = torch.randn(16, 12)

    def run(rows: slice, **place: int) -> Tensor:
        set_dropout_position(model, **{"seed": 1, "step": 1, "offset": rows.start, **place})
        return model(x[rows])

    whole = run(slice(0, 16))
    torch.testing.assert_close(torch.cat([run(slice(0, 4)), run(slice(4, 8)), run(slice(8, 16))]), whole)
    torch.testing.assert_close(run(slice(0, 16)), whole, rtol=0, atol=0)
    for other in ({"seed": 2}, {"step": 2}, {"offset": 1}):
        assert not torch.allclose(run(slice(0, 16), **other), whole)
    clear_dropout_position(model)
    without = model(x)
    assert not torch.allclose(without, whole)
    torch.testing.assert_close(model(x), without, rtol=0, atol=0)


def test_masks_of_modules_with_the_same_input_are_independent() -> None:
    model = TwoLayers()
    model.second = nn.Linear(12, 8).requires_grad_(False)
    inject(model, settings=settings(lora_dropout=0.5))
    set_dropout_position(model, seed=0, step=1, offset=0)
    rows = row_keys(seed=0, step=1, offset=0, count=200, device=CPU)
    columns = [module.columns for module in lora_modules(model)]
    first, second = (
        keep_mask(rows, keys, num_features=12, probability=0.5, dtype=torch.float32)
        for keys in columns
        if keys is not None
    )
    assert abs(float((first == second).float().mean()) - 0.5) < 0.05


def test_disabled_is_the_base_model() -> None:
    torch.manual_seed(0)
    base = TwoLayers()
    model = copy.deepcopy(base)
    inject(model, settings=settings())
    x = torch.randn(5, 12)
    assert torch.equal(model(x), base(x)), "B starts at zero"
    alive(model)
    assert not torch.allclose(model(x), base(x))
    with disabled(model):
        assert torch.equal(model(x), base(x))
    assert not torch.allclose(model(x), base(x))


def test_start_values_are_kaiming_uniform_and_depend_on_seed_and_name_alone() -> None:
    def start(seed: int = 0, targets: Any = "all-linear") -> dict[str, Tensor]:
        model = TwoLayers()
        inject(model, settings=settings(seed=seed, target_modules=targets))
        return {name: value.detach() for name, value in adapter_parameters(model).items()}

    first, again, other, alone = start(), start(), start(seed=1), start(targets=("second",))
    assert list(first) == sorted(first) and len(first) == 4
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert value.dtype == torch.float32
        if "lora_B" in name:
            assert not value.any()
        else:
            bound = value.shape[1] ** -0.5
            assert bound * 0.8 < float(value.abs().max()) <= bound
            assert not torch.equal(value, other[name])
    assert torch.equal(alone["second.lora_A.weight"], first["second.lora_A.weight"])


def test_rank_stabilised_scaling() -> None:
    assert scaling(settings(adapter="rslora")) == pytest.approx(6.0 / 2.0)
    assert LoraLinear(
        nn.Linear(8, 8), name="x", index=0, settings=settings(adapter="rslora"), clock=LoraClock()
    ).scaling == pytest.approx(3.0)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_all_linear_is_what_peft_means_by_it(name: str, load: Any) -> None:
    model, facts = load(name)
    config = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM")
    judged = get_peft_model(copy.deepcopy(model), config)
    theirs = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for key, module in judged.named_modules()
        if key.endswith(".lora_A.default")
    }
    ours = {module.name for module in inject(model, settings=settings())}
    assert ours == theirs == {module.name for module in facts.linear_modules}
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * len(ours) and all(".lora_" in key for key in trainable)


def test_named_targets_choose_by_the_last_parts(load: Any) -> None:
    model, _ = load("llama")
    chosen = inject(model, settings=settings(target_modules=("q_proj", "mlp.down_proj")))
    assert [module.name for module in chosen] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]


def test_unknown_targets_are_refused_with_the_nearest_names(load: Any) -> None:
    model, _ = load("llama")
    for wrong in ("qproj", "proj", "lm_head", "embed_tokens", ".*"):
        with pytest.raises(InputRefused) as refusal:
            inject(model, settings=settings(target_modules=(wrong,)))
        assert refusal.value.code == "UNKNOWN_TARGET_MODULE"
        assert "--target-modules" in refusal.value.message and wrong in refusal.value.message
    with pytest.raises(InputRefused) as refusal:
        inject(model, settings=settings(target_modules=("qproj",)))
    assert "q_proj" in str(refusal.value.hint)
    assert not lora_modules(model), "a refusal leaves the model as it was"


def test_a_rank_above_a_targets_sizes_is_refused_by_name(load: Any) -> None:
    model, _ = load("llama")
    with pytest.raises(InputRefused) as refusal:
        inject(model, settings=settings(lora_rank=25))
    assert refusal.value.code == "RANK_TOO_LARGE" and "--lora-rank 25" in refusal.value.message
    assert "model.layers.0.self_attn.k_proj" in refusal.value.message and "48 in, 24 out" in refusal.value.message
    assert not lora_modules(model), "a refusal leaves the model as it was"


def test_dora_is_refused_by_name() -> None:
    with pytest.raises(MachineCannot, match="DoRA"):
        inject(TwoLayers(), settings=settings(adapter="dora"))


def test_a_model_without_adapter_has_nothing_to_switch() -> None:
    with pytest.raises(TunesmithError, match="inject"):
        clear_dropout_position(TwoLayers())


def test_the_base_weights_stay_frozen_and_untouched() -> None:
    model = TwoLayers()
    before = {name: value.clone() for name, value in linear_modules(model)["first"].state_dict().items()}
    inject(model, settings=settings())
    model(torch.randn(4, 12)).sum().backward()
    base: Any = lora_modules(model)[0].base
    assert torch.equal(base.weight, before["weight"]) and not base.weight.requires_grad


def test_half_precision_activations_give_float32_gradients() -> None:
    torch.manual_seed(0)
    model = TwoLayers().to(torch.bfloat16)
    inject(model, settings=settings())
    alive(model)
    set_dropout_position(model, seed=0, step=1, offset=0)
    x = torch.randn(32, 12)
    model(x.to(torch.bfloat16)).float().square().sum().backward()
    exact = copy.deepcopy(model).float()
    exact.__dict__["tunesmith_clock"] = model.__dict__["tunesmith_clock"]
    for module in lora_modules(exact):
        module.clock = lora_modules(model)[0].clock
        module.lora_A.grad = module.lora_B.grad = None
    exact(x).square().sum().backward()
    for name, parameter in adapter_parameters(model).items():
        wanted = adapter_parameters(exact)[name].grad
        assert parameter.dtype == torch.float32 and parameter.grad is not None and wanted is not None
        assert parameter.grad.dtype == torch.float32
        # bf16 keeps 8 bits; sums of 32 rows lose a little more
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 0.05
