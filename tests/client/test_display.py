"""What a watcher sees: nothing of a user's text acts on a terminal or a page."""

from __future__ import annotations

import io
import sys
from html.parser import HTMLParser
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tunesmith.client import Job
from tunesmith.client.display import LineDisplay, NotebookDisplay, TerminalDisplay, display_for, html, panel
from tunesmith.client.events import Watched, is_last, read_event
from tunesmith.spec.api import JobView
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import (
    AnyEvent,
    EpochEvent,
    FailureEvent,
    NoticeEvent,
    PhaseEvent,
    SplitMetrics,
    StateEvent,
    StepEvent,
    VerdictEvent,
)
from tunesmith.spec.verdict import Verdict

TIME = "2026-01-01T00:00:00Z"
EVIL = "<img src=x onerror=alert(1)>\"'&\x1b[31m\u202e"
SCORES = SplitMetrics(loss=1.5, token_accuracy=0.5, completion_accuracy=0.25)
EVENTS: list[AnyEvent] = [
    StateEvent(time=TIME, state="IN_PROGRESS", previous="ACCEPTED"),
    PhaseEvent(time=TIME, phase="training", detail=EVIL),
    StepEvent(
        time=TIME, step=2, steps=4, epoch=1, loss=1.25, learning_rate=1e-4, gradient_norm=1.0, tokens=10,
        learned_tokens=5, tokens_per_second=1234.0, memory_bytes=1000, eta_seconds=90.0,
    ),
    EpochEvent(time=TIME, epoch=0, training=SCORES, validation=None),
    EpochEvent(time=TIME, epoch=1, training=SCORES, validation=SCORES),
    NoticeEvent(time=TIME, code="SAID", message=EVIL, hint=EVIL),
    VerdictEvent(
        time=TIME,
        verdict=Verdict.model_validate(
            {"outcome": "improved", "reasons": [EVIL], "rows": 9, "measured_on": "validation", "base_loss": 2.0,
             "tuned_loss": 1.0, "difference": -1.0, "interval": [-1.1, -0.9]}
        ),
    ),
]  # fmt: skip
FAILURE = FailureEvent(
    time=TIME, error={"code": "BAD", "message": EVIL, "field": None, "hint": None}, family="InputRefused", retry=False
)


def watched(*events: AnyEvent) -> Watched:
    found = Watched(job_id="job-1", name=EVIL)
    for event in events or EVENTS:
        found.add(event)
    return found


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


def tags_of(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def assert_harmless(text: str) -> None:
    assert "\x1b" not in text and "\u202e" not in text
    tags = tags_of(text)
    assert not tags.seen & {"img", "script", "iframe", "svg"} and "onerror" not in tags.attributes
    assert "&lt;img" in text


def test_the_notebook_shows_state_steps_epochs_and_escapes_everything() -> None:
    shown = html(watched())
    assert_harmless(shown)
    for words in ("IN_PROGRESS", "step 2 of 4", "1,234 tokens/s", "0 (base)", "50.0%", "Verdict: improved"):
        assert words in shown
    assert 'value="0.5000"' in shown
    failed = watched(*EVENTS, FAILURE, StateEvent(time=TIME, state="FAILED", previous="IN_PROGRESS"))
    assert_harmless(html(failed))
    assert "BAD: " in html(failed)


def test_a_handle_shows_itself_escaped() -> None:
    view = JobView.model_validate(
        {"job_id": "job-1", "state": "ACCEPTED", "name": EVIL, "model_version": "bot:1", "created_at": TIME,
         "results_uri": "file:///x", "phase": EVIL}
    )  # fmt: skip
    shown = Job(None, view)._repr_html_()  # type: ignore[arg-type]  # nothing is asked of the service
    assert_harmless(shown)
    assert "bot:1" in shown


def test_a_notebook_cell_is_drawn_once_and_then_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []
    module: Any = ModuleType("IPython.display")
    module.HTML = lambda text: text

    def display(text: str, *, display_id: bool) -> Any:
        drawn.append(("new", text))
        return SimpleNamespace(update=lambda text: drawn.append(("update", text)))

    module.display = display
    package: Any = ModuleType("IPython")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    shown = display_for("auto")
    assert isinstance(shown, NotebookDisplay)
    with shown:
        shown.show(watched(), None)
        for event in EVENTS * 50:
            shown.show(watched(), event)
        shown.show(watched(), None)
    assert [kind for kind, _ in drawn][:1] == ["new"] and {kind for kind, _ in drawn[1:]} == {"update"}
    assert len(drawn) < 20, "a burst of events is no burst of drawing"
    for _, text in drawn:
        assert_harmless(text)


def test_the_terminal_obeys_nothing() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    console.print(panel(watched()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[31m" in text and "\u202e" not in text and "\x1b[31m" not in text
    assert "0 (base)" in text and "Verdict: improved" in text
    stream = io.StringIO()
    with TerminalDisplay(stream) as shown:
        for event in EVENTS:
            shown.show(watched(), event)
        shown.show(watched(), None)
    assert "\x1b[31m" not in stream.getvalue() and "step 2 of 4" in stream.getvalue()


def test_lines_are_told_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    shown = display_for("auto", stream=stream)
    assert isinstance(shown, LineDisplay)
    for event in [*EVENTS, EVENTS[2]]:
        shown.show(watched(), event)
    shown.show(watched(), None)
    text = stream.getvalue()
    assert "\x1b" not in text and "\u202e" not in text
    assert text.count("step 2 of 4") == 1, "steps are told every few seconds only"
    assert "Verdict: improved" in text


def test_nothing_is_shown_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with display_for("none") as shown:
        shown.show(watched(), None)
    assert capsys.readouterr() == ("", "")


def test_only_the_latest_notices_are_kept() -> None:
    notices = [NoticeEvent(time=TIME, code="SAID", message=str(number)) for number in range(100)]
    assert [each.message for each in watched(*notices).notices] == [str(number) for number in range(80, 100)]


@pytest.mark.parametrize("told", ["", "{}", "[]", "null", '{"number": "x"}', '{"number": 1, "kind": "new"}', "{"])
def test_what_is_no_event_is_none(told: str) -> None:
    assert read_event(told) is None


def test_an_event_has_its_number_and_may_hold_more_than_is_known() -> None:
    found = read_event('{"number": 7, "time": "t", "kind": "state", "state": "SUCCEEDED", "previous": null, "new": 1}')
    assert found is not None and found.number == 7 and is_last(found.event)
    assert not is_last(StateEvent(time=TIME, state=JobState.CANCELING, previous=None))


def test_a_finished_job_is_done_whatever_its_last_step_was() -> None:
    assert watched(EVENTS[2]).share == 0.5
    assert watched(EVENTS[2], StateEvent(time=TIME, state="SUCCEEDED", previous="IN_PROGRESS")).share == 1.0
