from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.jobs.conftest import model_facts, preparation
from tunesmith.errors import MachineCannot
from tunesmith.plan.machine import Gpu, Machine
from tunesmith.plan.memory import adapter_parameters, artifact_bytes, disk_bytes
from tunesmith.plan.resolve import MINIMUM_STEPS, resolve
from tunesmith.plan.speed import CPU_SUSTAINED_SHARE, Speed, machine_speed
from tunesmith.spec.datasets import Preparation
from tunesmith.spec.plan import Plan
from tunesmith.spec.training import RESOLVED_BY_PLAN, TrainingSettings

SPEED = Speed(operations_per_second=1e9, reason="test")


def machine(*, gpu_free: int | None = None, free: int = 16 << 30, cuda: bool = True) -> Machine:
    gpus = (Gpu(index=0, name="H200", total_bytes=1 << 37, free_bytes=gpu_free, driver="1"),) if gpu_free else ()
    return Machine(
        system="Linux", processor="test CPU", cores=2, threads=2, total_memory_bytes=32 << 30, free_memory_bytes=free,
        gpus=gpus, torch_version="2.13.0", has_cuda_torch=cuda,
    )  # fmt: skip


def plan(
    settings: TrainingSettings | None = None,
    *,
    rows: Preparation | None = None,
    on: Machine | None = None,
    **facts: object,
) -> Plan:
    return resolve(
        settings or TrainingSettings(),
        facts=model_facts(**facts),  # type: ignore[arg-type]
        preparation=rows or preparation(),
        machine=on or machine(),
        speed=SPEED,
    )


def test_nothing_is_left_open_and_every_choice_has_its_reason() -> None:
    made = plan()
    made.settings.require_resolved()
    assert set(made.reasons) == set(RESOLVED_BY_PLAN)


def test_what_the_user_chose_stays_and_needs_no_reason() -> None:
    made = plan(TrainingSettings(global_batch_size=5, micro_batch_size=3))
    assert (made.settings.global_batch_size, made.settings.micro_batch_size) == (5, 3)
    assert not {"global_batch_size", "micro_batch_size"} & set(made.reasons)


def test_a_cpu_takes_eight_rows_a_step_where_that_gives_enough_steps() -> None:
    made = plan(rows=preparation(training=1000, tokens=100_000))
    assert made.settings.global_batch_size == 8
    assert made.settings.precision == made.settings.base_precision == "float32"
    assert made.steps == 3 * math.ceil(1000 / 8)


@pytest.mark.parametrize("rows", [1, 7, 20, 61, 90, 159, 160, 161])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_has_sixty_steps_where_the_data_allow(rows: int, epochs: int) -> None:
    made = plan(TrainingSettings(epochs=epochs), rows=preparation(training=rows))
    assert made.steps >= min(MINIMUM_STEPS, rows * epochs)
    batch = made.settings.global_batch_size
    assert isinstance(batch, int)
    larger_is_too_large = batch == 8 or batch == rows or epochs * math.ceil(rows / (batch + 1)) < MINIMUM_STEPS
    assert larger_is_too_large, "the batch is no smaller than it must be"


def test_a_gpu_takes_about_sixteen_thousand_tokens_a_step() -> None:
    made = plan(rows=preparation(training=100_000, tokens=20_000_000), on=machine(gpu_free=100 << 30))
    assert (made.device, made.settings.precision, made.settings.global_batch_size) == ("cuda", "bf16", 80)


def test_a_gpu_without_a_cuda_build_is_not_used_and_said() -> None:
    made = plan(on=machine(gpu_free=100 << 30, cuda=False))
    assert made.device == "cpu"
    assert "GPU_NOT_USED" in [notice.code for notice in made.notices]


def test_a_forward_pass_on_a_cpu_holds_about_four_thousand_tokens() -> None:
    made = plan(rows=preparation(training=10_000, tokens=10_000_000, longest=1000))
    assert made.settings.micro_batch_size == 4


def test_memory_is_the_sum_of_its_parts_and_the_adapters_arithmetic_is_right() -> None:
    made = plan(TrainingSettings(lora_rank=8, target_modules=("q_proj",)))
    assert made.trainable_parameters == 2 * 8 * (64 + 64)
    assert adapter_parameters(model_facts(), TrainingSettings(lora_rank=8)) == 6 * 8 * (64 + 64)
    assert made.peak_memory_bytes == sum(part.bytes for part in made.memory)
    assert {part.name for part in made.memory} == {
        "weights", "adapter", "gradients", "optimizer", "activations", "logits", "workspace",
    }  # fmt: skip


def test_a_run_that_does_not_fit_is_refused_with_its_largest_part() -> None:
    with pytest.raises(MachineCannot) as caught:
        plan(on=machine(free=1 << 30), parameters=8_000_000_000)
    assert caught.value.code == "DOES_NOT_FIT"
    assert "weights" in caught.value.message and "32.0 GB" in caught.value.message


@pytest.mark.parametrize("on", [machine(free=1 << 30), machine(gpu_free=1 << 30)], ids=["CPU", "GPU"])
def test_a_run_that_fits_once_others_give_their_memory_back_is_told_apart(on: Machine) -> None:
    with pytest.raises(MachineCannot) as caught:
        plan(on=on, parameters=4_000_000_000)
    assert caught.value.code == "DOES_NOT_FIT_NOW"


def test_a_larger_batch_than_rows_is_said() -> None:
    made = plan(TrainingSettings(global_batch_size=500))
    assert "BATCH_ABOVE_ROWS" in [notice.code for notice in made.notices]
    assert made.steps == 3
    crowded = plan(TrainingSettings(global_batch_size=500), rows=preparation(training=5, longest=20))
    assert crowded.settings.micro_batch_size == 5, "memory is counted for what a step can hold"
    assert "MICRO_BATCH_ABOVE_STEP" not in {notice.code for notice in crowded.notices}


def test_a_setting_without_effect_is_said() -> None:
    codes = {notice.code for notice in plan(TrainingSettings(micro_batch_size=9, global_batch_size=4)).notices}
    assert "MICRO_BATCH_ABOVE_STEP" in codes
    made = plan(TrainingSettings(early_stopping=2), rows=preparation(validation=0))
    assert "EARLY_STOPPING_IDLE" in {notice.code for notice in made.notices}
    assert not plan(TrainingSettings(early_stopping=2)).notices


@pytest.mark.parametrize("field", ["precision", "base_precision"])
def test_bf16_on_a_cpu_is_refused_with_words(field: str) -> None:
    with pytest.raises(MachineCannot) as caught:
        plan(TrainingSettings.model_validate({field: "bf16"}))
    assert caught.value.field == field and "float32" in caught.value.message


def test_a_base_less_precise_than_the_computation_is_not_built() -> None:
    settings = TrainingSettings(precision="bf16", base_precision="float32")
    with pytest.raises(MachineCannot) as caught:
        plan(settings, on=machine(gpu_free=100 << 30))
    assert caught.value.code == "NOT_BUILT"


def test_more_epochs_cost_more_time_in_proportion() -> None:
    one = plan(TrainingSettings(epochs=10)).seconds
    two = plan(TrainingSettings(epochs=20)).seconds
    assert 1.8 < two / one < 2.0


def test_the_speed_of_a_cpu_is_measured_once_and_that_of_a_gpu_assumed_and_both_say_so(tmp_path: Path) -> None:
    measured = machine_speed(machine(), cache=tmp_path)
    assert "measured" in measured.reason and measured.operations_per_second > 1e8
    assert machine_speed(machine(), cache=tmp_path) == measured
    [kept] = (tmp_path / "speed").iterdir()
    kept.write_text("2e9\n")
    assert machine_speed(machine(), cache=tmp_path).operations_per_second == 2e9 * 2 * CPU_SUSTAINED_SHARE
    assert "assumed" in machine_speed(machine(gpu_free=100 << 30), cache=tmp_path).reason


def test_the_time_counts_as_many_sampled_rows_as_the_trainer_scores() -> None:
    rows = preparation(training=10_000, validation=0, tokens=10_000)
    made = plan(TrainingSettings(validation_fraction=0, epochs=1), rows=rows)
    trained = adapter_parameters(model_facts(), made.settings)
    weights = model_facts().parameters
    training = 10_000 * (4 * weights + 6 * trained)
    evaluation = 2 * 500 * 2 * (weights + trained)  # 500 rows of one token, before the first step and after the epoch
    assert made.seconds == pytest.approx((training + evaluation) / SPEED.operations_per_second)


def test_results_need_room_for_the_adapter_and_the_tokenizer_not_for_checkpoints() -> None:
    facts = model_facts()
    settings = TrainingSettings(lora_rank=8)
    needed = artifact_bytes(facts, settings)
    assert needed < disk_bytes(facts, settings) / 2
    assert artifact_bytes(facts, TrainingSettings(lora_rank=16)) > needed
    assert artifact_bytes(facts.model_copy(update={"tokenizer_size": 1_000_000}), settings) > needed + 100_000_000
