"""A base whose answers end by their length alone, and whether a worker computes.

A test that leaves or kills in the middle of an answer needs one that is still being made on a machine of any speed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.train.conftest import SPECIALS, save_byte_tokenizer

CONTEXT_LENGTH = 40_000
# eight answers of this length: minutes of work on any machine, where a test waits for STILL_WITHIN_SECONDS at most
LONG = {"max_tokens": 39_000, "choices": 8}
STILL_SECONDS = 1.0
STILL_WITHIN_SECONDS = 60.0


def endless_base(folder: Path) -> Path:
    """A two-layer base that never chooses an end token while it takes the likeliest: their logits are always zero."""
    folder.mkdir()
    vocabulary = save_byte_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": CONTEXT_LENGTH}))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT_LENGTH, tie_word_embeddings=True, bos_token_id=256,
        eos_token_id=257, pad_token_id=257, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.data[-len(SPECIALS) :] = 0.0
    model.save_pretrained(folder)
    return folder


def time_of(pid: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_it_computes(pid: int, *, since: float) -> None:
    """since: its processor time before the work was asked for."""
    end = time.monotonic() + STILL_WITHIN_SECONDS
    while time_of(pid) - since < 0.1:
        assert time.monotonic() < end, f"worker {pid} never began: {time_of(pid):.2f} s of processor time"
        time.sleep(0.01)


def wait_until_it_stands_still(pid: int) -> None:
    end = time.monotonic() + STILL_WITHIN_SECONDS
    used, since = time_of(pid), time.monotonic()
    while time.monotonic() - since < STILL_SECONDS:
        assert time.monotonic() < end, f"worker {pid} computes on: {used:.2f} s of processor time by now"
        time.sleep(0.05)
        if (now := time_of(pid)) != used:
            used, since = now, time.monotonic()
