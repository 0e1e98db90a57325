from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs.conftest import model_facts, preparation
from tunesmith.errors import MachineCannot
from tunesmith.plan.machine import Gpu, Machine
from tunesmith.plan.memory import adapter_parameters, artifact_bytes, disk_bytes, memory_parts
from tunesmith.plan.resolve import FAST_LAYER_SECONDS, MINIMUM_STEPS, resolve
from tunesmith.plan.speed import CPU_SUSTAINED_SHARE, GPU_SUSTAINED_SHARES, Speed, machine_speed
from tunesmith.spec import paths
from tunesmith.spec.datasets import Preparation
from tunesmith.spec.models import LinearModule
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
    speed: Speed = SPEED,
    **facts: object,
) -> Plan:
    return resolve(
        settings or TrainingSettings(),
        facts=model_facts(**facts),  # type: ignore[arg-type]
        preparation=rows or preparation(),
        machine=on or machine(),
        speed=speed,
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
    assumed = machine_speed(machine(gpu_free=100 << 30), cache=tmp_path)
    fast, compiled, plain = (
        assumed.of(path=path, is_compiled=is_compiled)
        for path, is_compiled in (("fast", False), ("generic", True), ("generic", False))
    )
    assert fast[0] > compiled[0] > plain[0] and "assumed" in plain[1]
    assert measured.of(path="generic", is_compiled=False) == (measured.operations_per_second, measured.reason)


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


def on_gpu(**changes: object) -> Machine:
    made = machine(gpu_free=100 << 30)
    gpu = replace(made.gpus[0], **{"capability": 9.0, **changes})  # type: ignore[arg-type]
    return replace(made, gpus=(gpu,))


def test_a_gpu_too_old_for_bf16_computes_in_float32_and_bf16_is_refused() -> None:
    old = on_gpu(capability=7.5)
    made = plan(on=old)
    assert made.settings.precision == "float32" and "7.5" in made.reasons["precision"]
    with pytest.raises(MachineCannot) as caught:
        plan(TrainingSettings(precision="bf16"), on=old)
    assert caught.value.code == "GPU_TOO_OLD" and "float32" in str(caught.value.hint)


GENERIC = TrainingSettings(path="generic")


def test_layers_are_compiled_where_that_gains_more_than_it_takes() -> None:
    speed = Speed(operations_per_second=1e15, reason="test", shares=GPU_SUSTAINED_SHARES)
    short, long = (
        plan(GENERIC, rows=preparation(tokens=count), on=on_gpu(), speed=speed, parameters=10**9)
        for count in (10**3, 10**9)
    )
    assert (short.settings.compile_layers, long.settings.compile_layers) == ("off", "on")
    assert "save" in short.reasons["compile_layers"] and "saves" in long.reasons["compile_layers"]
    assert plan().settings.compile_layers == "off"
    without = replace(on_gpu(), has_triton=False)
    made = plan(rows=preparation(tokens=10**9), on=without, parameters=10**9)
    assert made.settings.compile_layers == "off" and "TRITON_MISSING" in {notice.code for notice in made.notices}
    for where in (machine(), without):
        with pytest.raises(MachineCannot) as caught:
            plan(TrainingSettings(compile_layers="on"), on=where)
        assert caught.value.code == "COMPILE_NOT_HERE"


def test_a_small_model_takes_its_time_on_a_gpu_however_few_its_operations() -> None:
    speed = Speed(operations_per_second=1e16, reason="test", shares=GPU_SUSTAINED_SHARES)
    rows = preparation(training=1000, tokens=2_000_000, longest=2048)
    small, large, generic = (
        plan(
            settings,
            rows=rows,
            on=on_gpu(),
            speed=speed,
            parameters=parameters,
            num_layers=30,
            model_type="llama",
            head_dim=64,
        )
        for settings, parameters in ((None, 10**8), (None, 10**10), (GENERIC, 10**8))
    )
    micro, length = small.settings.micro_batch_size, small.settings.sequence_length
    assert isinstance(micro, int) and isinstance(length, int)
    passes = max(small.steps, math.ceil(small.tokens_per_epoch * small.settings.epochs / (length * micro)))
    assert small.seconds == pytest.approx(passes * 30 * FAST_LAYER_SECONDS) and "a layer" in small.seconds_reason
    assert "a layer" not in large.seconds_reason and large.seconds > small.seconds
    assert "a layer" not in generic.seconds_reason and generic.seconds < small.seconds


def test_layers_are_computed_twice_as_few_as_fit_and_after_the_rows_of_a_pass_are_one() -> None:
    rows = preparation(training=1000, tokens=8_000_000, longest=8192)
    roomy = plan(rows=rows, on=on_gpu(), num_layers=4)
    assert roomy.settings.checkpointed_layers == 0
    needed = roomy.peak_memory_bytes
    tight = plan(rows=rows, on=on_gpu(free_bytes=int(needed / 0.9) - (1 << 20)), num_layers=4)
    layers = tight.settings.checkpointed_layers
    assert isinstance(layers, int) and 0 < layers < 4 and tight.settings.micro_batch_size == 1
    assert "longer" in tight.reasons["checkpointed_layers"] and tight.seconds > roomy.seconds
    assert tight.peak_memory_bytes < needed
    asked = plan(TrainingSettings(checkpointed_layers=3), rows=rows, on=on_gpu(), num_layers=4)
    assert asked.peak_memory_bytes < needed and "checkpointed_layers" not in asked.reasons


def test_a_forward_pass_on_a_gpu_has_about_eight_thousand_tokens() -> None:
    made = plan(rows=preparation(training=100_000, tokens=20_000_000, longest=1000), on=on_gpu())
    assert made.settings.micro_batch_size == 9


def test_the_path_is_told_with_its_reason_and_one_that_cannot_be_is_refused() -> None:
    made = plan()
    assert made.settings.path == "generic" and "GPU" in made.reasons["path"]
    with pytest.raises(MachineCannot) as caught:
        plan(TrainingSettings(path="fast"))
    assert caught.value.code == "PATH_NOT_POSSIBLE" and caught.value.field == "path"
    assert "path" not in plan(TrainingSettings(path="generic")).reasons


def test_the_fast_path_takes_what_it_claims_and_names_what_it_does_not() -> None:
    facts = model_facts(model_type="llama", head_dim=64)
    bf16 = TrainingSettings(precision="bf16")
    assert paths.why_not_fast(facts, bf16, device="cuda") is None
    for changed, settings, options, word in (
        ({"model_type": "gemma2"}, bf16, {}, "gemma2"),
        ({"rope_kind": "dynamic"}, bf16, {}, "dynamic"),
        ({"activation": "gelu"}, bf16, {}, "gelu"),
        ({}, TrainingSettings(precision="float32"), {}, "float32"),
        ({}, bf16, {"has_triton": False}, "Triton"),
        ({"head_dim": 80}, bf16, {}, "heads"),
        ({"intermediate_size": 1000}, bf16, {}, "multiples"),
        ({}, TrainingSettings(precision="bf16", lora_rank=256), {}, "ranks up to 128"),
    ):
        reason = paths.why_not_fast(facts.model_copy(update=changed), settings, device="cuda", **options)
        assert reason is not None and word in reason


def test_memory_of_an_8b_on_the_fast_path_is_what_was_measured() -> None:
    """40.5 GiB at rows of 8,192 tokens on one H200, without the CUDA context (docs/performance.md)."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_layers": 32, "num_attention_heads": 32,
             "num_key_value_heads": 8, "head_dim": 128, "vocabulary_size": 128256,
             "parameters": 8_030_261_248}  # fmt: skip
    shapes = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "o_proj": (4096, 4096),
              "gate_proj": (4096, 14336), "up_proj": (4096, 14336), "down_proj": (14336, 4096)}  # fmt: skip
    linear = [
        LinearModule(name=f"model.layers.{layer}.{name}", in_features=size[0], out_features=size[1])
        for layer in range(32)
        for name, size in shapes.items()
    ]
    settings = TrainingSettings(
        path="fast", precision="bf16", sequence_length=8192, micro_batch_size=1, global_batch_size=80
    )
    parts = memory_parts(model_facts(**sizes, linear_modules=linear), settings, device="cuda")
    allocated = sum(part.bytes for part in parts if part.name != "workspace")
    assert allocated / 2**30 == pytest.approx(40.5, rel=0.05)
    kept = next(part for part in parts if part.name == "activations")
    assert kept.bytes / 8192 == pytest.approx(3.0e6, rel=0.03)
