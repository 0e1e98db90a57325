"""Chooses what a user left to `auto`, says why, and tells what the run will cost before it starts.

In: settings, the base model's facts, what became of the datasets, the machine. Out: a `Plan` with nothing left open,
or a refusal of what does not fit this machine. What the model cannot have, its inspection has refused before.
"""

from __future__ import annotations

import math

from tunesmith.errors import MachineCannot
from tunesmith.plan.machine import Machine
from tunesmith.plan.memory import (
    activation_bytes_per_token,
    adapter_parameters,
    disk_bytes,
    largest,
    memory_parts,
)
from tunesmith.plan.speed import Speed
from tunesmith.spec.datasets import Notice, Preparation, RowCounts
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.plan import MemoryPart, Plan
from tunesmith.spec.training import AUTO, TrainingSettings, sampled_rows

GPU_TOKENS_PER_STEP = 16_000
CPU_ROWS_PER_STEP = 8
MINIMUM_STEPS = 60
CPU_TOKENS_PER_FORWARD = 4096  # beyond it a CPU gains nothing and its caches lose
GPU_MAXIMUM_TOKENS_PER_FORWARD = 65_536
USABLE_SHARE = 0.9  # of the memory free now; the rest is for what the estimate does not see


def refuse_precision(settings: TrainingSettings, machine: Machine) -> None:
    """Precisions that this machine does not compute in (MachineCannot)."""
    wishes = {"precision": settings.precision, "base_precision": settings.base_precision}
    for field, wished in wishes.items():
        if machine.device == "cpu" and wished == "bf16":
            raise MachineCannot(
                "PRECISION_NOT_HERE",
                f"--{field.replace('_', '-')} bf16: this run is on a CPU, whose precision is float32.",
                field=field,
                hint="Leave the option out, or run on a machine with a GPU.",
            )
    if settings.base_precision != AUTO and settings.base_precision != _precision(settings, machine):
        raise MachineCannot(
            "NOT_BUILT",
            f"--base-precision {settings.base_precision} with a computation in {_precision(settings, machine)} is not "
            "built yet.",
            field="base_precision",
            hint="Leave it out: the base is kept as precise as the computation.",
        )


def _precision(settings: TrainingSettings, machine: Machine) -> str:
    if settings.precision != AUTO:
        return settings.precision
    return "bf16" if machine.device == "cuda" else "float32"


def resolve(
    settings: TrainingSettings, *, facts: ModelFacts, preparation: Preparation, machine: Machine, speed: Speed
) -> Plan:
    """The plan of a run. Raises MachineCannot before anything is spent."""
    refuse_precision(settings, machine)
    reasons: dict[str, str] = {}
    chosen: dict[str, object] = {
        "sequence_length": preparation.sequence_length,
        "render": preparation.render,
        "precision": _precision(settings, machine),
        "strategy": "single",
    }
    chosen["base_precision"] = chosen["precision"]
    if settings.sequence_length == AUTO:
        reasons["sequence_length"] = (
            f"the longest row has {preparation.longest_row:,} tokens; the context holds {facts.context_length:,}"
        )
    if settings.render == AUTO:
        has = "has a" if preparation.render == "chat" else "has no"
        reasons["render"] = f"{facts.name} {has} chat template"
    if settings.precision == AUTO:
        reasons["precision"] = (
            "a CPU computes in float32" if machine.device == "cpu" else f"{machine.device_name} computes in bf16"
        )
    if settings.base_precision == AUTO:
        reasons["base_precision"] = "as the computation"
    if settings.strategy == AUTO:
        reasons["strategy"] = f"one {'GPU' if machine.device == 'cuda' else 'CPU'} is used"
    rows = preparation.counts.training
    batch = settings.global_batch_size
    if batch == AUTO:
        batch, reasons["global_batch_size"] = _global_batch(settings, preparation, machine)
    settled = settings.model_copy(update=chosen | {"global_batch_size": batch})
    if settled.micro_batch_size == AUTO:
        micro, reasons["micro_batch_size"] = _micro_batch(settled, facts, machine, rows=rows)
        settled = settled.model_copy(update={"micro_batch_size": micro})
    settled = TrainingSettings.model_validate(settled.model_dump())
    settled.require_resolved()
    parts = memory_parts(facts, settled, device=machine.device)
    peak = sum(part.bytes for part in parts)
    _require_fit(peak, parts, machine, settled)
    steps_per_epoch = math.ceil(rows / batch)
    seconds, seconds_reason = _seconds(settled, facts, preparation, speed)
    return Plan(
        settings=settled,
        reasons=reasons,
        device="cuda" if machine.device == "cuda" else "cpu",
        device_name=machine.device_name,
        threads=machine.threads,
        trainable_parameters=adapter_parameters(facts, settled),
        steps_per_epoch=steps_per_epoch,
        steps=steps_per_epoch * settled.epochs,
        tokens_per_epoch=preparation.training.total,
        memory=parts,
        peak_memory_bytes=peak,
        free_memory_bytes=machine.free_device_bytes,
        disk_bytes=disk_bytes(facts, settled),
        seconds=seconds,
        seconds_reason=seconds_reason,
        notices=_notices(settled, preparation.counts, machine),
    )


def _global_batch(settings: TrainingSettings, preparation: Preparation, machine: Machine) -> tuple[int, str]:
    """About 16,000 tokens of rows on a GPU, 8 rows on a CPU; fewer where the run would have under 60 steps."""
    rows = preparation.counts.training
    if machine.device == "cuda":
        mean = max(1.0, preparation.training.total / max(1, rows))
        preferred = max(1, round(GPU_TOKENS_PER_STEP / mean))
        reason = f"about {GPU_TOKENS_PER_STEP:,} tokens a step on a GPU at {mean:.0f} tokens a row"
    else:
        preferred = CPU_ROWS_PER_STEP
        reason = f"{CPU_ROWS_PER_STEP} rows a step on a CPU"
    preferred = min(preferred, max(1, rows))
    batch = preferred
    while batch > 1 and settings.epochs * math.ceil(rows / batch) < MINIMUM_STEPS:
        batch -= 1
    if batch < preferred:
        reason += f"; fewer here, so that the run has {settings.epochs * math.ceil(rows / batch)} steps"
    return batch, reason


def _micro_batch(settings: TrainingSettings, facts: ModelFacts, machine: Machine, *, rows: int) -> tuple[int, str]:
    """Packed rows of one forward pass: what a CPU's caches or a GPU's free memory hold."""
    assert isinstance(settings.sequence_length, int)
    length = settings.sequence_length
    if machine.device == "cpu":
        micro = min(max(1, CPU_TOKENS_PER_FORWARD // length), _rows_per_step(settings, rows))
        return micro, f"{micro} x {length} tokens: about {CPU_TOKENS_PER_FORWARD:,} a forward pass on a CPU"
    single = memory_parts(facts, settings.model_copy(update={"micro_batch_size": 1}), device="cuda")
    fixed = sum(part.bytes for part in single if part.name != "activations")
    room = USABLE_SHARE * machine.free_device_bytes - fixed
    fitting = int(room / (activation_bytes_per_token(facts, settings) * length))
    micro = max(1, min(fitting, GPU_MAXIMUM_TOKENS_PER_FORWARD // length, _rows_per_step(settings, rows)))
    return micro, f"{micro} x {length} tokens fit the {_gigabytes(machine.free_device_bytes)} free on the GPU"


def _rows_per_step(settings: TrainingSettings, rows: int) -> int:
    """A step never has more packed rows than dataset rows, nor more than there are."""
    assert isinstance(settings.global_batch_size, int)
    return max(1, min(settings.global_batch_size, rows))


def _require_fit(peak: int, parts: list[MemoryPart], machine: Machine, settings: TrainingSettings) -> None:
    free = machine.free_device_bytes
    if peak <= USABLE_SHARE * free:
        return
    top = largest(parts)
    ways = {
        "activations": "Lower --micro-batch-size or --sequence-length (with --too-long cut).",
        "logits": "Take a base model with a smaller vocabulary.",
        "weights": "Take a smaller base model, or a machine with more memory.",
    }
    is_for_now = peak <= USABLE_SHARE * machine.total_device_bytes  # others hold what it lacks: a queued job waits
    raise MachineCannot(
        "DOES_NOT_FIT_NOW" if is_for_now else "DOES_NOT_FIT",
        f"The run needs about {_gigabytes(peak)} and {_gigabytes(free)} are free on {machine.device_name}; "
        f"most of it for {top.name}: {top.formula} = {_gigabytes(top.bytes)}.",
        field="micro_batch_size"
        if top.name == "activations" and (settings.micro_batch_size != 1)
        else ("sequence_length" if top.name == "activations" else "model"),
        hint=ways.get(top.name, "Lower --lora-rank, or free some memory on this machine."),
    )


def _seconds(
    settings: TrainingSettings, facts: ModelFacts, preparation: Preparation, speed: Speed
) -> tuple[float, str]:
    """Forward and backward through a frozen base cost 4 operations a weight and token, an adapter's weights 6.

    Evaluation costs 2; it happens before the first step and after each epoch, on the validation rows and a sample of
    the training rows.
    """
    trainable = adapter_parameters(facts, settings)
    training = preparation.training.total * settings.epochs * (4 * facts.parameters + 6 * trainable)
    counts = preparation.counts
    held_out = preparation.validation.total if preparation.validation else 0
    sampled = sampled_rows(training=counts.training, validation=counts.validation)
    seen = held_out + preparation.training.total * sampled / max(1, counts.training)
    evaluation = 2 * (facts.parameters + trainable) * seen * (settings.epochs + 1)
    return (training + evaluation) / speed.operations_per_second, speed.reason


def _notices(settings: TrainingSettings, counts: RowCounts, machine: Machine) -> list[Notice]:
    rows, batch, micro = counts.training, settings.global_batch_size, settings.micro_batch_size
    assert isinstance(batch, int) and isinstance(micro, int), "the plan has resolved them"
    notices: list[Notice] = []
    if settings.early_stopping != "off" and not counts.validation:
        notices.append(
            Notice(
                code="EARLY_STOPPING_IDLE",
                message=f"--early-stopping {settings.early_stopping} never stops this run: it goes by the validation "
                "loss, and there are no validation rows.",
                hint="Give --validation-fraction above 0 or --validation-dataset, or leave it out.",
            )
        )
    if micro > min(batch, rows):
        notices.append(
            Notice(
                code="MICRO_BATCH_ABOVE_STEP",
                message=f"--micro-batch-size {micro} is more than a step has rows ({min(batch, rows)}): each step is "
                "one forward pass.",
                hint="A greater --global-batch-size would fill it.",
            )
        )
    if batch > rows:
        notices.append(
            Notice(
                code="BATCH_ABOVE_ROWS",
                message=f"The global batch of {batch} rows is larger than the {rows} training rows: "
                "an epoch is one step.",
                hint="A smaller --global-batch-size gives more steps.",
            )
        )
    if machine.gpus and machine.device == "cpu":
        notices.append(
            Notice(
                code="GPU_NOT_USED",
                message=f"{machine.gpus[0].name} is not used: the installed torch has no CUDA build.",
                hint="`tunesmith doctor` names the command that installs one.",
            )
        )
    if len(machine.gpus) > 1 and machine.device == "cuda":
        notices.append(
            Notice(code="ONE_GPU_USED", message=f"One of {len(machine.gpus)} GPUs is used: several are not built yet.")
        )
    return notices


def _gigabytes(count: int | float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
