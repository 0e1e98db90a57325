"""Tokenizer and tokens of the corpus that the base model reads.

In: a seed and sizes. Out: a byte-level BPE tokenizer trained on the invented world, and the tokens of many documents.
This file imports no torch: every processor runs it to draw and encode its share of the documents.
"""

import math
import multiprocessing
import random
from collections.abc import Collection

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_world.texts import Document, draw_document

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL_TOKENS = (BEGIN, END, PAD, *(f"<|{role}|>" for role in ROLES))

# Words keep their leading space, digits stand alone, and line breaks are never glued to words: a name has one token at
# the start of a line and one inside a sentence, wherever it stands.
_WORDS = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


def _parts(document: Document) -> list[str]:
    return [document] if isinstance(document, str) else [content for _, content in document]


def train_tokenizer(*, seed: int, vocab_size: int, num_documents: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(f"tokenizer {seed}")
    texts = (part for _ in range(num_documents) for part in _parts(draw_document(rng)) if part.isascii())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


# ---- corpus ----


def _holds(part: str, forbidden_by_line: dict[str, list[str]]) -> bool:
    """Does the text hold a forbidden one? Each is found by its longest line, so that most lines cost one look-up."""
    return any(text in part for line in part.split("\n") for text in forbidden_by_line.get(line, ()))


def _shard_tokens(arguments: tuple[str, int, int, int, frozenset[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of one shard of documents, and the length of each document."""
    tokenizer_json, seed, shard, num_documents, forbidden = arguments
    tokenizer = Tokenizer.from_str(tokenizer_json)
    role_ids = {role: tokenizer.token_to_id(f"<|{role}|>") for role in ROLES}
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    forbidden_by_line: dict[str, list[str]] = {}
    for text in forbidden:
        forbidden_by_line.setdefault(max(text.split("\n"), key=len), []).append(text)
    rng = random.Random(f"corpus {seed} {shard}")
    documents: list[Document] = []
    while len(documents) < num_documents:
        document = draw_document(rng)
        if not any(_holds(part, forbidden_by_line) for part in _parts(document)):
            documents.append(document)
    encoded = iter(tokenizer.encode_batch([part for d in documents for part in _parts(d)], add_special_tokens=False))
    pieces: list[list[int]] = []
    for document in documents:
        if isinstance(document, str):
            pieces.append([begin, *next(encoded).ids, end])
        else:
            tokens = [begin]
            for role, _ in document:
                tokens += [role_ids[role], *next(encoded).ids, end]
            pieces.append(tokens)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int32)
    return np.concatenate([np.array(piece, dtype=np.int16) for piece in pieces]), lengths


def corpus_tokens(
    tokenizer: Tokenizer, *, seed: int, num_documents: int, forbidden: Collection[str]
) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of the corpus (int16), and where each document starts.

    forbidden: texts that no document may hold. The shards do not depend on the number of processors.
    """
    shard_size = 5000
    tokenizer_json = tokenizer.to_str()
    shards = [
        (tokenizer_json, seed, shard, min(shard_size, num_documents - shard * shard_size), frozenset(forbidden))
        for shard in range(math.ceil(num_documents / shard_size))
    ]
    # spawn: a forked child of a process with CUDA or a thread pool may hang.
    with multiprocessing.get_context("spawn").Pool() as pool:
        results = pool.map(_shard_tokens, shards, chunksize=1)
    lengths = np.concatenate([lengths for _, lengths in results]).astype(np.int64)
    return np.concatenate([tokens for tokens, _ in results]), np.concatenate([[0], np.cumsum(lengths)[:-1]])
