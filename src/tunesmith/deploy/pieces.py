"""Token ids to pieces of text while they come: no character is cut, and nothing of a stop text gets out.

In: one token id at a time. Out: text that may be shown at once. All pieces together are the tokenizer's own text of all
ids, up to the first stop text.
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


class StopTexts:
    """Lets text through up to the first stop text; holds back an end that may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """What may be shown now; nothing more once `is_found`."""
        whole = self._held + text
        places = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if places:
            self.is_found = True
            self._held = ""
            return whole[: min(places)]
        held = max((_overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held]

    def rest(self) -> str:
        """What was held back and became no stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
