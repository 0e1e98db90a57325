"""A run's curves from its events: as many points as somebody can see, chosen so that no extreme is lost.

In: a job, a range of its steps, a number of points. Out: steps as they were written, never averaged: of each stretch
the one with the lowest and the one with the highest loss. A range with fewer steps than points comes whole.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter, lt
from typing import Any

import orjson
import sqlalchemy as sa

from tunesmith.spec.metrics import CurveEpoch, Curves, EpochEvent
from tunesmith.storage.tables import EVENTS, JOBS

KEPT_RUNS = 16  # of 100,000 steps each: 80 MB
QUICK_EVENTS = 5_000  # read and parsed in some 20 ms
READ_AT_ONCE = 10_000  # bodies that are parsed as one array: a third of the time of one by one
INTEGERS = ("step", "memory_bytes")
FLOATS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")


class _Run:
    """The columns of one job, by step, up to an event."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read_to = 0
        self.columns: dict[str, array[Any]] = {name: array("d") for name in FLOATS}
        self.columns |= {name: array("q") for name in INTEGERS}
        self.epochs: dict[int, CurveEpoch] = {}
        self._at = 0

    def read_on(self, connection: sa.Connection, job_id: str) -> None:
        rows = connection.execute(
            sa.select(EVENTS.c.number, EVENTS.c.kind, EVENTS.c.body)
            .where(EVENTS.c.job_id == job_id, EVENTS.c.kind.in_(("step", "epoch")), EVENTS.c.number > self.read_to)
            .order_by(EVENTS.c.number)
        )
        for batch in rows.partitions(READ_AT_ONCE):
            for kind, group in groupby(batch, key=itemgetter(1)):
                several = list(group)
                if kind == "step":
                    self._add_all(orjson.loads(f"[{','.join([row[2] for row in several])}]"))
                else:
                    self._add_epochs(EpochEvent.model_validate_json(row[2]) for row in several)
                self.read_to = several[-1][0]

    def _add_epochs(self, events: Iterable[EpochEvent]) -> None:
        for event in events:
            self.epochs[event.epoch] = CurveEpoch(
                epoch=event.epoch, step=self._at, training=event.training, validation=event.validation
            )

    def _add_all(self, told: list[dict[str, float]]) -> None:
        """At once where each step follows the one before, which is so but after a resume."""
        numbers = [int(step["step"]) for step in told]
        known = self.columns["step"]
        if (not known or numbers[0] > known[-1]) and all(map(lt, numbers, numbers[1:])):
            for name, column in self.columns.items():
                column.extend([step[name] for step in told])
            self._at = numbers[-1]
            return
        for step in told:
            self._add(step)

    def _add(self, step: dict[str, float]) -> None:
        self._at = int(step["step"])
        steps = self.columns["step"]
        if not steps or self._at > steps[-1]:
            for name, column in self.columns.items():
                column.append(step[name])
            return
        # an attempt that was resumed tells some steps again: the later one counts
        place = bisect_left(steps, self._at)
        is_new = steps[place] != self._at
        for name, column in self.columns.items():
            if is_new:
                column.insert(place, step[name])
            else:
                column[place] = step[name]


class CurveReader:
    """Keeps the columns of the runs that were looked at last: the next look at a growing one reads what is new."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def is_quick(self, connection: sa.Connection, job_id: str) -> bool:
        """Whether `read` has few events to read, so that a page may wait for it."""
        with self._lock:
            run = self._runs.get(job_id)
        told = connection.execute(sa.select(JOBS.c.num_events).where(JOBS.c.job_id == job_id)).scalar() or 0
        return told - (run.read_to if run is not None else 0) <= QUICK_EVENTS

    def read(
        self, connection: sa.Connection, job_id: str, *, points: int, first: int = 1, last: int | None = None
    ) -> Curves:
        """first, last: the range of steps, both included. A job without step events gives empty curves."""
        with self._lock:
            run = self._runs.setdefault(job_id, _Run())
            self._runs.move_to_end(job_id)
            if len(self._runs) > KEPT_RUNS:
                self._runs.popitem(last=False)
        with run.lock:
            run.read_on(connection, job_id)
            steps = run.columns["step"]
            start = bisect_left(steps, first)
            end = len(steps) if last is None else bisect_right(steps, last)
            shown = _thinned(run.columns["loss"], start, max(start, end), points)
            return Curves.model_validate({
                "job_id": job_id,
                "last_step": steps[-1] if steps else 0,
                "steps_in_range": max(0, end - start),
                "epochs": [run.epochs[each] for each in sorted(run.epochs)],
            } | {name: [column[place] for place in shown] for name, column in run.columns.items()})  # fmt: skip


def _thinned(losses: array[float], start: int, end: int, points: int) -> Sequence[int]:
    """Places: the first, the last, and of each stretch between them the lowest and the highest."""
    if end - start <= points:
        return range(start, end)
    stretches = max(1, (points - 2) // 2)
    inner = end - start - 2
    shown = [start]
    for number in range(stretches):
        at = start + 1 + inner * number // stretches
        stretch = losses[at : start + 1 + inner * (number + 1) // stretches]
        if stretch:
            shown += sorted({at + stretch.index(min(stretch)), at + stretch.index(max(stretch))})
    return [*shown, end - 1]
