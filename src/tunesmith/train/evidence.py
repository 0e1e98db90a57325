"""The last look of a run: base and tuned model on the same held-out rows, scored and generated.

The tuned model here is the best epoch's. Rows are the test dataset's where there is one, else the validation rows.
Greedy answers are generated where that is cheap; where it is not, the verdict says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tunesmith.data.prepare import ExampleSet, Prepared
from tunesmith.models.decoder import decoder_of
from tunesmith.models.generate import greedy
from tunesmith.models.lora import clear_dropout_position, disabled, lora_modules
from tunesmith.models.skeleton import for_generation
from tunesmith.spec.datasets import RowKind
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.metrics import Sample
from tunesmith.spec.verdict import MINIMUM_ROWS, Verdict
from tunesmith.train.evaluation import RowScores
from tunesmith.train.verdict import dead_adapter, judge, not_measured

GENERATED_ROWS = 64
NUM_SAMPLES = 3
MAXIMUM_NEW_TOKENS = 256
# Weights passed by a token a second: 64 answers of 60 tokens by the bundled model took 3.7 s of one core.
CPU_VALUES_PER_SECOND = 3e9
# Of a batch on a GPU: weights read a second in bf16, and the time that a layer's launches take. A 1B model on an H200,
# 88 tokens twice: 1.6 s by this where 1.9 were found; by transformers' modules 16, their import among it.
GPU_VALUES_PER_SECOND = 1e12
GPU_SECONDS_PER_LAYER = 4e-3
GPU_SECONDS_PER_FAST_LAYER = 5e-4
CHEAP_SECONDS = 20.0

Score = Callable[[ExampleSet, np.ndarray, str], RowScores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Greedy answers to the same prompts: is each the completion token for token, had it to be cut?"""

    rows: np.ndarray
    base: list[str]
    tuned: list[str]
    base_is_exact: list[bool]
    tuned_is_exact: list[bool]
    base_is_cut: list[bool]
    tuned_is_cut: list[bool]


def collect_verdict(
    model: nn.Module,
    *,
    job: JobFile,
    prepared: Prepared,
    score: Score,
    validated: tuple[RowScores | None, RowScores | None],
    check_stop: Callable[[], None],
) -> tuple[Verdict, list[Sample]]:
    """The verdict on the adapter that `model` holds, and a few held-out prompts with both answers.

    validated: scores of the base and of this adapter on all validation rows, where this attempt has them; they would be
    the same again, so only what is missing is scored.
    """
    measured_on = "test" if prepared.test is not None else "validation"
    examples = prepared.test if prepared.test is not None else prepared.validation
    fault = _dead(model)
    if examples is None:
        if fault:
            return dead_adapter(fault, rows=0, measured_on="nothing"), []
        reason = "There are no validation rows. --validation-fraction or --validation-dataset gives some."
        return not_measured(reason, rows=0, measured_on="nothing"), []
    clear_dropout_position(model)
    answers, note = None, None
    if not (fault and "finite" in fault):
        answers, note = _generate(model, examples, job=job, prepared=prepared, check_stop=check_stop)
    samples = [] if answers is None else _samples(examples, answers)
    if fault:
        return dead_adapter(fault, rows=len(examples), measured_on=measured_on), samples
    rows = np.arange(len(examples))
    base, tuned = (None, None) if prepared.test is not None else validated
    if base is None:
        with disabled(model):
            base = score(examples, rows, f"the base on {measured_on} rows")
    if tuned is None:
        tuned = score(examples, rows, f"the tuned model on {measured_on} rows")
    verdict = judge(
        base,
        tuned,
        measured_on=measured_on,
        chose_epoch=measured_on == "validation" and job.settings.epochs > 1,
        seed=job.settings.seed,
        exact=None if answers is None or note else (answers.base_is_exact, answers.tuned_is_exact),
        exact_note=note,
    )
    return verdict, samples


def _dead(model: nn.Module) -> str | None:
    """Why the adapter cannot work, if it cannot."""
    modules = lora_modules(model)
    if not all(bool(torch.isfinite(m.lora_A).all() and torch.isfinite(m.lora_B).all()) for m in modules):
        return "The adapter holds values that are not finite."
    if not any(bool(m.lora_B.any()) for m in modules):
        return "All of the adapter's output matrices are zero: it changes nothing."
    return None


def _generate(
    model: nn.Module,
    examples: ExampleSet,
    *,
    job: JobFile,
    prepared: Prepared,
    check_stop: Callable[[], None],
) -> tuple[Answers | None, str | None]:
    """Answers for a seeded choice of rows, as many as are cheap; the note says why there is no exact match."""
    generator = np.random.Generator(np.random.Philox(key=[job.settings.seed, 0x6E6E]))
    shuffled = generator.permutation(len(examples))[:GENERATED_ROWS]
    new_tokens = np.minimum(MAXIMUM_NEW_TOKENS, np.asarray(examples.num_learned, np.int64)[shuffled] + 8)
    seconds = seconds_of(new_tokens, job=job, is_fast=decoder_of(model) is not None)
    count = int(np.searchsorted(seconds, CHEAP_SECONDS, side="right"))
    if count < min(NUM_SAMPLES, len(shuffled)):
        return None, f"Greedy answers were not generated: about {seconds[-1]:.0f} s on this machine."
    rows = np.sort(shuffled[:count])
    longest = int(new_tokens[:count].max())
    prompts = [examples.prompt_tokens(int(row)) for row in rows]
    expected = [examples.answer_tokens(int(row)) for row in rows]
    ends = prepared.end_token_ids
    try:
        speaking = model if decoder_of(model) is not None else for_generation(model)
        with disabled(model):
            base = greedy(speaking, prompts, max_new_tokens=longest, end_ids=ends)
        check_stop()
        tuned = greedy(speaking, prompts, max_new_tokens=longest, end_ids=ends)
    except torch.OutOfMemoryError:
        return None, "Greedy answers were not generated: memory ran out."
    answers = Answers(
        rows=rows,
        base=[prepared.decode(answer) for answer in base],
        tuned=[prepared.decode(answer) for answer in tuned],
        base_is_cut=[len(answer) == longest for answer in base],
        tuned_is_cut=[len(answer) == longest for answer in tuned],
        base_is_exact=[answer == wanted for answer, wanted in zip(base, expected, strict=True)],
        tuned_is_exact=[answer == wanted for answer, wanted in zip(tuned, expected, strict=True)],
    )
    if count < min(MINIMUM_ROWS, len(shuffled)):
        return answers, f"Exact match was not measured: answers to more than {count} rows take too long here."
    return answers, None


def seconds_of(new_tokens_R: np.ndarray, *, job: JobFile, is_fast: bool) -> np.ndarray:
    """About how long the answers of base and tuned model take, for the first row, the first two, and so on.

    A CPU computes for each token of each row. A GPU reads the weights and launches the kernels of each layer once a
    token, for all rows together, and is done with the longest.
    """
    if job.device == "cpu":
        return np.cumsum(2.0 * new_tokens_R.astype(float) * job.base.parameters / CPU_VALUES_PER_SECOND)
    layers = GPU_SECONDS_PER_FAST_LAYER if is_fast else GPU_SECONDS_PER_LAYER
    token = job.base.num_layers * layers + job.base.parameters / GPU_VALUES_PER_SECOND
    return 2.0 * np.maximum.accumulate(new_tokens_R) * token


def _samples(examples: ExampleSet, answers: Answers) -> list[Sample]:
    """A few of the generated rows, spread over them."""
    places = sorted({round(place) for place in np.linspace(0, len(answers.rows) - 1, NUM_SAMPLES)})
    return [
        Sample(
            prompt=_prompt_as_written(examples, int(answers.rows[place])),
            expected=examples.answer_text(int(answers.rows[place])),
            base=answers.base[place],
            tuned=answers.tuned[place],
            base_is_cut=answers.base_is_cut[place],
            tuned_is_cut=answers.tuned_is_cut[place],
        )
        for place in places
    ]


def _prompt_as_written(examples: ExampleSet, index: int) -> str:
    """The prompt as the dataset has it, without the template; of a conversation, the turns before the answer."""
    row = examples.text(index)
    if row.kind is RowKind.PROMPT_COMPLETION:
        return row.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in row.messages[:-1])
