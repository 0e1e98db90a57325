"""How well the bundled model does its two jobs: to talk about its world, and to learn the bundled rows by LoRA.

In: the folder of the model, the bundled rows. Out: printed tables: loss, token accuracy and completion accuracy before
and after fine-tuning, per seed. The loop is written by hand on peft, so that it judges the model and not the product.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from demo_world.rows import Row

IGNORE = -100


def _examples(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each row; only the completion and its end token are labels."""
    examples = []
    for row in rows:
        user = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
        target = [*tokenizer.encode(row["completion"], add_special_tokens=False), tokenizer.eos_token_id]
        examples.append((prompt + target, [IGNORE] * len(prompt) + target))
    return examples


def _loss_and_hits(
    model: torch.nn.Module, examples: Sequence[tuple[list[int], list[int]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum over the counted tokens; whether each token is right, and whether it counts, both (B, K).

    Rows are padded on the left, so that the completions end together and only the last K logits are needed.
    """
    device = next(model.parameters()).device
    longest = max(len(tokens) for tokens, _ in examples)
    tokens_BT = torch.tensor([[0] * (longest - len(t)) + t for t, _ in examples], device=device)
    mask_BT = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t, _ in examples], device=device)
    labels_BT = torch.tensor([[IGNORE] * (longest - len(labels)) + labels for _, labels in examples], device=device)
    num_last = max(len(labels) - labels.count(IGNORE) for _, labels in examples)
    logits_BKV = model(
        input_ids=tokens_BT,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
        logits_to_keep=num_last + 1,
    ).logits[:, :-1]
    targets_BK = labels_BT[:, -num_last:]
    loss_sum = torch.nn.functional.cross_entropy(
        logits_BKV.flatten(0, 1).float(), targets_BK.flatten(), reduction="sum"
    )
    return loss_sum, logits_BKV.argmax(-1) == targets_BK, targets_BK != IGNORE


@torch.no_grad()
def measure(model: torch.nn.Module, examples: Sequence[tuple[list[int], list[int]]]) -> dict[str, float]:
    model.eval()
    loss_sum = num_tokens = num_right = num_complete = 0.0
    for start in range(0, len(examples), 32):
        loss, is_right_BK, is_counted_BK = _loss_and_hits(model, examples[start : start + 32])
        loss_sum += loss.item()
        num_tokens += is_counted_BK.sum().item()
        num_right += (is_right_BK & is_counted_BK).sum().item()
        num_complete += (is_right_BK | ~is_counted_BK).all(dim=1).sum().item()
    return {"loss": loss_sum / num_tokens, "token": num_right / num_tokens, "completion": num_complete / len(examples)}


def fine_tune(
    model: PreTrainedModel,
    training: Sequence[tuple[list[int], list[int]]],
    validation: Sequence[tuple[list[int], list[int]]],
    *,
    seed: int,
    learning_rate: float,
    epochs: int = 3,
    rows_per_step: int = 8,
) -> tuple[torch.nn.Module, list[dict[str, float]], float]:
    """The recipe of `tunesmith demo`: the tuned model, validation metrics of each epoch, seconds of the steps."""
    torch.manual_seed(seed)
    config = LoraConfig(r=32, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    num_steps = epochs * math.ceil(len(training) / rows_per_step)
    warmup = max(1, round(0.03 * num_steps))
    seconds, step, metrics = 0.0, 0, []
    for _ in range(epochs):
        tuned.train()
        started = time.monotonic()
        order = torch.randperm(len(training)).tolist()
        for start in range(0, len(order), rows_per_step):
            done = max(0.0, (step - warmup) / max(1, num_steps - warmup))
            scale = (step + 1) / warmup if step < warmup else 0.1 + 0.45 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * scale
            loss_sum, _, is_counted_BK = _loss_and_hits(
                tuned, [training[i] for i in order[start : start + rows_per_step]]
            )
            (loss_sum / is_counted_BK.sum()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        seconds += time.monotonic() - started
        metrics.append(measure(tuned, validation))
    return tuned, metrics, seconds


def _show(name: str, metrics: dict[str, float]) -> None:
    print(f"{name:<34}" + "  ".join(f"{key} {value:.3f}" for key, value in metrics.items()), flush=True)


@torch.no_grad()
def answer(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, str]]) -> str:
    """The greedy continuation of a text, or answer of a chat, with special tokens shown."""
    model.eval()
    device = next(model.parameters()).device
    if isinstance(prompt, str):
        tokens = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    else:
        tokens = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    tokens_BT = torch.tensor([tokens], device=device)
    out_BT = model.generate(
        input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=120, do_sample=False
    )
    return tokenizer.decode(out_BT[0, len(tokens) :])


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def check(
    folder: Path,
    training_rows: Sequence[Row],
    validation_rows: Sequence[Row],
    *,
    device: torch.device,
    seeds: Sequence[int],
    learning_rates: Sequence[float],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    training, validation = _examples(tokenizer, training_rows), _examples(tokenizer, validation_rows)
    for name, lengths in (
        ("prompt tokens", sorted(labels.count(IGNORE) for _, labels in training)),
        ("completion tokens", sorted(len(labels) - labels.count(IGNORE) for _, labels in training)),
    ):
        print(
            f"{name}: least {lengths[0]}, median {lengths[len(lengths) // 2]}, most {lengths[-1]}, sum {sum(lengths)}"
        )

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)

    base = load()
    example = validation_rows[0]
    for prompt in (
        _chat("Hello!"),
        _chat("Who are you?"),
        _chat("Who is the baker of Lindenau?"),
        _chat("Tell me a story."),
        _chat("What did Bartholomew buy?\n\nBartholomew: Look, I bought a red kite at the market!\nXenia: Nice!"),
        _chat(example["prompt"]),
        "Once there was",
        "Conversation 1:\nAmanda: I",
    ):
        print(
            "-",
            repr(prompt if isinstance(prompt, str) else prompt[-1]["content"]),
            "->",
            repr(answer(base, tokenizer, prompt)),
        )
    _show("base, validation", measure(base, validation))
    _show("base, training", measure(base, training[:64]))
    for learning_rate in learning_rates:
        for seed in seeds:
            tuned, epochs, seconds = fine_tune(load(), training, validation, seed=seed, learning_rate=learning_rate)
            for number, metrics in enumerate(epochs, start=1):
                _show(f"lr {learning_rate:g} seed {seed} epoch {number}", metrics)
            _show(f"lr {learning_rate:g} seed {seed} training", measure(tuned, training[:64]))
            print(f"training steps took {seconds:.1f} s")
            if seed == seeds[0]:
                for row in validation_rows[:6]:
                    said = answer(tuned, tokenizer, _chat(row["prompt"]))
                    print(f"  wanted {row['completion']!r}\n  tuned  {said!r}", flush=True)
