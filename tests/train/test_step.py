"""Numerics of a step: against a plain float32 loop, over micro-batches, packed and unpacked, with dropout."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tests.models.test_decoder import batch as made_up
from tests.train.conftest import MakeJob, some_rows
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.data.batch import Batch, step_batches
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.models.base import load_base
from tunesmith.models.decoder import Decoder
from tunesmith.models.lora import LoraLinear, adapter_parameters, inject
from tunesmith.spec.bench import SHAPES
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.training import TrainingSettings, learning_rate_at
from tunesmith.train import step as step_module
from tunesmith.train.bench import random_llama
from tunesmith.train.optimizer import FlatAdamW
from tunesmith.train.step import Begun, StepOutcome, train_step

CPU = torch.device("cpu")


def prepared_of(job: JobFile) -> Prepared:
    return prepare(job.datasets, settings=job.settings, base=job.base, cache_folder=Path(job.cache_folder))


def model_of(job: JobFile, *, seed: int = 3) -> nn.Module:
    """The base with adapters whose output matrices are not zero, so that every gradient is alive."""
    model = load_base(job.base, dtype=torch.float32, device=CPU)
    inject(model, settings=job.settings)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data.normal_(0, 0.05, generator=generator)
    return model


def one_step(
    job: JobFile, prepared: Prepared, rows: np.ndarray, *, micro: int, sequence_length: int = 64, **changes: int
):
    model = model_of(job)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
    batches = step_batches(prepared.training, rows, sequence_length=sequence_length, micro_batch_size=micro)
    outcome, _ = train_step(
        model, optimizer, batches, seed=changes.get("seed", 0), step=changes.get("step", 1), learning_rate=1e-3,
        max_gradient_norm=1e9, device=CPU,
    )  # fmt: skip
    return outcome, optimizer.gradient_P.clone(), len(batches)


@pytest.fixture
def job(make_job: MakeJob) -> JobFile:
    path = make_job(lora_dropout=0.0, validation_fraction=0.0)
    return JobFile.model_validate_json(path.read_bytes())


def test_micro_batches_do_not_change_loss_or_gradient(job: JobFile) -> None:
    prepared, rows = prepared_of(job), np.arange(8)
    whole, gradient, _ = one_step(job, prepared, rows, micro=8, sequence_length=32)
    for micro in (1, 2, 4):
        part, other, count = one_step(job, prepared, rows, micro=micro, sequence_length=32)
        assert count > 1
        assert part.loss == pytest.approx(whole.loss, rel=1e-5)
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-7)


def test_packing_does_not_change_loss_or_gradient(job: JobFile) -> None:
    prepared, rows = prepared_of(job), np.arange(8)
    longest = int(prepared.training.lengths.max())
    packed, gradient, few = one_step(job, prepared, rows, micro=1, sequence_length=4 * longest)
    alone, other, many = one_step(job, prepared, rows, micro=1, sequence_length=longest)
    assert few < many
    assert alone.loss == pytest.approx(packed.loss, rel=1e-5)
    torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-7)


def test_dropout_masks_do_not_move_with_the_micro_batches(make_job: MakeJob) -> None:
    path = make_job(lora_dropout=0.3, validation_fraction=0.0)
    job = JobFile.model_validate_json(path.read_bytes())
    prepared, rows = prepared_of(job), np.arange(8)
    whole, gradient, _ = one_step(job, prepared, rows, micro=8, sequence_length=32)
    part, other, _ = one_step(job, prepared, rows, micro=1, sequence_length=32)
    assert part.loss == pytest.approx(whole.loss, rel=1e-5)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)
    for changes in ({"step": 2}, {"seed": 1}):
        moved, *_ = one_step(job, prepared, rows, micro=8, sequence_length=32, **changes)
        assert abs(moved.loss - whole.loss) > 1e-6


class PlainLora(nn.Module):
    """LoRA as its paper writes it: y = W x + (alpha / r) B A x, nothing fused."""

    def __init__(self, inner: nn.Linear, module: LoraLinear, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.a = nn.Parameter(module.lora_A.detach().clone())
        self.b = nn.Parameter(module.lora_B.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.scale * (x @ self.a.T @ self.b.T)


def test_training_equals_a_plain_float32_loop(job: JobFile) -> None:
    """transformers' own model, one row at a time, textbook loss and AdamW: the same losses over six steps."""
    prepared = prepared_of(job)
    ours = model_of(job)
    adapters = {name: module for name, module in ours.named_modules() if isinstance(module, LoraLinear)}
    plain = LlamaForCausalLM.from_pretrained(job.base.path, dtype=torch.float32, attn_implementation="eager")
    plain.requires_grad_(False)
    for name, module in adapters.items():
        parent, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, PlainLora(plain.get_submodule(name), module, scale=8 / 4))
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    reference = torch.optim.AdamW(trained, lr=1.0, weight_decay=0.0)
    optimizer = FlatAdamW(adapter_parameters(ours), weight_decay=0.0)
    for step in range(1, 7):
        rows = np.arange(4) + 4 * (step % 3)
        rate = learning_rate_at(job.settings, step=step, steps=6)
        total, count = torch.zeros(()), 0
        for row in rows:
            example = prepared.training[int(row)]
            tokens = torch.from_numpy(np.asarray(example.tokens))[None]
            targets = torch.where(torch.from_numpy(np.asarray(example.learned)), tokens[0], -100)[1:]
            logits = plain(tokens).logits[0, :-1]
            total = total + nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            count += int((targets != -100).sum())
        reference.zero_grad()
        (total / count).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        batches = step_batches(prepared.training, rows, sequence_length=64, micro_batch_size=2)
        outcome, _ = train_step(
            ours, optimizer, batches, seed=0, step=step, learning_rate=rate, max_gradient_norm=1.0, device=CPU
        )
        assert outcome.learned_tokens == count
        assert outcome.loss == pytest.approx(total.item() / count, rel=1e-5)


def test_one_batch_of_one_row_is_learned(make_job: MakeJob) -> None:
    path = make_job(rows=some_rows(1), base=MODEL_FOLDER, validation_fraction=0.0, lora_dropout=0.0, lora_rank=8)
    job = JobFile.model_validate_json(path.read_bytes())
    prepared = prepared_of(job)
    model = model_of(job)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
    batches = step_batches(prepared.training, np.array([0]), sequence_length=64, micro_batch_size=1)
    loss = math.inf
    for step in range(1, 101):
        outcome, _ = train_step(
            model, optimizer, batches, seed=0, step=step, learning_rate=1e-2, max_gradient_norm=1.0, device=CPU
        )
        loss = outcome.loss
        if loss < 0.01:
            break
    assert loss < 0.01


def test_a_loss_that_is_not_finite_updates_nothing(job: JobFile) -> None:
    prepared = prepared_of(job)
    model = model_of(job)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
    before = optimizer.values_P.detach().clone()
    model.get_submodule("model.norm").weight.data[0] = math.nan
    batches = step_batches(prepared.training, np.arange(4), sequence_length=64, micro_batch_size=4)
    outcome, _ = train_step(
        model, optimizer, batches, seed=0, step=1, learning_rate=1e-2, max_gradient_norm=1.0, device=CPU
    )
    assert not outcome.is_finite
    assert torch.equal(optimizer.values_P, before)
    assert optimizer.updates == 0


def stepped(
    monkeypatch: pytest.MonkeyPatch, *, is_overlapped: bool, micro: int = 1, nan_at: int = 0, no_memory_at: int = 0
) -> tuple[list[StepOutcome], FlatAdamW, list[int]]:
    """Six steps by the fast path, and how many micro-batches each call computed."""
    model, _ = random_llama(SHAPES["tiny"], name="tiny", dtype=torch.float32, device=CPU)
    settings = TrainingSettings(lora_rank=4, lora_dropout=0.1)
    inject(model, settings=settings)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.01)
    decoder = Decoder(model, settings=settings)
    computed: list[int] = []
    whole, left = decoder.train, [no_memory_at]

    def train(batch: Batch, **options: int) -> Tensor:
        if options["step"] == left[0]:
            left[0] = 0
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed[-1] += 1
        loss = whole(batch, **options)
        return loss * math.nan if options["step"] == nan_at else loss

    monkeypatch.setattr(decoder, "train", train)
    monkeypatch.setattr(step_module, "is_asynchronous", lambda _: is_overlapped)
    steps = [[made_up([30, 20], seed=number * micro + part) for part in range(micro)] for number in range(7)]
    outcomes: list[StepOutcome] = []
    begun: Begun | None = None
    for step in range(1, 7):
        computed.append(0)
        outcome, begun = train_step(
            model, optimizer, steps[step], seed=0, step=step, learning_rate=0.01,
            max_gradient_norm=(0.5, 2.0)[step % 2], device=CPU,
            begun=begun, upcoming=lambda step=step: steps[step + 1] if step not in (3, 6) else [],
        )  # fmt: skip
        outcomes.append(outcome)
    return outcomes, optimizer, computed


def test_batches_that_cannot_be_made_leave_the_step_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be repeated: the update comes after them."""
    model, _ = random_llama(SHAPES["tiny"], name="tiny", dtype=torch.float32, device=CPU)
    settings = TrainingSettings(lora_rank=4)
    inject(model, settings=settings)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
    Decoder(model, settings=settings)
    before = optimizer.values_P.detach().clone()

    def refuse() -> list[Batch]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for is_overlapped in (True, False):
        monkeypatch.setattr(step_module, "is_asynchronous", lambda _, is_overlapped=is_overlapped: is_overlapped)
        with pytest.raises(torch.OutOfMemoryError):
            train_step(
                model, optimizer, [made_up([30, 20])], seed=0, step=1, learning_rate=0.01, max_gradient_norm=1.0,
                device=CPU, upcoming=refuse,
            )  # fmt: skip
        assert torch.equal(optimizer.values_P, before) and optimizer.updates == 0


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({}, [2, 1, 0, 2, 1, 0]),  # the fourth is not begun while the third is waited for
        ({"micro": 2}, [3, 2, 1, 3, 2, 1]),
        ({"nan_at": 2}, [2, 1, 0, 2, 1, 0]),
        ({"no_memory_at": 2}, [1, 2, 0, 2, 1, 0]),  # what a step cannot begin, it computes in its turn
    ],
)
def test_a_step_that_begins_while_the_last_is_waited_for_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], computed: list[int]
) -> None:
    wanted, plain, each = stepped(monkeypatch, is_overlapped=False, **{**changes, "no_memory_at": 0})
    assert each == [changes.get("micro", 1)] * 6
    found, optimizer, counted = stepped(monkeypatch, is_overlapped=True, **changes)
    assert counted == computed
    assert optimizer.updates == plain.updates == (5 if "nan_at" in changes else 6)
    assert [one.is_finite for one in found] == [one.is_finite for one in wanted]
    norms = [one.gradient_norm for one in found if one.is_finite]
    assert all(0.5 < norm < 2.0 for norm in norms), "clipped in every second step"
    for one, other in zip(found, wanted, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4, nan_ok=True)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3, nan_ok=True)
    # Adam's first steps go by a gradient's sign, and where that is rounding the two kinds of update may differ
    assert ((optimizer.values_P - plain.values_P).abs() < 1e-5).double().mean() > 0.99
