"""Token ids to pieces of text while they come: no character is cut.

In: one token id at a time. Out: text that may be shown at once. All pieces together are the tokenizer's own text of all
ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a tokenizer makes of bytes that are not yet a character

Decode = Callable[[Sequence[int]], str]


class TextPieces:
    """Decodes what has come since the last whole piece, behind the piece before it: sub-words need their left side.

    before: ids that stand before the answer where its text goes on from theirs.
    """

    def __init__(self, decode: Decode, *, before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before)
        self._start = 0  # of the piece before
        self._given = len(self._ids)  # ids whose text is out

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._more(is_end=False)

    def rest(self) -> str:
        """What is left at the end; bytes that never became a character are shown as the tokenizer shows them."""
        return self._more(is_end=True)

    def _more(self, *, is_end: bool) -> str:
        known = self._decode(self._ids[self._start : self._given])
        text = self._decode(self._ids[self._start :])
        if not is_end and text.endswith(REPLACEMENT):
            return ""
        if len(text) > len(known):
            self._start, self._given = self._given, len(self._ids)
        return text[len(known) :]
