"""The event log is append-only, and a torn line never swallows the next one."""

import json
from pathlib import Path

import pytest

from tunesmith.spec.metrics import EpochEvent, NoticeEvent, PhaseEvent, SplitMetrics, StepEvent
from tunesmith.train.artifact import read_steps
from tunesmith.train.events import EventLog, now


def step(number: int, loss: float) -> StepEvent:
    return StepEvent(
        time=now(), step=number, steps=4, epoch=1, loss=loss, learning_rate=0.1, gradient_norm=1.0, tokens=8,
        learned_tokens=4, tokens_per_second=1.0, memory_bytes=1, eta_seconds=1.0,
    )  # fmt: skip


def test_torn_last_line_is_closed_before_appending(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"time": "x", "kind": "not')
    log = EventLog(tmp_path)
    log.append(NoticeEvent(time=now(), code="A", message="b"))
    log.close()
    lines = path.read_bytes().split(b"\n")
    assert lines[0] == b'{"time": "x", "kind": "not'
    assert json.loads(lines[1])["code"] == "A"
    assert lines[2] == b""


def test_repeated_steps_count_once_with_their_last_value(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number, loss in ((1, 3.0), (2, 2.5), (2, 2.0), (3, 1.0)):
        log.append(step(number, loss))
    log.close()
    assert [(event.step, event.loss) for event in read_steps(tmp_path / "events.jsonl")] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
    ]


def test_only_step_events_have_a_step_and_the_loss_is_unrounded(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(step(1, 0.1 + 0.2))
    log.append(NoticeEvent(time=now(), code="A", message="b"))
    log.close()
    first, second = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert first["loss"] == 0.1 + 0.2
    assert list(first)[:2] == ["time", "kind"]
    assert "step" not in second


def test_the_job_s_log_reads_as_the_run_goes_without_a_line_for_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("tunesmith.train.events.time.monotonic", lambda: clock[0])
    scores = SplitMetrics(loss=1.5, token_accuracy=0.75, completion_accuracy=0.5)
    log = EventLog(tmp_path)
    log.append(PhaseEvent(time=now(), phase="training", detail="epoch 1 of 2"))
    for number in (1, 2, 3):
        log.append(step(number, 2.0 / number))
    clock[0] += 60.0
    log.append(step(4, 0.5))
    log.append(EpochEvent(time=now(), epoch=1, training=scores, validation=None))
    log.append(NoticeEvent(time=now(), code="CUT", message="2 rows were cut."))
    log.close()
    said = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "training: epoch 1 of 2",
        "step 1 of 4: loss 2.0000, 1 tokens a second",
        "step 4 of 4: loss 0.5000, 1 tokens a second",
        "epoch 1: training loss 1.5000, token accuracy 75.0%",
        "CUT: 2 rows were cut.",
    ]
