"""`tunesmith bench`: how fast this machine trains and scores, and how near that is to what it can do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from typing import Annotated, Literal

import typer

from tunesmith.cli.output import Output
from tunesmith.cli.report import gigabytes
from tunesmith.errors import MachineCannot, TunesmithError, from_form
from tunesmith.jobs.launcher import BENCH, machine_is_idle, worker_command, worker_environment
from tunesmith.jobs.models import find_model
from tunesmith.plan.machine import this_machine
from tunesmith.spec.bench import ROW_TOKENS, SHAPES, BenchRequest, BenchResult

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
MAXIMUM_STEPS = 1000  # made before the first of them
DEFAULT_SHAPE = {"cuda": "llama-3.2-1b", "cpu": "tiny"}


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"A model folder, or a shape with random weights: {', '.join(SHAPES)}.", show_default=False
        ),
    ] = None,
    workload: Annotated[
        Literal["dialog", "long"], typer.Option("--workload", help="Made-up rows: short dialogues or long documents.")
    ] = "dialog",
    path: Annotated[
        Literal["auto", "fast", "generic"], typer.Option("--path", help="Which code computes the layers.")
    ] = "auto",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=600, help="Seconds of training that are measured.")
    ] = 8.0,
    row_tokens: Annotated[
        int | None,
        typer.Option(
            "--row-tokens", min=16, max=1_000_000, help="Tokens of a packed row; default: 8192 on a GPU, 1024."
        ),
    ] = None,
    rank: Annotated[int, typer.Option("--lora-rank", min=1, max=1024, help="Inner dimension of the adapter.")] = 32,
    dropout: Annotated[
        float, typer.Option("--lora-dropout", min=0, max=0.99, help="Share of adapter inputs set to zero.")
    ] = 0.05,
    json_wanted: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")] = False,
) -> int:
    """Measure training and scoring on this device, beside what it reaches in a plain matrix product.

    Tokens a second are real tokens of whole optimiser steps, after the first ones; the rows are made up.
    """
    output = Output(json_wanted=json_wanted)
    machine = this_machine(os.environ)
    shape, folder = _model(model or DEFAULT_SHAPE[machine.device])
    sizes = SHAPES.get(shape or "", SHAPES["llama-3.2-1b" if machine.device == "cuda" else "tiny"])
    request = BenchRequest(
        shape=shape,
        model_folder=folder,
        workload=workload,
        device="cuda" if machine.device == "cuda" else "cpu",
        precision="bf16" if machine.device == "cuda" and machine.gpus[0].has_bf16 else "float32",
        threads=machine.threads,
        path=path,
        row_tokens=row_tokens or (512 if shape == "tiny" else ROW_TOKENS[machine.device]),
        rows_per_forward=sizes.rows_per_forward,
        forwards_per_step=sizes.forwards_per_step,
        lora_rank=rank,
        lora_dropout=dropout,
        seconds=seconds,
        maximum_steps=MAXIMUM_STEPS,
        checkpointed_layers=0,
        with_replay=True,
    )
    result = measured(request, output=output)
    if not json_wanted:
        tell(result, output=output)
    output.result(result.as_json())
    return 0


def _model(named: str) -> tuple[str | None, str | None]:
    """(shape, None) or (None, folder)."""
    return (named, None) if named in SHAPES else (None, str(find_model(named).path))


def measured(request: BenchRequest, *, output: Output) -> BenchResult:
    """Run the worker; its progress is shown as it comes. Raises the worker's own error."""
    needs_cuda = request.device == "cuda"
    process = subprocess.Popen(
        worker_command(BENCH, request.model_dump_json()),
        env=worker_environment(os.environ, needs_cuda=needs_cuda, is_idle=machine_is_idle()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    errors = process.stderr

    def follow() -> None:
        for line in errors:
            log.append(line)
            if line.startswith("> "):
                output.say(line[2:].rstrip())

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    with process:
        try:
            answer = process.stdout.read()
            code = process.wait()
        finally:
            if process.poll() is None:  # we were interrupted
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            reader.join()
    for line in reversed(answer.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "RESULT":
            return BenchResult.model_validate_json(rest)
        if word == "ERROR":
            reported = json.loads(rest)
            raise from_form(reported["error"], reported["family"])
    if code == -signal.SIGKILL:
        raise MachineCannot(
            "OUT_OF_MEMORY", "The measurement was killed: too little memory is the usual reason.", field="model",
            hint="Measure a smaller model, or fewer --row-tokens.",
        )  # fmt: skip
    raise TunesmithError("BENCH_FAILED", f"The measurement ended with exit code {code}: {''.join(log)[-300:]}")


def tell(result: BenchResult, *, output: Output) -> None:
    output.say(f"device       {result.device_name}")
    output.say(f"model        {result.model}, {result.workload} rows")
    output.say(f"path         {result.path} ({result.path_reason})" + (", compiled" if result.is_compiled else "")
               + (", passes replayed as CUDA graphs" if result.is_replayed else ""))  # fmt: skip
    share = "" if result.share_of_roofline is None else f", {result.share_of_roofline:.0%} of this device's limit"
    output.say(f"training     {result.tokens_per_second:,.0f} tokens/s{share}")
    if result.evaluation_tokens_per_second is not None:
        share = "" if result.evaluation_share is None else f", {result.evaluation_share:.0%} of the limit"
        output.say(f"scoring      {result.evaluation_tokens_per_second:,.0f} tokens/s{share}")
    output.say(f"memory       {gigabytes(result.peak_memory_bytes)} at the peak")
    output.say(f"first step   {result.first_step_seconds:,.1f} s, after {result.load_seconds:,.1f} s of loading")
    if result.roofline is not None:
        output.say(
            f"limit        a plain matrix product sustains {result.roofline.product_operations_per_second / 1e12:,.2f} "
            f"TFLOP/s, a copy {result.roofline.copy_bytes_per_second / 1e9:,.0f} GB/s"
        )
