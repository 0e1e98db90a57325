"""`tunesmith plan MODEL DATASET`: what a run would do and cost, with reasons; nothing is started."""

from __future__ import annotations

import os
from typing import Any

import typer

from tunesmith.cli.chosen import own_project
from tunesmith.cli.options import read_run, with_run_options
from tunesmith.cli.output import Output, visible
from tunesmith.cli.report import Reporter, console, duration, gigabytes
from tunesmith.jobs.finetune import PreparedJob, prepare_job
from tunesmith.jobs.home import open_home
from tunesmith.jobs.settings import option_name
from tunesmith.jobs.state import open_state
from tunesmith.storage.locations import uri_of

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
@with_run_options
def plan(values: dict[str, Any], json_wanted: bool) -> int:
    """Show what fine-tuning MODEL on DATASET would do: settings with reasons, tokens, steps, memory, time.

    The same checks as `finetune`, with the same refusals.
    """
    output = Output(json_wanted=json_wanted)
    request, settings = read_run(values)
    state = open_state(open_home(os.environ))
    reporter = Reporter(output)
    with reporter:
        prepared = prepare_job(
            request, settings, state=state, environment=os.environ, progress=reporter.progress,
            project=own_project(state),
        )  # fmt: skip
    if json_wanted:
        output.result(as_object(prepared))
        return 0
    tell_plan(prepared, output=output)
    for notice in prepared.notices():
        reporter.notice(notice)
    return 0


def as_object(prepared: PreparedJob) -> dict[str, Any]:
    preparation = prepared.preparation
    return {
        "model": prepared.model.name,
        "parameters": prepared.facts.parameters,
        "dataset": prepared.request.dataset,
        "version_set": prepared.version_set,
        "results_uri": uri_of(prepared.target) if prepared.target else None,
        "rows": preparation.counts.as_json(),
        "tokens": {
            "training": preparation.training.as_json(),
            "validation": preparation.validation.as_json() if preparation.validation else None,
            "test": preparation.test.as_json() if preparation.test else None,
            "longest_row": preparation.longest_row,
        },
        **prepared.plan.as_json(),
        "notices": [notice.as_json() for notice in prepared.notices()],
    }


def tell_plan(prepared: PreparedJob, *, output: Output) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    plan, preparation, facts = prepared.plan, prepared.preparation, prepared.facts
    screen = console(output)

    def table(title: str, *headings: str) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for heading in headings:
            made.add_column(heading, overflow="fold", justify="right" if heading in ("bytes", "rows") else "left")
        return made

    settings = table("Settings", "option", "value", "why")
    for name, value in plan.settings.as_json().items():
        why = plan.reasons.get(name, "as asked or by default")
        settings.add_row(option_name(name), Text(visible(_joined(value))), Text(visible(why)))
    screen.print(settings)
    counts = preparation.counts
    output.say(f"Model      {prepared.model.name}: {facts.parameters:,} parameters, context {facts.context_length:,}")
    output.say(
        f"Rows       {counts.training:,} training, {counts.validation:,} validation, {counts.cut:,} cut, "
        f"{counts.dropped:,} dropped, {counts.duplicates:,} duplicates"
    )
    output.say(
        f"Tokens     {preparation.training.total:,} an epoch, {preparation.training.to_learn:,} of them to learn; "
        f"longest row {preparation.longest_row:,}"
    )
    output.say(f"Steps      {plan.steps:,} in all, {plan.steps_per_epoch:,} an epoch")
    memory = table("Memory at the peak", "part", "bytes", "arithmetic", "why")
    for part in plan.memory:
        memory.add_row(part.name, gigabytes(part.bytes), part.formula, Text(visible(part.reason)))
    screen.print(memory)
    output.say(f"Memory     {gigabytes(plan.peak_memory_bytes)} of {gigabytes(plan.free_memory_bytes)} free")
    output.say(f"Disk       {gigabytes(plan.disk_bytes)} for checkpoints, artifact and its published copy")
    output.say(f"Machine    {plan.device_name}, {plan.threads} threads")
    output.say(f"Time       about {duration(plan.seconds)} ({plan.seconds_reason})")


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)  # type: ignore[arg-type]  # JSON
