"""A job as it is watched: a live panel in a terminal, one that updates itself in a notebook, lines elsewhere.

In: a `Watched` after each event. Out: what a person sees. Every text of a user is shown with its control characters
written out; in HTML it is escaped besides.
"""

from __future__ import annotations

import sys
import time
from html import escape
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TextIO, cast

from tunesmith.client.events import Watched
from tunesmith.spec.metrics import (
    AnyEvent,
    EpochEvent,
    EpochMetrics,
    NoticeEvent,
    PhaseEvent,
    SplitMetrics,
    StateEvent,
    StepEvent,
)
from tunesmith.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

DisplayKind = Literal["auto", "terminal", "notebook", "lines", "none"]
REDRAW_SECONDS = 0.2  # a notebook keeps up with no more
STEP_LINE_SECONDS = 10.0
SHOWN_NOTICES = 5
COLUMNS = ("epoch", "training loss", "validation loss", "training tokens right", "validation tokens right")


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...
    def show(self, watched: Watched, event: AnyEvent | None) -> None:
        """Tell the present state; `event` is what changed it, None for the first and the last time."""
        ...


def display_for(kind: DisplayKind, *, stream: TextIO | None = None) -> Display:
    """The display asked for; auto: a notebook's where one runs, a terminal's on a terminal, else lines."""
    stream = stream or cast(TextIO | None, sys.stderr)
    if stream is None:  # a program without a console
        return NoDisplay()
    if kind == "auto":
        kind = "notebook" if _in_notebook() else "terminal" if stream.isatty() else "lines"
    match kind:
        case "notebook":
            return NotebookDisplay()
        case "terminal":
            return TerminalDisplay(stream)
        case "lines":
            return LineDisplay(stream)
        case _:
            return NoDisplay()


def _in_notebook() -> bool:
    """Whether an IPython kernel runs us; one that is not loaded does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class _Plain:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        return None


class NoDisplay(_Plain):
    def show(self, watched: Watched, event: AnyEvent | None) -> None:
        return None


class LineDisplay(_Plain):
    """A line for each thing worth one; steps every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_step = float("-inf")

    def show(self, watched: Watched, event: AnyEvent | None) -> None:
        match event:
            case StateEvent():
                self._say(f"{watched.job_id} {event.state}")
            case PhaseEvent():
                self._say(event.phase + (f": {event.detail}" if event.detail else ""))
            case StepEvent() if time.monotonic() - self._last_step >= STEP_LINE_SECONDS or event.step == event.steps:
                self._last_step = time.monotonic()
                self._say(_step_words(event))
            case EpochEvent():
                self._say(", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells(event), strict=True)))
            case NoticeEvent():
                self._say(f"! {event.message}" + (f" {event.hint}" if event.hint else ""))
            case None:
                for line in _closing(watched):
                    self._say(line)
            case _:
                pass

    def _say(self, text: str) -> None:
        self._stream.write(visible(text) + "\n")
        self._stream.flush()


class TerminalDisplay:
    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=stream, markup=False, highlight=False, emoji=False)
        self._live = Live(console=console, refresh_per_second=5)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, watched: Watched, event: AnyEvent | None) -> None:
        self._live.update(panel(watched), refresh=event is None)


def panel(watched: Watched) -> RenderableType:
    """The state of a job for rich; nothing in it is taken for markup."""
    from rich import box
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(visible(_headline(watched)), style="bold")]
    if watched.step is not None:
        parts += [ProgressBar(total=1.0, completed=watched.share, width=40), Text(_step_words(watched.step))]
    if watched.epochs:
        table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
        for number in sorted(watched.epochs):
            table.add_row(*cells(watched.epochs[number]))
        parts.append(table)
    parts += [Text(visible(f"! {notice.message}")) for notice in watched.notices[-SHOWN_NOTICES:]]
    parts += [Text(visible(line), style="bold") for line in _closing(watched)]
    return Group(*parts)


class NotebookDisplay(_Plain):
    """One output cell that is drawn anew, a few times a second at most."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn_at = float("-inf")

    def show(self, watched: Watched, event: AnyEvent | None) -> None:
        if event is not None and time.monotonic() - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = time.monotonic()
        notebook: Any = import_module("IPython.display")  # only ever called from inside one
        shown = notebook.HTML(html(watched))
        if self._handle is None:
            self._handle = notebook.display(shown, display_id=True)
        else:
            self._handle.update(shown)


def html(watched: Watched) -> str:
    """The state of a job as HTML without script, style sheet or anything loaded; every text escaped."""
    parts = [f"<p><b>{text_html(_headline(watched))}</b></p>"]
    if watched.step is not None:
        parts.append(
            f'<p><progress value="{watched.share:.4f}" max="1"></progress> {text_html(_step_words(watched.step))}</p>'
        )
    if watched.epochs:
        parts.append(table_html(COLUMNS, [cells(watched.epochs[number]) for number in sorted(watched.epochs)]))
    if watched.notices:
        shown = watched.notices[-SHOWN_NOTICES:]
        parts.append("<ul>" + "".join(f"<li>{text_html(notice.message)}</li>" for notice in shown) + "</ul>")
    parts += [f"<p>{text_html(line)}</p>" for line in _closing(watched)]
    return '<div class="tunesmith-job">' + "".join(parts) + "</div>"


def table_html(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table whose every cell is escaped."""
    head = "".join(f"<th>{text_html(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{text_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_html(text: str) -> str:
    """A user's text for HTML: escaped, its control characters written out."""
    return escape(visible(text), quote=True)


def _headline(watched: Watched) -> str:
    phase = f", {watched.phase}" if watched.phase else ""
    detail = f" ({watched.detail})" if watched.phase and watched.detail else ""
    return f"{watched.name} ({watched.job_id}): {watched.state}{phase}{detail}"


def _step_words(step: StepEvent) -> str:
    return (
        f"step {step.step:,} of {step.steps:,}, epoch {step.epoch}, loss {step.loss:.4f}, "
        f"{step.tokens_per_second:,.0f} tokens/s, {step.eta_seconds:,.0f} s left"
    )


def cells(epoch: EpochEvent | EpochMetrics) -> tuple[str, ...]:
    def pair(left: float, right: SplitMetrics | None, name: str, form: str) -> tuple[str, str]:
        return form.format(left), form.format(getattr(right, name)) if right is not None else "-"

    losses = pair(epoch.training.loss, epoch.validation, "loss", "{:.4f}")
    tokens = pair(epoch.training.token_accuracy, epoch.validation, "token_accuracy", "{:.1%}")
    return (str(epoch.epoch) if epoch.epoch else "0 (base)", *losses, *tokens)


def _closing(watched: Watched) -> list[str]:
    lines: list[str] = []
    if watched.verdict is not None:
        lines.append(f"Verdict: {watched.verdict.outcome.value}. " + " ".join(watched.verdict.reasons))
    if watched.failure is not None and watched.state == "FAILED":
        lines.append(watched.failure)
    return lines
