"""Chooses what a user left to `auto`, says why, and tells what the run will cost before it starts.

In: settings, the base model's facts, what became of the datasets, the machine. Out: a `Plan` with nothing left open,
or a refusal of what does not fit this machine. What the model cannot have, its inspection has refused before.
"""

from __future__ import annotations

import math

from tunesmith.errors import MachineCannot
from tunesmith.plan.machine import BF16_CAPABILITY, Machine
from tunesmith.plan.memory import (
    adapter_parameters,
    disk_bytes,
    largest,
    memory_parts,
)
from tunesmith.plan.speed import Speed
from tunesmith.spec.datasets import Notice, Preparation, RowCounts
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.paths import why_not_fast
from tunesmith.spec.plan import MemoryPart, Plan
from tunesmith.spec.training import AUTO, TrainingSettings, sampled_rows

GPU_TOKENS_PER_STEP = 16_000
CPU_ROWS_PER_STEP = 8
MINIMUM_STEPS = 60
CPU_TOKENS_PER_FORWARD = 4096  # beyond it a CPU gains nothing and its caches lose
# Products are as fast as they get from about here on (8B, one H200: 18,100 tokens/s at 8,192, 18,300 at 16,384).
GPU_TOKENS_PER_FORWARD = 8192
# Forward and backward through a layer of a small model (135 million parameters, 2,048 tokens), replayed, on an H200.
FAST_LAYER_SECONDS = 0.4e-3
COMPILE_SECONDS = 20  # of the generic path's layers, cold: three graphs of one layer (H200: 9 s for that of training)
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
        if machine.device == "cuda" and wished == "bf16" and not machine.gpus[0].has_bf16:
            gpu = machine.gpus[0]
            raise MachineCannot(
                "GPU_TOO_OLD",
                f"--{field.replace('_', '-')} bf16: {gpu.name} has compute capability {gpu.capability:g}; bf16 needs "
                f"{BF16_CAPABILITY:g}.",
                field=field,
                hint="Give --precision float32, or leave the option out: this GPU then computes in float32.",
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
    return "bf16" if machine.device == "cuda" and machine.gpus[0].has_bf16 else "float32"


def _why_precision(machine: Machine) -> str:
    if machine.device == "cpu":
        return "a CPU computes in float32"
    gpu = machine.gpus[0]
    if gpu.has_bf16:
        return f"{gpu.name} computes in bf16"
    return f"{gpu.name} has compute capability {gpu.capability:g}: too old for bf16, which needs {BF16_CAPABILITY:g}"


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
        reasons["precision"] = _why_precision(machine)
    if settings.base_precision == AUTO:
        reasons["base_precision"] = "as the computation"
    if settings.strategy == AUTO:
        reasons["strategy"] = f"one {'GPU' if machine.device == 'cuda' else 'CPU'} is used"
    rows = preparation.counts.training
    batch = settings.global_batch_size
    if batch == AUTO:
        batch, reasons["global_batch_size"] = _global_batch(settings, preparation, machine)
    settled = settings.model_copy(update=chosen | {"global_batch_size": batch})
    path, reason = _path(settled, facts, machine)
    if settings.path == AUTO:
        reasons["path"] = reason
    settled = settled.model_copy(update={"path": path})
    _refuse_idle_compiling(settled, machine)
    if settled.compile_layers == AUTO:
        choice, reasons["compile_layers"] = _compile(settled, facts, preparation, machine, speed)
        settled = settled.model_copy(update={"compile_layers": choice})
    is_open = settled.checkpointed_layers == AUTO
    if is_open:
        settled = settled.model_copy(update={"checkpointed_layers": 0})
    if settled.micro_batch_size == AUTO:
        micro, reasons["micro_batch_size"] = _micro_batch(settled, facts, machine, rows=rows)
        settled = settled.model_copy(update={"micro_batch_size": micro})
    if is_open:
        layers, reasons["checkpointed_layers"] = _checkpointed_layers(settled, facts, machine)
        settled = settled.model_copy(update={"checkpointed_layers": layers})
    settled = TrainingSettings.model_validate(settled.model_dump())
    settled.require_resolved()
    parts = memory_parts(facts, settled, device=machine.device)
    peak = sum(part.bytes for part in parts)
    _require_fit(peak, parts, machine, settled)
    steps_per_epoch = math.ceil(rows / batch)
    seconds, seconds_reason = _seconds(settled, facts, preparation, speed)
    least = _least_seconds(settled, facts, preparation, machine, steps=steps_per_epoch * settled.epochs)
    if least > seconds:
        seconds, seconds_reason = (
            least,
            f"rough: {FAST_LAYER_SECONDS * 1e3:g} ms a layer and pass, however few its tokens",
        )
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


def _refuse_idle_compiling(settings: TrainingSettings, machine: Machine) -> None:
    """An option without effect is refused, not ignored."""
    if settings.compile_layers != "on":
        return
    if machine.device != "cuda" or settings.path == "fast" or not machine.has_triton:
        where = (
            "on a CPU"
            if machine.device != "cuda"
            else "on the fast path"
            if settings.path == "fast"
            else "without Triton"
        )
        raise MachineCannot(
            "COMPILE_NOT_HERE",
            f"--compile-layers on: nothing is compiled {where}.",
            field="compile_layers",
            hint="Leave it out" + (", or give --path generic." if settings.path == "fast" else "."),
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


def _path(settings: TrainingSettings, facts: ModelFacts, machine: Machine) -> tuple[str, str]:
    """Which code computes the layers, and why. Raises MachineCannot where the one asked for cannot."""
    reason = why_not_fast(facts, settings, device=machine.device, has_triton=machine.has_triton)
    if settings.path == "fast" and reason is not None:
        raise MachineCannot(
            "PATH_NOT_POSSIBLE",
            f"--path fast cannot compute this run: {reason}.",
            field="path",
            hint="Leave it out: the generic path takes every model.",
        )
    if settings.path != AUTO:
        return settings.path, "as asked"
    if reason is not None:
        return "generic", reason
    return "fast", f"{facts.model_type} in bf16 on a GPU: our own decoder computes it"


def _compile(
    settings: TrainingSettings, facts: ModelFacts, preparation: Preparation, machine: Machine, speed: Speed
) -> tuple[str, str]:
    """On where a GPU's generic path gains more by it than it takes."""
    if machine.device != "cuda":
        return "off", "layers are compiled on a GPU only"
    if settings.path == "fast":
        return "off", "the fast path has its own kernels"
    if not machine.has_triton:
        return "off", "Triton, which torch compiles to on a GPU, is not installed"
    seconds = {
        choice: _seconds(settings.model_copy(update={"compile_layers": choice}), facts, preparation, speed)[0]
        for choice in ("on", "off")
    }
    gain = seconds["off"] - seconds["on"]
    if gain < COMPILE_SECONDS:
        return "off", f"it would save about {gain:.0f} s of the run and take about {COMPILE_SECONDS} s"
    return "on", f"it saves about {gain:,.0f} s of the run and takes about {COMPILE_SECONDS} s once"


def _micro_batch(settings: TrainingSettings, facts: ModelFacts, machine: Machine, *, rows: int) -> tuple[int, str]:
    """Packed rows of one forward pass: what a CPU's caches or a GPU's free memory hold."""
    assert isinstance(settings.sequence_length, int)
    length = settings.sequence_length
    if machine.device == "cpu":
        micro = min(max(1, CPU_TOKENS_PER_FORWARD // length), _rows_per_step(settings, rows))
        return micro, f"{micro} x {length} tokens: about {CPU_TOKENS_PER_FORWARD:,} a forward pass on a CPU"
    wanted = max(1, min(-(-GPU_TOKENS_PER_FORWARD // length), _rows_per_step(settings, rows)))
    micro = wanted
    while micro > 1 and not _fits(settings, facts, machine, micro_batch_size=micro):
        micro -= 1
    if micro < wanted:
        return micro, f"{micro} x {length} tokens fit the {_gigabytes(machine.free_device_bytes)} free on the GPU"
    return micro, f"{micro} x {length} tokens: about {GPU_TOKENS_PER_FORWARD:,} a forward pass on a GPU"


def _checkpointed_layers(settings: TrainingSettings, facts: ModelFacts, machine: Machine) -> tuple[int, str]:
    """As few as fit, each for a third more of its operations."""
    if _fits(settings, facts, machine):
        return 0, "everything that the backward pass needs fits into memory"
    for count in range(1, facts.num_layers + 1):
        if _fits(settings, facts, machine, checkpointed_layers=count):
            price = count / facts.num_layers / 3
            return count, (
                f"so that the run fits the {_gigabytes(machine.free_device_bytes)} free; the steps take about "
                f"{price:.0%} longer"
            )
    return 0, "computing layers twice would not make it fit either"


def _fits(settings: TrainingSettings, facts: ModelFacts, machine: Machine, **changes: int) -> bool:
    peak = sum(part.bytes for part in memory_parts(facts, settings.model_copy(update=changes), device=machine.device))
    return peak <= USABLE_SHARE * machine.free_device_bytes


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
    assert isinstance(settings.checkpointed_layers, int) or settings.checkpointed_layers == AUTO
    twice = 0 if settings.checkpointed_layers == AUTO else settings.checkpointed_layers / facts.num_layers
    rate, reason = speed.of(path=settings.path, is_compiled=settings.compile_layers == "on")
    return (training * (1 + twice / 3) + evaluation) / rate, reason


def _least_seconds(
    settings: TrainingSettings, facts: ModelFacts, preparation: Preparation, machine: Machine, *, steps: int
) -> float:
    """Of training a small model on a GPU: its kernels take their time whatever they work on."""
    if machine.device != "cuda" or settings.path != "fast":
        return 0.0
    assert isinstance(settings.micro_batch_size, int) and isinstance(settings.sequence_length, int)
    tokens = preparation.training.total * settings.epochs
    passes = max(steps, math.ceil(tokens / (settings.sequence_length * settings.micro_batch_size)))
    return passes * facts.num_layers * FAST_LAYER_SECONDS


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
    if machine.device == "cuda" and not machine.has_triton:
        notices.append(
            Notice(
                code="TRITON_MISSING",
                message="Triton is not installed: the run takes the generic path, and nothing is compiled.",
                hint="`python -m pip install triton` makes it several times as fast.",
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
