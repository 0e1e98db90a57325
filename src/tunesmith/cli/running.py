"""Runs a job in the foreground for `finetune`, `demo` and `job resume`: reports it, and ends with its result."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from tunesmith.cli.app import EXIT_INTERRUPTED, exit_code_of
from tunesmith.cli.output import Output
from tunesmith.cli.report import Reporter, gigabytes, tell_samples, tell_verdict
from tunesmith.errors import MachineCannot
from tunesmith.jobs.follow import run_or_follow
from tunesmith.jobs.launcher import Standby
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State
from tunesmith.jobs.store import Lease, LeaseLost
from tunesmith.jobs.supervisor import Ended, Ending, StopWish, listening_for_stop, run_job
from tunesmith.spec.jobs import JobRecord, JobResult


def run_in_foreground(
    find: Callable[[], JobFolder],
    *,
    state: State,
    output: Output,
    reporter: Reporter,
    next_command: str | None = None,
    standby: Standby | None = None,
) -> int:
    """Run the job that `find` makes or looks up; returns the exit code. Ctrl-C leaves it resumable."""
    wish = StopWish()
    with listening_for_stop(wish):
        folder = find()
        reporter.say(f"Job {folder.job_id}")
        with reporter, _telling_who_took_it():
            ended = run_or_follow(
                folder,
                state=state,
                on_event=reporter.event,
                wish=wish,
                run=lambda told: run_job(
                    folder,
                    state=state,
                    environment=os.environ,
                    on_event=reporter.event,
                    wish=wish,
                    prepare=lambda lease, record: _prepare(lease, record, state=state, wish=wish),
                    standby=standby,
                    told=told,
                ),
            )
    tell_ending(ended, output=output, reporter=reporter, next_command=next_command)
    if ended.ending in (Ending.STOPPED, Ending.LEFT):
        return EXIT_INTERRUPTED
    return exit_code_of(ended.error) if ended.error is not None else 0


@contextmanager
def _telling_who_took_it() -> Generator[None]:
    try:
        yield
    except LeaseLost as error:
        raise MachineCannot(
            "LEASE_LOST",
            f"Another process looks after {error} now, since this one was silent for too long; nothing is lost.",
            field="JOB",
            hint=f"Watch it with `tunesmith job show {error}`.",
        ) from error


def _prepare(lease: Lease, record: JobRecord, *, state: State, wish: StopWish) -> JobRecord:
    """A job of the queue that is resumed here before the queue ever prepared it."""
    from tunesmith.jobs.accept import prepare_accepted

    return prepare_accepted(lease, record, state=state, environment=os.environ, wish=wish)


def tell_ending(ended: Ended, *, output: Output, reporter: Reporter, next_command: str | None) -> None:
    result = ended.result
    tell_samples(output, reporter.samples)
    if result.verdict is not None:
        tell_verdict(output, result.verdict)
    if result.artifact_uri is not None:
        tell_artifact(output, result)
    if ended.error is not None:
        output.warn(f"{'error' if ended.ending is Ending.FAILED else ended.ending.value}: {ended.error.message}")
        if ended.error.hint:
            output.warn(f"  {ended.error.hint}")
        output.warn(f"  ({ended.error.code})")
    else:
        output.say(f"Next: {next_command or f'tunesmith job show {result.job_id}'}")
    output.result(result.as_json())


def tell_artifact(output: Output, result: JobResult) -> None:
    assert result.artifact_uri is not None
    speed = f"{result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
    memory = f"peak memory {gigabytes(result.peak_memory_bytes)}" if result.peak_memory_bytes else ""
    figures = ", ".join(word for word in (f"best epoch {result.best_epoch}", speed, memory) if word)
    output.say(f"Model version {result.model_version} ({figures})")
    parts = urlsplit(result.artifact_uri)
    output.say(f"Artifact: {unquote(parts.path) if parts.scheme == 'file' else result.artifact_uri}")
