"""A run as it is told: progress, notices as they come, a row per epoch, samples, the verdict.

In: events. Out: text. On a terminal a progress bar is drawn; elsewhere each line stands by itself and steps are told
every few seconds only.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tunesmith.cli.output import Output, Unbreakable, visible
from tunesmith.spec.datasets import Notice
from tunesmith.spec.metrics import (
    AnyEvent,
    AttemptEvent,
    EpochEvent,
    NoticeEvent,
    PathEvent,
    PhaseEvent,
    Sample,
    SamplesEvent,
    SplitMetrics,
    StepEvent,
    VerdictEvent,
)
from tunesmith.spec.verdict import Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

STEP_LINE_SECONDS = 10.0
SAMPLE_CHARACTERS = 400
EPOCH_HEADER = (
    "            loss                  tokens right          completions right\n"
    "epoch       training  validation  training  validation  training  validation"
)
PHASES = {
    "preparing": "Preparing the rows",
    "loading": "Loading the model",
    "training": "Training",
    "evaluating": "Evaluating",
    "publishing": "Publishing",
    "waiting": "Waiting",
}


def console(output: Output) -> Console:
    """rich's console on the stream for people; it interprets nothing in the text it is given."""
    from rich.console import Console

    stream = Unbreakable(output.human)
    width = None if stream.isatty() else 120
    return Console(
        file=stream,  # type: ignore[arg-type]  # it has the methods that rich calls
        markup=False,
        highlight=False,
        emoji=False,
        width=width,
    )


class Reporter:
    """Tells events of one run; a context manager, because a progress bar must be taken down."""

    def __init__(self, output: Output) -> None:
        self._output = output
        # a dumb terminal cannot redraw a bar: it gets lines, as a file does
        self._is_terminal = output.human.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._told: set[tuple[str, str]] = set()
        self._phase: tuple[str, str | None] | None = None
        self._has_header = False
        self._last_step_line = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self.samples: list[Sample] = []
        self.verdict: Verdict | None = None

    def __enter__(self) -> Self:
        if self._is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[detail]}", markup=False),
                console=console(self._output),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("Starting", total=None, detail="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(visible(text, keep_newlines=True))
        else:
            self._output.say(text)

    def progress(self, what: str) -> None:
        """Something before the run that takes its time."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what[0].upper() + what[1:], detail="")

    def notice(self, notice: Notice | NoticeEvent) -> None:
        """Each notice once: the worker tells again what was already said before its start."""
        if (notice.code, notice.message) in self._told:
            return
        self._told.add((notice.code, notice.message))
        self.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))

    def event(self, event: AnyEvent) -> None:
        match event:
            case PhaseEvent():
                self._tell_phase(event)
            case StepEvent():
                self._tell_step(event)
            case EpochEvent():
                if not self._has_header:
                    self.say(EPOCH_HEADER)
                    self._has_header = True
                self.say(epoch_line(event.epoch, event.training, event.validation))
            case NoticeEvent():
                self.notice(event)
            case PathEvent():
                compiled = ", layers compiled at their first use" if event.is_compiled else ""
                replayed = ", passes replayed as CUDA graphs" if event.is_replayed else ""
                twice = f", {event.checkpointed_layers} layers computed twice" if event.checkpointed_layers else ""
                self.say(f"Path: {event.path} ({event.reason}){compiled}{replayed}{twice}")
            case AttemptEvent() if event.resumed_at > 0:
                self.say(f"Attempt {event.attempt} goes on after step {event.resumed_at}.")
            case SamplesEvent():
                self.samples = event.samples
            case VerdictEvent():
                self.verdict = event.verdict
            case _:
                pass

    def _tell_phase(self, event: PhaseEvent) -> None:
        what = PHASES[event.phase] + (f": {event.detail}" if event.detail else "")
        if self._bar is not None and self._task is not None:
            share = f"{event.done:,} of {event.total:,}" if event.done is not None and event.total else ""
            self._bar.update(
                self._task, description=visible(what), total=event.total, completed=event.done or 0, detail=share
            )
        elif (event.phase, event.detail) != self._phase:
            self.say(what)
        self._phase = (event.phase, event.detail)

    def _tell_step(self, event: StepEvent) -> None:
        detail = (
            f"step {event.step:,} of {event.steps:,}  loss {event.loss:.4f}  {event.tokens_per_second:,.0f} tokens/s  "
            f"{duration(event.eta_seconds)} left"
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                description=f"Training, epoch {event.epoch}",
                total=event.steps,
                completed=event.step,
                detail=detail,
            )
        elif event.step in (1, event.steps) or time.monotonic() - self._last_step_line >= STEP_LINE_SECONDS:
            self._last_step_line = time.monotonic()
            self.say(detail)


def epoch_line(epoch: int, training: SplitMetrics, validation: SplitMetrics | None) -> str:
    def pair(left: float, right: float | None, *, percent: bool) -> str:
        form = "{:.1%}" if percent else "{:.4f}"
        return f"{form.format(left):<10}{form.format(right) if right is not None else '-':<12}"

    name = f"{epoch}" if epoch else "0 (base)"
    held_out = validation
    return (
        f"{name:<12}"
        + pair(training.loss, held_out.loss if held_out else None, percent=False)
        + pair(training.token_accuracy, held_out.token_accuracy if held_out else None, percent=True)
        + pair(training.completion_accuracy, held_out.completion_accuracy if held_out else None, percent=True)
    ).rstrip()


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def tell_samples(output: Output, samples: list[Sample]) -> None:
    """Held-out prompts, with the answers of base and tuned model side by side."""
    if not samples:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Held-out prompts, answered by both", box=box.SIMPLE_HEAD, title_justify="left", show_lines=True
    )
    for heading in ("prompt", "expected", "base", "tuned"):
        table.add_column(heading, ratio=1, overflow="fold")
    for sample in samples:
        cells = (sample.prompt, sample.expected, sample.base_shown, sample.tuned_shown)
        table.add_row(*(Text(visible(_short(cell), keep_newlines=True)) for cell in cells))
    console(output).print(table)


def _short(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"


def tell_verdict(output: Output, verdict: Verdict) -> None:
    colours = {"improved": "bold green", "worse": "bold red", "not usable": "bold red"}
    from rich.text import Text

    console(output).print(
        Text.assemble("Verdict: ", (verdict.outcome.value, colours.get(verdict.outcome.value, "bold yellow")))
    )
    for reason in verdict.reasons:
        output.say(f"  - {reason}")
