"""Rows as a model sees them, for people: the text of their tokens, learned or only read.

In: prepared datasets. Out: `Preview`s of the rows at chosen lines, or of the longest, the shortest and two random rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from tunesmith.data.batch import Example
from tunesmith.data.pieces import Decode, TextPieces
from tunesmith.data.prepare import ExampleSet, Prepared
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import MAXIMUM_SPANS, Preview, PreviewPiece, PreviewSpan, PreviewWish, Role


def previews(prepared: Prepared, wish: PreviewWish, *, seed: int) -> list[Preview]:
    """Of each set, training first. Raises InputRefused (NO_SUCH_ROW) for a line at which no row starts."""
    sets: list[tuple[Role, ExampleSet | None]] = [
        ("training", prepared.training),
        ("validation", prepared.validation),
        ("test", prepared.test),
    ]
    made: list[Preview] = []
    for role, examples in sets:
        if examples is None:
            continue
        if wish.lines:
            chosen = [(_at(examples, line), "chosen") for line in wish.lines]
        else:
            chosen = [
                (int(examples.lengths.argmax()), "longest"),
                (int(examples.lengths.argmin()), "shortest"),
                *((index, "random") for index in _random(len(examples), seed=seed)),
            ]
        made += [_preview(examples, index, role=role, which=which, with_spans=wish.spans) for index, which in chosen]
    return made


def _random(rows: int, *, seed: int) -> list[int]:
    return np.random.Generator(np.random.Philox(key=seed)).choice(rows, min(2, rows), replace=False).tolist()


def _at(examples: ExampleSet, line: int) -> int:
    lines = examples.lines
    index = int(np.searchsorted(lines, line))
    if index < len(lines) and lines[index] == line:
        return index
    near = [f"{int(number):,}" for number in lines[max(0, index - 1) : index + 1]]
    raise InputRefused(
        "NO_SUCH_ROW",
        f"{examples.name} has no row that starts at line {line:,}.",
        field="lines",
        hint=f"The nearest {'rows start at lines' if len(near) > 1 else 'row starts at line'} {' and '.join(near)}.",
    )


def _preview(examples: ExampleSet, index: int, *, role: Role, which: Any, with_spans: bool) -> Preview:
    example = examples[index]
    borders = [0, *(np.flatnonzero(np.diff(example.learned)) + 1).tolist(), len(example.tokens)]
    pieces = [
        PreviewPiece(text=examples.decode(example.tokens[start:end].tolist()), learned=bool(example.learned[start]))
        for start, end in pairwise(borders)
    ]
    spans = _spans(example, borders, examples.decode) if with_spans else []
    left_out = max(0, len(example.tokens) - MAXIMUM_SPANS) if with_spans else 0
    return Preview(
        dataset=role, line=example.line, which=which, tokens=len(example.tokens), pieces=pieces, spans=spans,
        tokens_left_out=left_out,
    )  # fmt: skip


def _spans(example: Example, borders: list[int], decode: Decode) -> list[PreviewSpan]:
    """Token by token; tokens that hold parts of one character stand together. Of each piece they make up its text."""
    spans: list[PreviewSpan] = []
    for start, end in pairwise(borders):
        learned = bool(example.learned[start])
        text, held = TextPieces(decode), list[int]()
        for token in example.tokens[start : min(end, MAXIMUM_SPANS)].tolist():
            held.append(token)
            if shown := text.add(token):
                spans.append(PreviewSpan(text=shown, ids=held, learned=learned))
                held = []
        if held:
            spans.append(PreviewSpan(text=text.rest(), ids=held, learned=learned))
    return spans
