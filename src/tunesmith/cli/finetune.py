"""`tunesmith finetune MODEL DATASET`: the whole way in the foreground."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from tunesmith.cli.chosen import own_project
from tunesmith.cli.options import read_run, with_run_options
from tunesmith.cli.output import Output
from tunesmith.cli.report import Reporter, duration, gigabytes
from tunesmith.jobs.home import open_home
from tunesmith.jobs.launcher import Standby
from tunesmith.jobs.models import needs_transformers
from tunesmith.plan.machine import this_machine

if TYPE_CHECKING:
    from tunesmith.jobs.finetune import PreparedJob

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
@with_run_options
def finetune(values: dict[str, Any], json_wanted: bool) -> int:
    """Fine-tune MODEL on DATASET: check, plan, train, judge, publish.

    Progress is shown as it comes. Ctrl-C writes a checkpoint and stops; `tunesmith job resume` goes on.
    """
    return fine_tune(values, output=Output(json_wanted=json_wanted))


def fine_tune(values: dict[str, Any], *, output: Output, next_command: str | None = None) -> int:
    request, settings = read_run(values)
    home = open_home(os.environ)
    with Standby(os.environ, folder=home.root) as standby:
        device = this_machine(os.environ).device
        standby.start(
            needs_cuda=device == "cuda",
            needs_transformers=needs_transformers(request.model, device=device, path=settings.path),
        )
        # here, while the worker imports its own: these bring the database along, a quarter of a second
        from tunesmith.cli.running import run_in_foreground
        from tunesmith.jobs.finetune import prepare_job, submit
        from tunesmith.jobs.state import open_state

        state = open_state(home)
        reporter = Reporter(output)
        with reporter:
            prepared = prepare_job(
                request, settings, state=state, environment=os.environ, progress=reporter.progress,
                project=own_project(state),
            )  # fmt: skip
            tell_start(prepared, reporter=reporter)
        return run_in_foreground(
            lambda: submit(prepared, state=state, command=["tunesmith", *sys.argv[1:]]),
            state=state,
            output=output,
            reporter=reporter,
            next_command=next_command,
            standby=standby,
        )


def tell_start(prepared: PreparedJob, *, reporter: Reporter) -> None:
    """What is about to run, in three lines, and every notice."""
    counts, plan = prepared.preparation.counts, prepared.plan
    settings = plan.settings
    reporter.say(
        f"{prepared.model.name} ({prepared.facts.parameters / 1e6:,.1f} M parameters) on {prepared.request.dataset}: "
        f"{counts.training:,} rows to train, {counts.validation:,} to validate"
    )
    reporter.say(
        f"{plan.steps:,} steps of {settings.global_batch_size} rows in {settings.epochs} epochs, "
        f"{plan.trainable_parameters:,} trained values (rank {settings.lora_rank}), on {plan.device_name}"
    )
    reporter.say(
        f"About {duration(plan.seconds)} ({plan.seconds_reason}); about {gigabytes(plan.peak_memory_bytes)} of "
        f"{gigabytes(plan.free_memory_bytes)} free memory"
    )
    for notice in prepared.notices():
        reporter.notice(notice)
