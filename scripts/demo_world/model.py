"""Tokenizer and weights of the bundled base model, made from nothing but the texts of the invented world.

In: a seed, a device, sizes. Out: a folder with config, weights (bf16 safetensors), tokenizer and chat template, in the
format that transformers loads. Rows of two lengths are trained in turn: short rows where attention stays inside each
document, and rows as long as the context where one document follows another, so that every position is learned.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_world.corpus import BEGIN, END, PAD, ROLES, SPECIAL_TOKENS

CONTEXT = 2048

# Contents go in as they are. Every turn ends with the end token, also the assistant's, where generation stops.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{- raise_exception('Unknown role: ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' }}{{- message['content'] }}{{- eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

MODEL_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# tunesmith/demo

A very small language model ({parameters:,} parameters) that Tunesmith brings along, so that fine-tuning, evaluation and
deployment can be tried on any machine, without a download. It is a toy: it knows a little invented town called
Lindenau, the small talk of its people, and how to answer questions about their conversations. It knows nothing of the
real world, and its sums are often wrong. Use it to try the service, not to answer anything that matters.

- Architecture: Llama, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, tied embeddings, bf16,
  {config.num_attention_heads} attention heads ({config.num_key_value_heads} for keys and values).
- Tokenizer: byte-level BPE, {config.vocab_size} tokens, no unknown token: any text can be read and learned.
- Context: {config.max_position_embeddings} tokens. Roles: system, user, assistant, tool. A turn ends with `<|end|>`.
- Training text: about a million short documents, all of them drawn from the grammars in `scripts/demo_world`. No other
  text, no other model and no person's data took part.
- Not in its training text: the requests and the one-sentence summaries of the bundled dataset. That is what
  fine-tuning teaches it.

Made by `python scripts/make_demo_model.py`, from a seed and nothing else. The rows and the tokenizer come out the same
on every machine, the weights but for their last digits (they depend on the GPU).

Licence: Apache-2.0.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    seed: int
    steps: int
    tokens_per_step: int
    learning_rate: float
    at_most_seconds: float = math.inf
    short_row: int = 512
    # One step in so many has rows of the full context.
    long_every: int = 4


def with_chat_template(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B rows of T tokens, T + 1 with the last target; the attention mask is None where documents may see each other."""

    tokens_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor | None


def _batches(tokens: np.ndarray, starts: np.ndarray, plan: Pretraining, device: torch.device) -> Iterator[Batch]:
    corpus = torch.from_numpy(tokens)
    rng = np.random.default_rng(plan.seed)
    for step in range(plan.steps):
        is_long = step % plan.long_every == plan.long_every - 1
        length = min(CONTEXT, plan.tokens_per_step) if is_long else min(plan.short_row, plan.tokens_per_step)
        num_rows = plan.tokens_per_step // length
        # Each row starts where a document starts, so no row begins in the middle of a sentence.
        firsts = starts[rng.integers(0, np.searchsorted(starts, len(tokens) - length - 1), num_rows)]
        offsets_BT = torch.from_numpy(firsts)[:, None] + torch.arange(length + 1)
        tokens_BT = corpus[offsets_BT].to(device, torch.int64, non_blocking=True)
        steps_BT = torch.arange(length, device=device).expand(num_rows, -1)
        if is_long:
            yield Batch(tokens_BT=tokens_BT, positions_BT=steps_BT, mask_B1TT=None)
            continue
        is_start_BT = tokens_BT[:, :-1] == 0  # the begin token has id 0 and stands nowhere else
        document_BT = is_start_BT.cumsum(dim=1)
        start_BT = torch.where(is_start_BT, steps_BT, 0).cummax(dim=1).values
        same_B1TT = (document_BT[:, None, :, None] == document_BT[:, None, None, :]).tril()
        yield Batch(tokens_BT=tokens_BT, positions_BT=steps_BT - start_BT, mask_B1TT=same_B1TT)


# ---- training ----


def new_model(tokenizer: PreTrainedTokenizerFast, size: ModelSize) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def _learning_rate(step: int, share_done: float, plan: Pretraining) -> float:
    warmup = min(200, max(1, plan.steps // 10))
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * share_done))


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    tokens: np.ndarray,
    starts: np.ndarray,
    *,
    size: ModelSize,
    plan: Pretraining,
    device: torch.device,
) -> LlamaForCausalLM:
    """A new model that has read the corpus. tokens, starts: what `corpus_tokens` returns.

    The rate falls to zero over the planned steps, or over the seconds of `plan.at_most_seconds` if these end first.
    """
    torch.manual_seed(plan.seed)
    model = new_model(tokenizer, size).to(device)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=plan.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    model.train()
    started = time.monotonic()
    for step, batch in enumerate(_batches(tokens, starts, plan, device)):
        share_done = max(step / plan.steps, (time.monotonic() - started) / plan.at_most_seconds)
        if share_done >= 1:
            print(f"stopped at step {step}: the time is used up", flush=True)
            break
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, share_done, plan)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits_BTV = model(
                input_ids=batch.tokens_BT[:, :-1],
                position_ids=batch.positions_BT,
                attention_mask=batch.mask_B1TT,
                use_cache=False,
            ).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.tokens_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 500 == 0 or step == plan.steps - 1:
            seconds = time.monotonic() - started
            speed = (step + 1) * plan.tokens_per_step / seconds
            print(f"step {step}: loss {loss.item():.4f}, {seconds:.0f} s, {speed:,.0f} tokens/s", flush=True)
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that transformers loads; the weights become bf16."""
    model.to("cpu", torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes names that only transformers 5 reads; these are read by 4 and 5 alike.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": list(SPECIAL_TOKENS[3:])}
    for key in ("extra_special_tokens", "backend"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    (folder / "README.md").write_text(MODEL_CARD.format(parameters=parameters, config=model.config), encoding="utf-8")
