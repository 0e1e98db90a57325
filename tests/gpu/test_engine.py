"""The engine on a GPU: as near to float32 as transformers' own bf16, and a run that learns as float32 does.

The kernels alone are held against their references in `tests/kernels`, in Triton's interpreter or, where there is a
GPU, on it. `python -m pytest tests/gpu tests/kernels`; without a GPU everything here is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cli.conftest import Done, home, tunesmith
from tests.models.conftest import MakeModel, make_model
from tests.models.test_decoder import CASES, batch, gradients, off
from tunesmith.bundled import TRAINING_ROWS
from tunesmith.models import decoder_answers, weights
from tunesmith.models.ahead import Ahead, foreseen_launches, foreseen_of_modules
from tunesmith.models.base import load_base
from tunesmith.models.decoder import Decoder
from tunesmith.models.generate import greedy
from tunesmith.models.inspect import inspect_model
from tunesmith.models.layers import compile_layers
from tunesmith.models.lora import adapter_parameters, inject, set_dropout_position
from tunesmith.models.tensor_file import read_header
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.optimizer import FlatAdamW
from tunesmith.train.step import forward_scores, train_step

__all__ = ["home", "make_model", "tunesmith"]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
RANK = 16


def passed(make_model: MakeModel, case: str, *, dtype: torch.dtype, is_fast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihoods of learned tokens, and the adapter's gradients, after the same random adapter."""
    name, changes = CASES[case]
    facts = inspect_model(make_model(name, **(changes | SIZES)), "test/model")
    model = load_base(facts, dtype=dtype, device=DEVICE)
    settings = TrainingSettings(lora_rank=RANK, lora_dropout=0.0)
    inject(model, settings=settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(model).values():
        parameter.data += (0.05 * torch.randn(parameter.shape, generator=generator)).to(DEVICE, parameter.dtype)
    given = batch([37, 20, 11, 60])
    if is_fast:
        decoder = Decoder(model, settings=settings)
        decoder.refresh(is_enabled=True)
        decoder.train(given, seed=1, step=1, divisor=given.num_learned)
        found = gradients(model)
        with torch.no_grad():
            return decoder.scores(given).nll_N, found
    set_dropout_position(model, seed=1, step=1, offset=0)
    scores = forward_scores(model, given, device=DEVICE)
    (scores.loss_sum / given.num_learned).backward()
    return scores.nll_N.detach(), gradients(model)


@pytest.mark.parametrize("case", CASES)
def test_the_fast_path_is_as_near_to_float32_as_bf16_is(make_model: MakeModel, case: str) -> None:
    nll, gradient = passed(make_model, case, dtype=torch.float32, is_fast=False)
    plain_nll, plain_gradient = passed(make_model, case, dtype=torch.bfloat16, is_fast=False)
    fast_nll, fast_gradient = passed(make_model, case, dtype=torch.bfloat16, is_fast=True)
    assert off(fast_nll, nll) < 1.25 * off(plain_nll, nll) + 1e-3

    def whole(of: dict[str, Tensor]) -> Tensor:
        return torch.cat([of[name].double().flatten() for name in sorted(gradient)])

    assert off(whole(fast_gradient), whole(gradient)) < max(0.02, 1.25 * off(whole(plain_gradient), whole(gradient)))


def test_a_run_learns_as_in_float32(tunesmith: Callable[..., Done]) -> None:
    """The same rows and settings; the dropout masks differ from path to path, so the losses agree within noise."""

    def run(path: str, precision: str) -> float:
        options = ("--epochs", "3", "--path", path, "--precision", precision, "--json")
        done = tunesmith("finetune", "tunesmith/demo", str(TRAINING_ROWS), *options)
        assert done.code == 0, done.err
        assert done.json["path"] == path
        return done.json["epochs"][-1]["validation"]["loss"]

    assert run("fast", "bf16") == pytest.approx(run("generic", "float32"), rel=0.005)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_weights_read_by_threads_are_the_file_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(weights, "PIECE_BYTES", 1000)  # pieces that end within a value's neighbours, and many turns
    tensors = {f"t{number}": torch.randn(number, 17 * number + 1).to(dtype) for number in range(1, 40)}
    save_file(tensors, tmp_path / "model.safetensors")
    file = read_header(tmp_path / "model.safetensors")
    wanted = [name for name in file.tensors if name != "t7"]
    found = dict(weights.read_tensors(file, wanted, device=DEVICE))
    assert list(found) == wanted
    for name in wanted:
        assert found[name].device.type == "cuda" and torch.equal(found[name].cpu(), tensors[name])
    assert list(weights.read_tensors(file, [], device=DEVICE)) == []


def test_all_that_a_step_launches_is_compiled_ahead(make_model: MakeModel) -> None:
    facts = inspect_model(make_model("llama", **SIZES, num_hidden_layers=3), "test/model")
    settings = TrainingSettings(lora_rank=RANK, precision="bf16")
    Ahead(facts, settings, device=DEVICE, is_fast=True).wait()
    kernels = {one.kernel for one in foreseen_launches(facts, settings)}
    before = {kernel: len(kernel.function.device_caches[0][0]) for kernel in kernels}
    assert all(before.values())
    model = load_base(facts, dtype=torch.bfloat16, device=DEVICE, trains_only=True)
    inject(model, settings=settings)
    decoder = Decoder(model, settings=settings)
    for lengths in ([37, 20, 11, 60], [301, 7, 5], [1, 1, 90]):
        decoder.train(batch(lengths), seed=1, step=1, divisor=1)
        decoder.scores(batch(lengths))
    assert {kernel: len(kernel.function.device_caches[0][0]) for kernel in kernels} == before


def test_all_kernels_of_the_generic_path_are_compiled_ahead(make_model: MakeModel) -> None:
    facts = inspect_model(make_model("gemma3", **SIZES), "test/model")
    settings = TrainingSettings(lora_rank=RANK, precision="bf16")
    Ahead(facts, settings, device=DEVICE, is_fast=False).wait()
    kernels = {one.kernel for one in foreseen_of_modules(facts, settings)}
    before = {kernel: len(kernel.function.device_caches[0][0]) for kernel in kernels}
    assert all(before.values())
    model = load_base(facts, dtype=torch.bfloat16, device=DEVICE)
    inject(model, settings=settings)
    set_dropout_position(model, seed=1, step=1, offset=0)
    for lengths in ([37, 20, 11, 60], [301, 7, 5]):
        forward_scores(model, batch(lengths), device=DEVICE).loss_sum.backward()
        with torch.no_grad():
            forward_scores(model, batch(lengths), device=DEVICE)
    assert {kernel: len(kernel.function.device_caches[0][0]) for kernel in kernels} == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, as it compiles
def test_compiled_layers_of_the_generic_path_draw_the_same_masks(make_model: MakeModel) -> None:
    facts = inspect_model(make_model("gemma3", **SIZES), "test/model")
    model = load_base(facts, dtype=torch.bfloat16, device=DEVICE)
    inject(model, settings=TrainingSettings(lora_rank=RANK, lora_dropout=0.5))
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(0, 0.05, generator=torch.Generator(DEVICE).manual_seed(1))

    def passed(offset: int) -> tuple[float, Tensor]:
        set_dropout_position(model, seed=1, step=1, offset=offset)
        scores = forward_scores(model, batch([37, 20, 11, 60]), device=DEVICE)
        (scores.loss_sum / 100).backward()
        found = gradients(model)
        return scores.loss_sum.item(), torch.cat([found[name].double().flatten() for name in sorted(found)])

    loss, gradient = passed(0)
    elsewhere = passed(1000)[1]
    compile_layers(model)
    compiled_loss, compiled = passed(0)
    assert compiled_loss == pytest.approx(loss, rel=5e-3)
    assert off(compiled, gradient) < 0.05 < off(elsewhere, gradient)


@pytest.mark.parametrize("case", CASES)
def test_replayed_passes_are_launched_ones_bit_for_bit(make_model: MakeModel, case: str) -> None:
    name, changes = CASES[case]
    facts = inspect_model(make_model(name, **(changes | SIZES)), "test/model")
    settings = TrainingSettings(lora_rank=RANK)
    given = [[37, 20, 11, 60], [30, 25, 13, 60], [300, 80, 9], [44, 17, 60], [290, 90, 7], [280, 90, 9]]
    found: list[list[Tensor]] = []
    for is_on in (False, True):
        model = load_base(facts, dtype=torch.bfloat16, device=DEVICE)
        torch.manual_seed(0)
        inject(model, settings=settings)
        optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
        decoder = Decoder(model, settings=settings)
        decoder.replays.is_on = is_on
        found.append([])
        for step, lengths in enumerate(given, 1):
            made = [batch(lengths, seed=step), batch(lengths[::-1], offset=500, seed=step + 50)]
            outcome, _ = train_step(
                model, optimizer, made, seed=4, step=step, learning_rate=1e-3, max_gradient_norm=1.0, device=DEVICE
            )
            found[-1] += [torch.tensor([outcome.loss, outcome.gradient_norm]), optimizer.values_P.detach().cpu()]
        assert decoder.replays.fault is None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_answers_from_recorded_steps_are_those_of_launches(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = inspect_model(make_model("llama", **SIZES), "test/model")
    model = load_base(facts, dtype=torch.bfloat16, device=DEVICE)
    settings = TrainingSettings(lora_rank=RANK)
    inject(model, settings=settings)
    decoder = Decoder(model, settings=settings)
    prompts = [[5, 6, 7, 8], list(range(10, 60)), [9]]
    recorded = greedy(model, prompts, max_new_tokens=30, end_ids=[256])
    assert decoder.replays.fault is None
    assert len({tuple(answer) for answer in recorded}) == 3 and len(recorded[0]) > 3

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("not now")

    monkeypatch.setattr(decoder_answers, "Recording", refuse)
    assert greedy(model, prompts, max_new_tokens=30, end_ids=[256]) == recorded
    assert decoder.replays.fault == "not now"
