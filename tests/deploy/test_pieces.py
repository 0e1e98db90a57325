"""Text in pieces equals the text as a whole, whatever the tokens; stop texts never get out."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith.bundled import MODEL_FOLDER
from tunesmith.data.pieces import TextPieces
from tunesmith.data.tokenizer import TextTokenizer, load_tokenizer
from tunesmith.deploy.stops import StopTexts


@functools.cache
def demo() -> TextTokenizer:
    return load_tokenizer(MODEL_FOLDER)


@functools.cache
def sentencepiece_like() -> Tokenizer:
    """Words behind `▁`, bytes for what is no word: as Llama 2 decodes."""
    words = ["▁", "▁the", "▁a", "s", "cat", "▁cat"]
    vocabulary = {word: index for index, word in enumerate([f"<0x{byte:02X}>" for byte in range(256)] + words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def pieces_of(decode: object, ids: list[int]) -> list[str]:
    pieces = TextPieces(decode)  # type: ignore[arg-type]
    return [*(pieces.add(token) for token in ids), pieces.rest()]


@given(st.lists(st.integers(0, 1500), max_size=40))
@settings(max_examples=200, deadline=None)
def test_pieces_together_are_the_tokenizers_text_of_all_ids(ids: list[int]) -> None:
    ids = [token % demo().size for token in ids]
    assert "".join(pieces_of(demo().decode, ids)) == demo().decode(ids)


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_piece_of_a_real_text_holds_half_a_character(text: str) -> None:
    ids = demo().encode_contents([text])[0]
    pieces = pieces_of(demo().decode, ids)
    assert "".join(pieces) == demo().decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, 261), max_size=30))
@settings(max_examples=200, deadline=None)
def test_pieces_of_a_tokenizer_that_strips_its_first_space(ids: list[int]) -> None:
    decode = functools.partial(sentencepiece_like().decode, skip_special_tokens=False)
    # Before a word the decoder looks at a run of bytes as a whole, so only runs that are UTF-8 are given one by one.
    if "\ufffd" not in decode(ids):
        assert "".join(pieces_of(decode, ids)) == decode(ids)


def test_a_character_of_several_tokens_comes_whole() -> None:
    decode = functools.partial(sentencepiece_like().decode, skip_special_tokens=False)
    ids = [259, *"中".encode(), 256 + 1, *"é".encode()]
    assert pieces_of(decode, ids) == ["s", "", "", "中", " the", "", "é", ""]


def test_an_answer_that_goes_on_keeps_its_first_space() -> None:
    decode = functools.partial(sentencepiece_like().decode, skip_special_tokens=False)
    pieces = TextPieces(decode, before=[257])
    assert pieces.add(261) == " cat"
    assert TextPieces(decode).add(261) == "cat"


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    decode = functools.partial(sentencepiece_like().decode, skip_special_tokens=False)
    assert pieces_of(decode, [259, 0xE4]) == ["s", "", "\ufffd"]


@given(st.text("ab#", max_size=30), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=4), st.randoms())
@settings(max_examples=200, deadline=None)
def test_all_text_before_the_first_stop_gets_out_however_it_comes(text: str, stops: list[str], random: object) -> None:
    stopper = StopTexts(stops)
    shown, rest = "", text
    while rest and not stopper.is_found:
        size = random.randint(1, 3)  # type: ignore[attr-defined]
        shown += stopper.add(rest[:size])
        rest = rest[size:]
        assert not any(stop in shown for stop in stops)
    shown += stopper.rest()
    places = [text.find(stop) for stop in stops if stop in text]
    assert stopper.is_found == bool(places)
    # Of two stops that overlap, the one that is complete first ends the text.
    assert text.startswith(shown)
    if not places:
        assert shown == text
    elif len(places) == 1 or len(set(stops)) == 1:
        assert shown == text[: min(places)]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["one END two"], ["one "]),
        (["one E", "N", "D two"], ["one ", "", ""]),
        (["one E", "N", "x", "END"], ["one ", "", "ENx", ""]),
        (["EEND"], ["E"]),
    ],
)
def test_a_stop_text_over_several_pieces(pieces: list[str], shown: list[str]) -> None:
    stopper = StopTexts(["END"])
    assert [stopper.add(piece) for piece in pieces] == shown
    assert stopper.is_found
    assert stopper.rest() == ""
