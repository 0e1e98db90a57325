"""From the command to the written adapter on one GPU: `tunesmith finetune` beside a TRL script, same model, same rows.

    python -m benchmarks.bench_time_to_result [--models 1b,8b] [--rows 500,..] [--runs tunesmith,trl] [--output FOLDER]

A model folder with random weights and rows of made-up words are written first, and read once, so that both find them
in the page cache. LoRA r=32, alpha=16, dropout 0.05 on all linear modules, one epoch, packed rows of 8,192 tokens,
16,384 tokens a step. Tunesmith also checks the rows, evaluates base and tuned model and writes its verdict; TRL only
trains and saves. Each command runs in a process of its own; a machine's first run compiles kernels, so each runs twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_gpu import MODELS
from benchmarks.peers_gpu import TARGETS, put_flash_attn_stand_in, random_model, save_tokenizer
from benchmarks.report import save
from tunesmith.files import write_json
from tunesmith.spec.bench import SHAPES, BenchRequest
from tunesmith.train.workload import MadeUpRows

ROW_TOKENS, STEP_TOKENS, LEARNING_RATE = 8192, 16_384, 2e-4
WORDS = 4000  # of the tokenizer
TIMES = 2


def make_model(model: str, folder: Path, *, device: str) -> None:
    import torch

    request = BenchRequest.model_validate(
        {"shape": MODELS[model], "device": device, "precision": "bf16", "threads": os.cpu_count() or 1,
         "row_tokens": ROW_TOKENS, "rows_per_forward": 1, "forwards_per_step": 2}
    )  # fmt: skip
    folder.mkdir(parents=True)
    made = random_model(request, "sdpa")
    made.config.max_position_embeddings = ROW_TOKENS
    made.save_pretrained(folder, max_shard_size="5GB")
    save_tokenizer(folder, request)
    del made
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for path in folder.glob("*.safetensors"):
        read_whole(path)


def read_libraries() -> None:
    """Once, so that the command that happens to be the first does not wait for a cold disk in the others' place."""
    for package in ("torch", "triton", "nvidia"):
        for place in importlib.util.find_spec(package).submodule_search_locations or ():  # type: ignore[union-attr]
            for path in Path(place).rglob("*"):
                if path.is_file() and path.stat().st_size > 1 << 20:
                    read_whole(path)


def read_whole(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def make_rows(path: Path, count: int) -> None:
    rows = MadeUpRows("dialog", count=count, vocabulary_size=WORDS, longest=ROW_TOKENS, seed=0)
    with path.open("w") as file:
        for index in range(len(rows)):
            row = rows[index]
            words = [f"w{max(4, token)}" for token in row.tokens.tolist()]
            first = int(row.learned.argmax())
            file.write(json.dumps({"prompt": " ".join(words[:first]), "completion": " ".join(words[first:-1])}) + "\n")


def train_with_trl(model: Path, rows: Path, into: Path) -> None:
    """What a user's script does: packing, Liger's layers, no checkpointing; runs in a process of its own."""
    put_flash_attn_stand_in(into / "stand-in")
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    is_gpu = torch.cuda.is_available()
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16 if is_gpu else torch.float32, device_map="cuda" if is_gpu else "cpu",
        attn_implementation="flash_attention_2" if is_gpu else "sdpa",
    )  # fmt: skip
    trainer = SFTTrainer(
        model=loaded, processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=load_dataset("json", data_files=str(rows), split="train"),
        peft_config=LoraConfig(
            r=32, lora_alpha=16, lora_dropout=0.05, target_modules=list(TARGETS), task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=str(into / "out"), num_train_epochs=1, packing=is_gpu, max_length=ROW_TOKENS,
            per_device_train_batch_size=1, gradient_accumulation_steps=STEP_TOKENS // ROW_TOKENS,
            learning_rate=LEARNING_RATE, bf16=is_gpu, gradient_checkpointing=False, save_strategy="no",
            report_to="none", use_liger_kernel=is_gpu, optim="adamw_torch_fused", disable_tqdm=True, logging_steps=1,
        ),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(into / "adapter"))


def train_with_tunesmith(model: Path, rows: Path, home: Path, log: Any) -> dict[str, Any]:
    """The command, and when its phases began, in seconds from it."""
    command = [
        sys.executable, "-m", "tunesmith", "finetune", str(model), str(rows), "--epochs", "1", "--render", "plain",
        "--sequence-length", str(ROW_TOKENS), "--learning-rate", str(LEARNING_RATE), "--json",
    ]  # fmt: skip
    started = time.time()
    environment = {**os.environ, "TUNESMITH_HOME": str(home)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    seconds = time.time() - started
    result = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    if done.returncode not in (0, 5):  # 5: learned nothing from words without meaning
        raise SystemExit(f"tunesmith ended with {done.returncode}: {done.stdout[-600:]}")
    return {"seconds": seconds, "tokens_per_second": result.get("tokens_per_second"), "events": timeline(home, started)}


def timeline(home: Path, started: float) -> dict[str, float]:
    from datetime import datetime

    found: dict[str, float] = {}
    newest = max(home.rglob("events.jsonl"), key=lambda path: path.stat().st_mtime)
    for line in newest.read_text().splitlines():
        event = json.loads(line)
        moment = datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp() - started
        name = event["kind"]
        if name == "phase":
            name = event["phase"]
        elif name == "step":
            name = "first step done" if event["step"] == 1 else "last step done"
        elif name == "epoch":
            name = f"epoch {event['epoch']} evaluated"
        if name not in found or name == "last step done":
            found[name] = round(moment, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="1b,8b")
    parser.add_argument("--rows", default="500")
    parser.add_argument("--runs", default="tunesmith,trl")
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--output", type=Path, help="A folder in place of benchmarks/results.")
    parser.add_argument("--trl", nargs=3, type=Path, metavar=("MODEL", "ROWS", "INTO"), help="The peer's own process.")
    arguments = parser.parse_args()
    if arguments.trl is not None:
        train_with_trl(*arguments.trl)
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        read_libraries()
    results: list[dict[str, Any]] = []
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(prefix="tunesmith-result-") as temporary:
        folder = Path(temporary)
        log = (folder / "log").open("w+")
        for model in arguments.models.split(","):
            started = time.time()
            make_model(model, folder / model, device=device)
            print(
                f"{model}: {SHAPES[MODELS[model]].num_layers} layers written in {time.time() - started:.0f} s",
                flush=True,
            )
            for count in map(int, arguments.rows.split(",")):
                rows = folder / f"rows-{count}.jsonl"
                make_rows(rows, count)
                for run in arguments.runs.split(","):
                    for number in range(arguments.times):
                        row: dict[str, Any] = {"model": model, "rows": count, "run": run, "number": number + 1}
                        if run == "tunesmith":
                            row |= train_with_tunesmith(folder / model, rows, folder / "home", log)
                        else:
                            into = folder / "trl"
                            into.mkdir()
                            started = time.time()
                            done = subprocess.run(
                                [sys.executable, "-m", "benchmarks.bench_time_to_result", "--trl",
                                 str(folder / model), str(rows), str(into)],
                                stdout=log, stderr=log, check=False,
                            )  # fmt: skip
                            row |= {"seconds": time.time() - started, "code": done.returncode}
                            shutil.rmtree(into)
                        print("RESULT " + json.dumps(row), flush=True)
                        results.append(row)
                        if arguments.output is not None:  # kept at once: the call may be cut off
                            write_json(arguments.output / "time-to-result.json", {"device": name, "rows": results})
            shutil.rmtree(folder / model)
        log.seek(0)
        text = log.read()
    if arguments.output is not None:
        (arguments.output / "time-to-result.log").write_text(text[-200_000:])
    else:
        save("time-to-result", {"device": name, "rows": results}, libraries=("torch", "transformers"))


if __name__ == "__main__":
    main()
