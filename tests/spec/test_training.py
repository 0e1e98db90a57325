"""Settings: the promised defaults, the limits, the schedule."""

import itertools
import math

import pytest
from pydantic import ValidationError

from tunesmith.errors import TunesmithError
from tunesmith.spec.training import TrainingSettings, learning_rate_at, scaling


def test_defaults_are_the_promised_ones() -> None:
    settings = TrainingSettings()
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (32, 16, 0.05)
    assert settings.target_modules == "all-linear"
    assert (settings.epochs, settings.learning_rate, settings.validation_fraction) == (3, 2e-4, 0.1)
    assert scaling(settings) == 0.5
    assert scaling(TrainingSettings(adapter="rslora")) == 16 / math.sqrt(32)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0}, {"learning_rate": -1}, {"learning_rate": math.inf}, {"learning_rate": math.nan},
        {"learning_rate": 1e-320}, {"learning_rate": 1.1}, {"epochs": 0}, {"epochs": -1}, {"epochs": 0.5},
        {"epochs": 1e9}, {"lora_rank": 0}, {"lora_rank": 1.5}, {"lora_alpha": 0}, {"lora_dropout": 1},
        {"lora_dropout": -0.1}, {"sequence_length": 0}, {"sequence_length": 1}, {"global_batch_size": 0},
        {"micro_batch_size": -4}, {"seed": -1}, {"seed": 2**32}, {"validation_fraction": 1}, {"target_modules": []},
        {"target_modules": ["q", "q"]}, {"early_stopping": 0}, {"unknown": 1},
    ],
)  # fmt: skip
def test_impossible_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings.model_validate(values)


def test_schedule_warms_up_above_zero_and_ends_at_a_tenth() -> None:
    settings = TrainingSettings(learning_rate=1.0)
    rates = [learning_rate_at(settings, step=step, steps=200) for step in range(1, 201)]
    assert rates[0] == pytest.approx(1 / 6)  # 3 % of 200 steps
    assert max(rates) == rates[5] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert learning_rate_at(settings, step=1, steps=1) == 1.0


def test_linear_schedule_differs_and_is_a_line() -> None:
    linear = TrainingSettings(learning_rate=1.0, learning_rate_schedule="linear")
    rates = [learning_rate_at(linear, step=step, steps=200) for step in range(6, 201)]
    differences = {round(a - b, 9) for a, b in itertools.pairwise(rates)}
    assert len(differences) == 1
    assert rates[-1] == pytest.approx(0.1)


def test_open_settings_are_not_given_to_a_worker() -> None:
    with pytest.raises(TunesmithError, match="sequence_length"):
        TrainingSettings().require_resolved()
