"""Rows that are nearly equal, and prompts that are answered in more than one way: worth a look before training.

In: texts of rows, one by one. Out: two counts with their first lines. It is an estimate: only the first rows of a file
are compared, so that its cost ends at about a second and 20 MB. Equal rows are no matter of this module.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_ROWS = 100_000
MAX_CHARACTERS = 50_000_000


@dataclass(slots=True)
class Likeness:
    """rows: that are like an earlier one. line: of the first of them. of: the line that it is like."""

    rows: int = 0
    line: int = 0
    of: int = 0

    def count(self, line: int, of: int) -> None:
        if not self.rows:
            self.line, self.of = line, of
        self.rows += 1


class LikenessFinder:
    """near: rows equal to an earlier one but for case and white space. prompts: another answer to an earlier prompt."""

    def __init__(self) -> None:
        self.near = Likeness()
        self.prompts = Likeness()
        self.num_rows = 0
        self.is_full = False
        self._characters = 0
        # hash of a text -> line, and hash of what may differ. A chance collision among 64 bits costs a wrong count.
        self._folded: dict[int, tuple[int, int]] = {}
        self._answers: dict[int, tuple[int, int]] = {}

    def add(self, prompt: str, answer: str, *, line: int) -> None:
        """Compare one row with those before. Not to be called once `is_full`."""
        self.num_rows += 1
        self._characters += len(prompt) + len(answer)
        self.is_full = self.num_rows >= MAX_ROWS or self._characters >= MAX_CHARACTERS
        folded = hash((_folded(prompt), _folded(answer)))
        whole = hash((prompt, answer))
        earlier, was = self._folded.setdefault(folded, (line, whole))
        if was != whole:
            self.near.count(line, earlier)
            return
        if not prompt or prompt.isspace():
            return
        answered = hash(answer)
        earlier, was = self._answers.setdefault(hash(prompt), (line, answered))
        if was != answered:
            self.prompts.count(line, earlier)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
