"""Made-up rows for measuring speed: lengths like real ones, tokens without meaning.

In: a workload's name, a vocabulary, a seed. Out: examples as `data/batch.py` takes them, always the same. `dialog` is
short dialogues with a summary in a sentence, `long` documents of some pages; about 13 % of their tokens are learned.
Words are drawn by Zipf's law, and a completion takes words of its prompt again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.batch import Batch, Example, batch_of
from tunesmith.data.pack import pack

FIRST_WORD = 64  # ids below it are left to special tokens
MOST_WORDS = 20_000
END_TOKEN = 2
WINDOW = 2048  # rows packed together, so that long and short ones stay mixed over the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal lengths in tokens: median, spread of the logarithm, least, most, and a constant on top."""

    median: float
    spread: float
    least: int
    most: int
    plus: int = 0

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        lengths = random.lognormal(math.log(self.median), self.spread, count)
        return np.clip(lengths, self.least, self.most).astype(np.int64) + self.plus


WORKLOADS = {
    "dialog": (
        Lengths(median=135, spread=0.65, least=24, most=900, plus=10),
        Lengths(median=24, spread=0.45, least=6, most=80),
    ),
    "long": (
        Lengths(median=1800, spread=0.7, least=200, most=7000),
        Lengths(median=300, spread=0.5, least=32, most=1000),
    ),
}


class MadeUpRows:
    """`count` rows; those longer than `longest` are left out."""

    def __init__(self, workload: str, *, count: int, vocabulary_size: int, longest: int, seed: int) -> None:
        random = np.random.Generator(np.random.Philox(key=[seed, 0xBE7C]))
        prompts, completions = (lengths.draw(random, count) for lengths in WORKLOADS[workload])
        fits = prompts + completions <= longest
        self._prompts, self._completions = prompts[fits], completions[fits]
        words = min(MOST_WORDS, vocabulary_size - FIRST_WORD)
        weights = 1.0 / (np.arange(words) + 10.0)
        self._pool = FIRST_WORD + random.choice(words, 1 << 17, p=weights / weights.sum())
        self._seed = seed

    @property
    def lengths(self) -> NDArray[np.int32]:
        return (self._prompts + self._completions).astype(np.int32)

    @property
    def learned_share(self) -> float:
        return float(self._completions.sum() / self.lengths.sum())

    @property
    def mean_context(self) -> float:
        """Of a token: the length of its own row, over all tokens."""
        lengths = self.lengths.astype(np.float64)
        return float((lengths**2).sum() / lengths.sum())

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int, /) -> Example:
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        prompt_length, completion_length = int(self._prompts[index]), int(self._completions[index])
        start = int(random.integers(0, len(self._pool) - prompt_length))
        prompt = self._pool[start : start + prompt_length]
        completion = random.choice(prompt, completion_length)
        completion[-1] = END_TOKEN
        learned = np.zeros(prompt_length + completion_length, np.bool_)
        learned[prompt_length:] = True
        return Example(tokens=np.concatenate([prompt, completion]), learned=learned, line=index + 1)


def shortest_row(workload: str) -> int:
    """Tokens that the shortest row of a workload can have."""
    return sum(lengths.least + lengths.plus for lengths in WORKLOADS[workload])


def packed_rows(rows: MadeUpRows, *, row_tokens: int, seed: int) -> list[list[int]]:
    """All rows packed into rows of `row_tokens`, in a mixed order."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0x9ACC]))
    packed: list[list[int]] = []
    for start in range(0, len(rows), WINDOW):
        window = pack(rows.lengths[start : start + WINDOW], sequence_length=row_tokens)
        packed += [[start + place for place in window[index]] for index in random.permutation(len(window))]
    return packed


def steps_of(
    rows: MadeUpRows, *, row_tokens: int, rows_per_forward: int, forwards_per_step: int, most: int, seed: int
) -> list[list[Batch]]:
    """The batches of up to `most` steps."""
    packed = packed_rows(rows, row_tokens=row_tokens, seed=seed)
    size = rows_per_forward * forwards_per_step
    steps: list[list[Batch]] = []
    for first in range(0, min(len(packed) - size + 1, most * size), size):
        batches: list[Batch] = []
        offset = 0
        for start in range(first, first + size, rows_per_forward):
            members = [row for one in packed[start : start + rows_per_forward] for row in one]
            batches.append(batch_of(rows, np.asarray(members, np.int64), offset_in_step=offset))
            offset += len(batches[-1].tokens_T)
        steps.append(batches)
    return steps
