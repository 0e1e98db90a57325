"""Text of users as it may be shown: control and bidirectional characters are written out, not obeyed.

The one place for it: terminals (command line, client), and what goes into HTML is escaped besides.
"""

from __future__ import annotations

import unicodedata

# Characters that reorder or hide what is beside them.
HIDDEN = frozenset(
    "\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)


def visible(text: str, *, keep_newlines: bool = False) -> str:
    """`text` with every control or bidirectional character written out, as in `\\x1b` and `\\u202e`."""
    return "".join(
        character if (character == "\n" and keep_newlines) or not _acts(character) else _written(character)
        for character in text
    )


def _acts(character: str) -> bool:
    return character in HIDDEN or unicodedata.category(character) in ("Cc", "Cs")


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
