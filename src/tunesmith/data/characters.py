"""Characters that a person should know of: invisible, bidirectional, private, lost in a conversion.

In: text, or its UTF-8. Out: which warnings it deserves. The search goes over whole chunks of a file first, by the
few bytes that such characters start with, as a look at every character would take longer than parsing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLASSES = {
    "BIDI_CONTROLS": re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"),
    # joiners (U+200C, U+200D) are left out: emoji, Persian and Indic scripts are written with them
    "ZERO_WIDTH": re.compile("[\u200b\u2060\ufeff]"),
    "REPLACEMENT_CHARACTERS": re.compile("\ufffd"),
    "NONCHARACTERS": re.compile(
        "[\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff"
        + "".join(f"{chr(plane * 0x10000 + 0xFFFE)}{chr(plane * 0x10000 + 0xFFFF)}" for plane in range(1, 15))
        + "]"
    ),
}

# Those characters in UTF-8 by their first byte. Finding a byte costs 0.1 ns a byte of text, a pattern with fixed first
# bytes 0.5 ns, one pattern of alternatives 15 ns.
_UTF8 = {
    b"\xd8": re.compile(rb"\xd8\x9c"),
    b"\xe2": re.compile(rb"\xe2(?:\x80[\x8b\x8e\x8f\xaa-\xae]|\x81[\xa0\xa6-\xa9])"),
    b"\xee": re.compile(rb"\xee"),
    b"\xef": re.compile(rb"\xef(?:[\x80-\xa3]|\xb7[\x90-\xaf]|\xbb\xbf|\xbf[\xbd-\xbf])"),
    b"\xf0": re.compile(rb"\xf0[\x9f\xaf\xbf]\xbf[\xbe\xbf]"),
    b"\xf1": re.compile(rb"\xf1[\x8f\x9f\xaf\xbf]\xbf[\xbe\xbf]"),
    b"\xf2": re.compile(rb"\xf2[\x8f\x9f\xaf\xbf]\xbf[\xbe\xbf]"),
    b"\xf3": re.compile(rb"\xf3(?:[\x8f\x9f\xaf]\xbf[\xbe\xbf]|[\xb0-\xbf])"),
    b"\xf4": re.compile(rb"\xf4"),
}
# The same as JSON escapes (planes from 1 on begin with a high surrogate), and what makes the fast way of `jsonl`
# unsafe: an escaped NUL, and ASCII from U+0020 on, which may be a quote or a letter of a key.
_ESCAPED = re.compile(
    rb"\\u(?:0000|00[2-7]|061[cC]|20(?:0[bBeEfF]|2[a-eA-E]|6[06-9])|[eE]|[fF][0-8]|[fF][dDeEfF][dDeEfF]"
    rb"|[dD](?:[89abAB]..\\u[dD][fF][fF][eEfF]|[bB][89a-fA-F]))",
    re.DOTALL,
)


def has_odd_utf8(data: bytes) -> bool:
    """True if UTF-8 bytes hold a character of CLASSES (and now and then if they do not)."""
    if data.isascii():
        return False
    return any(first in data and pattern.search(data) for first, pattern in _UTF8.items())


def needs_close_look(raw: bytes) -> bool:
    """True if a stretch of JSONL may hold such characters, written out or escaped, or an escaped NUL or quote."""
    return _ESCAPED.search(raw) is not None or has_odd_utf8(raw)


def odd_characters(text: str) -> Iterator[tuple[str, str]]:
    """(warning code, first such character) for each class of characters in a text."""
    for code, pattern in CLASSES.items():
        match = pattern.search(text)
        if match is not None:
            yield code, match.group()
