"""When a run overfits."""

from __future__ import annotations

from tunesmith.spec.metrics import EpochMetrics, SplitMetrics, overfits_from


def epoch(number: int, training: float, validation: float | None) -> EpochMetrics:
    def scores(loss: float) -> SplitMetrics:
        return SplitMetrics(loss=loss, token_accuracy=0.5, completion_accuracy=0.5)

    held_out = scores(validation) if validation is not None else None
    return EpochMetrics(epoch=number, training=scores(training), validation=held_out)


def test_overfitting_is_validation_loss_up_while_training_loss_goes_down() -> None:
    base = epoch(0, 3.0, 0.1)  # the base is not compared
    assert overfits_from([]) is None
    assert overfits_from([base, epoch(1, 2.0, 1.0)]) is None
    assert overfits_from([base, epoch(1, 2.0, 1.0), epoch(2, 1.0, 0.9), epoch(3, 0.5, 1.1)]) == 3
    assert overfits_from([base, epoch(1, 2.0, 1.0), epoch(2, 2.5, 1.2)]) is None  # both rise: it diverges
    assert overfits_from([base, epoch(1, 2.0, None), epoch(2, 1.0, None)]) is None
