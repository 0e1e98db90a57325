"""Measures training and evaluation on this device: `python -m tunesmith.train.bench REQUEST_JSON`.

In: a `BenchRequest` as one JSON argument. Out: progress on standard error, and as the last line of standard output
`RESULT ` with a `BenchResult`, or `ERROR ` with an error's form. It runs what a job runs: the same step, the same
evaluation, the same paths; only the rows and, unless a folder is named, the weights are made up.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch, evaluation_batches
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.models import attention
from tunesmith.models.base import load_base
from tunesmith.models.decoder import decoder_of
from tunesmith.models.inspect import inspect_model
from tunesmith.models.lora import adapter_parameters, clear_dropout_position, inject, linear_modules
from tunesmith.spec.bench import SHAPES, BenchRequest, BenchResult, ModelShape, Roofline
from tunesmith.spec.models import LinearModule, ModelFacts
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.faults import is_out_of_memory
from tunesmith.train.loop import DTYPES, EVALUATION_TOKENS, peak_memory_bytes
from tunesmith.train.optimizer import FlatAdamW
from tunesmith.train.path import Path as ComputePath
from tunesmith.train.path import set_up_path
from tunesmith.train.roofline import measure, operations_per_token
from tunesmith.train.step import Begun, forward_scores, train_step
from tunesmith.train.workload import MadeUpRows, shortest_row, steps_of
from tunesmith.versions import numeric_versions

WARM_UP_STEPS = 8  # products of new sizes are looked up and their kernels loaded
SHOWN_STEPS = (1, 2, 5, 10, 15, 20, 30)
LEARNING_RATE = 2e-4
EVALUATION_SECONDS = 3.0
ROWS = {"dialog": 6000, "long": 700}


def run(request: BenchRequest) -> BenchResult:
    """Raises TunesmithError, torch.OutOfMemoryError."""
    device, dtype = torch.device(request.device), DTYPES[request.precision]
    torch.set_num_threads(request.threads)
    started = time.perf_counter()
    _say("making the model")
    model, facts = _model(request, dtype=dtype, device=device)
    rows, steps = _rows(request, facts)
    settings = _settings(request)
    inject(model, settings=settings)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
    path = set_up_path(model, facts=facts, settings=settings, device=device)
    load_seconds = time.perf_counter() - started
    roofline = None
    if request.with_roofline:
        _say("measuring what the device reaches")
        roofline = measure(device, dtype=dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _say(f"training on {request.workload} rows, {path.name}: {path.reason}")
    trained = _train(model, optimizer, steps, request, path, device=device)
    peak = peak_memory_bytes(device)
    evaluated = _evaluate(model, rows, device=device) if request.with_evaluation else None
    needed = {
        trains: operations_per_token(
            facts,
            adapter_values=optimizer.values_P.numel(),
            learned_share=rows.learned_share,
            mean_context=rows.mean_context,
            trains=trains,
        )
        for trains in (True, False)
    }
    return BenchResult(
        model=request.shape or facts.name,
        workload=request.workload,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        path=path.name,
        path_reason=path.reason,
        is_compiled=path.is_compiled,
        is_replayed=path.is_replayed,
        tokens_per_second=trained["tokens_per_second"],
        steps=trained["steps"],
        seconds=trained["seconds"],
        first_step_seconds=trained["first_step_seconds"],
        load_seconds=load_seconds,
        losses=trained["losses"],
        peak_memory_bytes=peak,
        operations_per_token=needed[True],
        roofline=roofline,
        share_of_roofline=_share(trained["tokens_per_second"], needed[True], roofline),
        evaluation_tokens_per_second=evaluated,
        evaluation_operations_per_token=needed[False],
        evaluation_share=None if evaluated is None else _share(evaluated, needed[False], roofline),
        versions=numeric_versions(),
    )


def _share(tokens_per_second: float, operations: float, roofline: Roofline | None) -> float | None:
    return None if roofline is None else tokens_per_second * operations / roofline.product_operations_per_second


def _settings(request: BenchRequest) -> TrainingSettings:
    shared = TrainingSettings.model_fields.keys() & BenchRequest.model_fields.keys()
    return TrainingSettings.model_validate(
        request.model_dump(include=set(shared))
        | {
            "base_precision": request.precision,
            "sequence_length": request.row_tokens,
            "micro_batch_size": request.rows_per_forward,
        }
    )


def _rows(request: BenchRequest, facts: ModelFacts) -> tuple[MadeUpRows, list[list[Batch]]]:
    """The rows, and the batches of their steps. Raises InputRefused where they make no step of this size."""
    if request.row_tokens > facts.context_length:
        raise InputRefused(
            "SEQUENCE_LENGTH_ABOVE_CONTEXT",
            f"Rows of {request.row_tokens:,} tokens do not fit {facts.name}: its context is {facts.context_length:,}.",
            field="row_tokens",
            hint=f"Take --row-tokens {facts.context_length} or less.",
        )
    rows = MadeUpRows(
        request.workload,
        count=ROWS[request.workload],
        vocabulary_size=facts.vocabulary_size,
        longest=request.row_tokens,
        seed=request.seed,
    )
    steps = steps_of(
        rows,
        row_tokens=request.row_tokens,
        rows_per_forward=request.rows_per_forward,
        forwards_per_step=request.forwards_per_step,
        most=request.maximum_steps,
        seed=request.seed,
    )
    if not steps:
        size = request.rows_per_forward * request.forwards_per_step
        raise InputRefused(
            "NO_ROWS_LEFT",
            f"The {request.workload} rows make no step of {size} rows of {request.row_tokens:,} tokens: "
            f"{len(rows):,} of {ROWS[request.workload]:,} fit, with {int(rows.lengths.sum()):,} tokens in all.",
            field="row_tokens",
            hint=f"Take --row-tokens well above {shortest_row(request.workload)}, the shortest row, "
            "and far below the tokens of all rows.",
        )
    return rows, steps


def _train(
    model: nn.Module,
    optimizer: FlatAdamW,
    steps: list[list[Batch]],
    request: BenchRequest,
    path: ComputePath,
    *,
    device: torch.device,
) -> dict[str, Any]:
    losses: list[float] = []
    tokens, first_step, started = 0, 0.0, 0.0
    least = WARM_UP_STEPS + 2
    decoder = decoder_of(model)
    begun: Begun | None = None

    def look_ahead() -> list[Batch]:
        """As a run does: the next step's batches are moved while the device computes."""
        upcoming = steps[(len(losses) + 1) % len(steps)]
        if decoder is not None:
            for batch in upcoming:
                decoder.prepare(batch)
        return upcoming

    while len(losses) < request.maximum_steps:
        step = len(losses) + 1
        outcome, begun = train_step(
            model,
            optimizer,
            steps[(step - 1) % len(steps)],
            seed=request.seed,
            step=step,
            learning_rate=LEARNING_RATE,
            max_gradient_norm=1.0,
            device=device,
            begun=begun,
            upcoming=look_ahead,
        )
        losses.append(outcome.loss)
        if request.with_replay:
            path.observe(outcome, steps_left=1_000_000)  # of a run that is long enough
        first_step = first_step or outcome.seconds
        if step == WARM_UP_STEPS:
            started = time.perf_counter()
        elif step > WARM_UP_STEPS:
            tokens += outcome.tokens
            if step >= least and time.perf_counter() - started >= request.seconds:
                break
    seconds = time.perf_counter() - started
    return {
        "tokens_per_second": tokens / seconds,
        "steps": len(losses),
        "seconds": seconds,
        "first_step_seconds": first_step,
        "losses": {step: losses[step - 1] for step in SHOWN_STEPS if step <= len(losses)},
    }


@torch.no_grad()
def _evaluate(model: nn.Module, rows: MadeUpRows, *, device: torch.device) -> float:
    """Tokens a second of scoring rows, as at the end of an epoch; the first batches warm up."""
    clear_dropout_position(model)
    if (decoder := decoder_of(model)) is not None:
        decoder.refresh(is_enabled=True)
    batches = evaluation_batches(rows, np.arange(len(rows)), max_tokens=EVALUATION_TOKENS[device.type])
    # longest first would measure long rows alone
    order = np.random.Generator(np.random.Philox(key=[0, 1])).permutation(len(batches))
    for index in order[:2]:
        forward_scores(model, batches[index], device=device).nll_N.cpu()
    tokens, started = 0, time.perf_counter()
    waiting: tuple[Batch, Tensor] | None = None
    while True:
        for index in order:
            batch = batches[index]
            found, waiting = waiting, (batch, forward_scores(model, batch, device=device).nll_N)
            if found is None:
                continue
            found[1].cpu()  # as a run does: the next batch is handed over before this one is waited for
            tokens += len(found[0].tokens_T)
            if time.perf_counter() - started >= EVALUATION_SECONDS:
                waiting[1].cpu()
                return (tokens + len(batch.tokens_T)) / (time.perf_counter() - started)


def _model(request: BenchRequest, *, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, ModelFacts]:
    if request.model_folder is not None:
        facts = inspect_model(Path(request.model_folder), request.model_folder)
        return load_base(facts, dtype=dtype, device=device), facts
    assert request.shape is not None
    shape = SHAPES[request.shape]
    return random_llama(shape, name=request.shape, dtype=dtype, device=device)


def random_llama(
    shape: ModelShape, *, name: str, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, ModelFacts]:
    """A frozen Llama of random weights, made on the device, and what an inspection would have said of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    attention.register()
    config = LlamaConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads, num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim, vocab_size=shape.vocabulary_size, tie_word_embeddings=shape.tied_embeddings,
        max_position_embeddings=131072, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = attention.NAME
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    values = sum(parameter.numel() for parameter in model.parameters())
    return model, ModelFacts(
        name=name, path="", digest="", architecture="LlamaForCausalLM", model_type="llama", parameters=values,
        weight_bytes=values * dtype.itemsize, dtype=str(dtype).removeprefix("torch."), context_length=131072,
        hidden_size=shape.hidden_size, num_layers=shape.num_layers, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size, vocabulary_size=shape.vocabulary_size,
        tokenizer_size=shape.vocabulary_size, tied_embeddings=shape.tied_embeddings, has_chat_template=False,
        rope_kind="default", activation="silu",
        end_token="", end_token_id=2, bos_token_id=1, pad_token_id=0, licence=None,
        linear_modules=[
            LinearModule(name=key, in_features=module.in_features, out_features=module.out_features)
            for key, module in linear_modules(model).items() if isinstance(module, nn.Linear)
        ],
    )  # fmt: skip


def _say(text: str) -> None:
    """Progress, told apart from what libraries write."""
    print(f"> {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    request = BenchRequest.model_validate_json(arguments[0])
    try:
        result = run(request)
    except Exception as error:  # noqa: BLE001  # the edge of the process: told, then it ends
        told = error if isinstance(error, TunesmithError) else _told(error)
        print("ERROR " + json.dumps({"family": type(told).__name__, "error": told.form()}), flush=True)
        return 4
    print("RESULT " + json.dumps(result.as_json()), flush=True)
    return 0


def _told(error: Exception) -> TunesmithError:
    if not is_out_of_memory(error):
        return TunesmithError("BENCH_FAILED", f"The measurement failed: {type(error).__name__}: {str(error)[:300]}")
    return MachineCannot(
        "OUT_OF_MEMORY",
        f"The measurement does not fit into the memory of this device: {str(error).splitlines()[0]}",
        field="model",
        hint="Measure a smaller model, or fewer tokens a forward pass.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
