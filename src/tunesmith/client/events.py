"""Events of a job as the server tells them, and what they add up to for one who watches.

In: the JSON of an event with its number. Out: spec events, and a `Watched`: the state, phase, step and epochs so far.
A kind of event that this release does not know is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tunesmith.spec.jobs import FINAL_STATES, JobState
from tunesmith.spec.metrics import (
    EVENT,
    AnyEvent,
    EpochEvent,
    FailureEvent,
    NoticeEvent,
    PhaseEvent,
    StateEvent,
    StepEvent,
    VerdictEvent,
)
from tunesmith.spec.verdict import Verdict

LATEST_NOTICES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedEvent:
    number: int
    event: AnyEvent


def read_event(told: str | Mapping[str, Any]) -> NumberedEvent | None:
    """An event with its number; None for what this release does not know."""
    try:
        fields: dict[str, Any] = dict(json.loads(told) if isinstance(told, str) else told)
        number = int(fields.pop("number"))
        return NumberedEvent(number=number, event=EVENT.validate_python(fields, extra="ignore"))
    except (ValueError, KeyError, TypeError, ValidationError):
        return None


def is_last(event: AnyEvent) -> bool:
    """Whether nothing comes after it: the job reached a final state."""
    return isinstance(event, StateEvent) and event.state in FINAL_STATES


@dataclass(slots=True, kw_only=True)
class Watched:
    """What a watcher has seen of a job; changed by `add` alone."""

    job_id: str
    name: str
    state: str = JobState.ACCEPTED
    phase: str | None = None
    detail: str | None = None
    step: StepEvent | None = None
    epochs: dict[int, EpochEvent] = field(default_factory=dict[int, EpochEvent])
    notices: list[NoticeEvent] = field(default_factory=list[NoticeEvent])
    verdict: Verdict | None = None
    failure: str | None = None

    def add(self, event: AnyEvent) -> None:
        match event:
            case StateEvent():
                self.state = event.state
                if event.state in FINAL_STATES:
                    self.phase = None
            case PhaseEvent():
                self.phase, self.detail = event.phase, event.detail
            case StepEvent():
                self.step = event
            case EpochEvent():
                self.epochs[event.epoch] = event
            case NoticeEvent():
                self.notices = [*self.notices, event][-LATEST_NOTICES:]
            case VerdictEvent():
                self.verdict = event.verdict
            case FailureEvent():
                self.failure = f"{event.error['code']}: {event.error['message']}"
            case _:
                pass

    @property
    def share(self) -> float:
        """Of the steps that are done, from 0 to 1."""
        if self.state == JobState.SUCCEEDED:
            return 1.0
        return self.step.step / self.step.steps if self.step else 0.0
