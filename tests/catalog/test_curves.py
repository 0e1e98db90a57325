from __future__ import annotations

import pytest

from tests.catalog import make
from tests.catalog.conftest import State
from tunesmith.catalog.curves import CurveReader, _Run
from tunesmith.jobs.store import JobStore
from tunesmith.spec.metrics import Curves, EpochEvent, StepEvent


def step(number: int, loss: float) -> StepEvent:
    return StepEvent(
        time=make.TIME, step=number, steps=1000, epoch=1, loss=loss, learning_rate=1e-4, gradient_norm=1.0, tokens=10,
        learned_tokens=5, tokens_per_second=9.0, memory_bytes=number, eta_seconds=1.5,
    )  # fmt: skip


def curves(state: State, events: list[StepEvent | EpochEvent], **wanted: int) -> Curves:
    job = state.job()
    store = JobStore(state.database)
    lease, _ = store.acquire(job.job_id, owner="host/1/None")
    store.say(lease, *events)
    with state.database.read() as connection:
        return CurveReader().read(connection, job.job_id, **{"points": 100, **wanted})


def test_few_steps_come_whole_with_the_step_of_each_epoch(state: State) -> None:
    def epoch(number: int) -> EpochEvent:
        return EpochEvent(time=make.TIME, epoch=number, training=make.scores(2.0), validation=None)

    found = curves(state, [epoch(0), step(1, 2.0), step(2, 1.5), epoch(1), step(3, 1.0)])
    assert (found.step, found.loss, found.last_step, found.steps_in_range) == ([1, 2, 3], [2.0, 1.5, 1.0], 3, 3)
    assert [(each.epoch, each.step) for each in found.epochs] == [(0, 0), (1, 2)]


def test_many_steps_are_thinned_without_losing_an_extreme(state: State) -> None:
    losses = [2.0 - number / 1000 for number in range(1000)]
    losses[400], losses[700] = 9.0, 0.01
    found = curves(state, [step(number + 1, loss) for number, loss in enumerate(losses)], points=50)
    assert len(found.step) <= 50 and found.steps_in_range == 1000
    assert (found.step[0], found.step[-1]) == (1, 1000)
    assert found.step == sorted(set(found.step))
    assert 9.0 in found.loss and 0.01 in found.loss
    assert all(losses[number - 1] == loss for number, loss in zip(found.step, found.loss, strict=True))


def test_a_range_is_exact(state: State) -> None:
    found = curves(state, [step(number, 1.0) for number in range(1, 501)], points=20, first=100, last=110)
    assert found.step == list(range(100, 111)) and found.last_step == 500


def test_steps_that_were_told_again_count_once(state: State) -> None:
    found = curves(state, [step(1, 2.0), step(2, 1.9), step(3, 1.8), step(2, 1.7)])
    assert (found.step, found.loss) == ([1, 2, 3], [2.0, 1.7, 1.8])


def test_a_look_at_a_growing_run_reads_what_is_new(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    job = state.job()
    store = JobStore(state.database)
    lease, _ = store.acquire(job.job_id, owner="host/1/None")
    reader = CurveReader()
    read: list[float] = []
    add = _Run._add_all

    def noted(run: _Run, told: list[dict[str, float]]) -> None:
        read.extend(step["step"] for step in told)
        add(run, told)

    monkeypatch.setattr(_Run, "_add_all", noted)

    def look() -> Curves:
        read.clear()
        with state.database.read() as connection:
            return reader.read(connection, job.job_id, points=100)

    store.say(lease, step(1, 2.0), step(2, 1.5), step(4, 1.0))
    assert look().step == [1, 2, 4] and len(read) == 3
    assert look().step == [1, 2, 4] and not read
    # a resumed attempt: one step again, one that had not been told
    store.say(lease, step(2, 1.4), step(3, 1.2), step(5, 0.9))
    found = look()
    assert (found.step, found.loss, len(read)) == ([1, 2, 3, 4, 5], [2.0, 1.4, 1.2, 1.0, 0.9], 3)
    assert found.memory_bytes == [1, 2, 3, 4, 5] and found == fresh(state, job.job_id)


def test_only_the_runs_looked_at_last_are_kept(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.catalog.curves.KEPT_RUNS", 2)
    reader = CurveReader()
    with state.database.read() as connection:
        for name in ("a", "b", "a", "c"):
            reader.read(connection, name, points=100)
    assert list(reader._runs) == ["a", "c"]


def fresh(state: State, job_id: str) -> Curves:
    with state.database.read() as connection:
        return CurveReader().read(connection, job_id, points=100)


def test_a_page_waits_only_for_what_is_read_soon(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.catalog.curves.QUICK_EVENTS", 10)
    job = state.job()
    store = JobStore(state.database)
    lease, _ = store.acquire(job.job_id, owner="host/1/None")
    reader = CurveReader()
    with state.database.read() as connection:
        assert reader.is_quick(connection, job.job_id) and reader.is_quick(connection, "job-unknown")
    store.say(lease, *[step(number, 1.0) for number in range(1, 21)])
    with state.database.read() as connection:
        assert not reader.is_quick(connection, job.job_id)
        reader.read(connection, job.job_id, points=5)
        assert reader.is_quick(connection, job.job_id), "what was read is kept"


def test_batches_that_overlap_give_what_one_by_one_gives(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.catalog.curves.READ_AT_ONCE", 4)
    job = state.job()
    store = JobStore(state.database)
    lease, _ = store.acquire(job.job_id, owner="host/1/None")
    numbers = [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 3, 10]
    store.say(lease, *[step(number, float(place)) for place, number in enumerate(numbers)])
    found = fresh(state, job.job_id)
    assert found.step == list(range(1, 11))
    assert found.loss == [0.0, 1.0, 12.0, 3.0, 7.0, 8.0, 9.0, 10.0, 11.0, 13.0], "the later telling counts"
