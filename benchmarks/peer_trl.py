"""The peer of `bench_training`: TRL's SFTTrainer on given token ids. Run by it in a process of its own.

Reads a request (JSON), trains, saves the adapter, and prints one JSON line with learned tokens a second.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds spent in the training loop alone."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: object, **__: object) -> None:
        self.seconds = time.perf_counter() - self.started


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(request["threads"])
    variant = request["variant"]
    settings = {
        "output_dir": request["out"], "per_device_train_batch_size": request["batch"],
        "learning_rate": request["learning_rate"],
        "num_train_epochs": request["epochs"], "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 0.03, "max_grad_norm": 1.0, "weight_decay": 0.0,
        "optim": "adamw_torch", "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "report_to": "none",
        "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "max_length": None,
        "completion_only_loss": True, "seed": request["seed"], "data_seed": request["seed"],
        "dataloader_pin_memory": False,
    }  # fmt: skip
    if variant == "by-length":
        settings["train_sampling_strategy"] = "group_by_length"
    if variant == "same-order":
        settings["train_sampling_strategy"] = "sequential"
    if variant == "compiled":
        settings["torch_compile"] = True
    if variant == "packed":
        settings |= {"packing": True, "max_length": 2048, "per_device_train_batch_size": 1}
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    lora = LoraConfig(r=32, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter: dict[str, object] = {"model": model, "peft_config": lora}
    if variant == "same-order":
        adapter = {"model": PeftModel.from_pretrained(model, request["first"], is_trainable=True)}
    clock = Clock()
    trainer = SFTTrainer(
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(request["rows"]),
        processing_class=tokenizer,
        callbacks=[clock],
        **adapter,
    )
    trainer.train()
    trainer.model.save_pretrained(request["out"])
    learned = request["epochs"] * sum(sum(row["completion_mask"]) for row in request["rows"])
    print(json.dumps({"learned_tokens_per_second": learned / clock.seconds, "seconds": clock.seconds}))


if __name__ == "__main__":
    main()
