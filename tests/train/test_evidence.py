"""How many held-out rows are answered greedily: as many as are cheap, a few at least for the eye, or none and why."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.conftest import MakeJob, some_rows
from tunesmith.data.prepare import prepare
from tunesmith.models.base import load_base
from tunesmith.models.lora import adapter_parameters, inject
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.verdict import Outcome
from tunesmith.train import evidence
from tunesmith.train.evaluation import RowScores, score_rows
from tunesmith.train.evidence import collect_verdict

CPU = torch.device("cpu")


@pytest.fixture
def collect(make_job: MakeJob):
    """Calls `collect_verdict` on 20 validation rows with an adapter that changes something."""
    path = make_job(rows=some_rows(30), validation=some_rows(20, start=100))
    job = JobFile.model_validate_json(path.read_bytes())
    prepared = prepare(job.datasets, settings=job.settings, base=job.base, cache_folder=Path(job.cache_folder))
    model = load_base(job.base, dtype=torch.float32, device=CPU)
    inject(model, settings=job.settings)
    for name, parameter in adapter_parameters(model).items():
        if "lora_B" in name:
            parameter.data.fill_(0.01)

    def score(examples, rows, _detail: str) -> RowScores:
        return score_rows(model, examples, rows, device=CPU, max_tokens=4096)

    def call(fill: float | None = None):
        for name, parameter in adapter_parameters(model).items():
            if fill is not None and "lora_B" in name:
                parameter.data.fill_(fill)
        return collect_verdict(
            model, job=job, prepared=prepared, score=score, validated=(None, None), check_stop=lambda: None
        )

    return call


def test_cheap_answers_give_exact_match_over_all_rows_and_three_samples(collect) -> None:
    verdict, samples = collect()
    assert verdict.exact_match is not None
    assert verdict.rows == 20
    assert len(samples) == 3
    assert samples[0].prompt.startswith("count 1")  # as the dataset has it, no template around it
    assert samples[0].expected.split()[1] == "then"


def test_an_answer_that_had_not_ended_is_marked_as_cut(collect, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_model: object, prompts: list[list[int]], *, max_new_tokens: int, end_ids: object) -> list[list[int]]:
        del end_ids
        return [[5] * (max_new_tokens - number % 2) for number in range(len(prompts))]

    monkeypatch.setattr(evidence, "greedy", answer)
    _, samples = collect()  # of the answers 0, 10 and 19
    assert [sample.tuned_is_cut for sample in samples] == [True, True, False]
    assert [sample.base_is_cut for sample in samples] == [True, True, False]
    assert samples[0].tuned_shown == samples[0].tuned + " …" and samples[2].base_shown == samples[2].base


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_of_billions_of_parameters_has_a_duration(make_job: MakeJob, device: str) -> None:
    job = JobFile.model_validate_json(make_job(rows=some_rows(30)).read_bytes())
    base = job.base.model_copy(update={"parameters": 8_030_261_248, "num_layers": 32})
    job = job.model_copy(update={"base": base, "device": device})
    seconds = evidence.seconds_of(np.array([80, 40, 90], np.int32), job=job, is_fast=True)
    assert seconds.tolist() == sorted(seconds) and 1 < seconds[-1] < 1200


def test_dear_answers_are_fewer_and_then_none(collect, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = evidence.CPU_VALUES_PER_SECOND
    for slower, has_samples in ((1, True), (10**9, False)):
        monkeypatch.setattr(evidence, "CPU_VALUES_PER_SECOND", everything / slower)
        verdict, samples = collect()
        assert bool(samples) is has_samples
        assert ("not generated" in " ".join(verdict.reasons)) is not has_samples
    monkeypatch.setattr(evidence, "CPU_VALUES_PER_SECOND", everything)
    monkeypatch.setattr(evidence, "CHEAP_SECONDS", _seconds_of(5))
    verdict, samples = collect()
    assert verdict.exact_match is None
    assert len(samples) == 3
    assert "Exact match was not measured" in " ".join(verdict.reasons)


def _seconds_of(rows: int) -> float:
    """About what so many rows cost by the estimate: a dozen new tokens each on a model of 20,000 values."""
    return rows * 2 * 25 * 20_000 / evidence.CPU_VALUES_PER_SECOND


@pytest.mark.parametrize(("fill", "reason"), [(0.0, "zero"), (float("nan"), "not finite")])
def test_an_adapter_that_cannot_work_is_not_usable(collect, fill: float, reason: str) -> None:
    verdict, _ = collect(fill)
    assert verdict.outcome is Outcome.NOT_USABLE
    assert reason in verdict.reasons[0]
