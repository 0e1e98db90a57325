"""Makes the bundled tiny base model (`tunesmith/demo`) and the bundled dataset, from a seed and nothing else.

    python scripts/make_demo_model.py            all of it (minutes on a GPU, about a day on a CPU)
    python scripts/make_demo_model.py --only data
    python scripts/make_demo_model.py --only check --learning-rates 2e-3 --seeds 0 1 2

Out: `data/train.jsonl`, `data/validation.jsonl` and `model/` under the folder named by `--out`. The data and the
tokenizer come out the same on every machine; the weights differ in their last digits from one GPU to another.
"""

import argparse
import json
import math
import time
from pathlib import Path

from demo_world.rows import Row, bundled_rows

BUNDLED = Path(__file__).resolve().parent.parent / "src" / "tunesmith" / "bundled"


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the bundled demo model and dataset.")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--only", choices=("data", "model", "check"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--tokens-per-step", type=int, default=32_768)
    parser.add_argument("--at-most-seconds", type=float, default=math.inf)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--pretraining-learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--mlp", type=int, default=640)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2e-3])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    training, validation = bundled_rows(arguments.seed)
    if arguments.only in (None, "data"):
        write_rows(arguments.out / "data" / "train.jsonl", training)
        write_rows(arguments.out / "data" / "validation.jsonl", validation)
    if arguments.only == "data":
        return

    # Only here: the data need no torch.
    import torch
    from demo_world.check import check
    from demo_world.corpus import corpus_tokens, train_tokenizer
    from demo_world.model import ModelSize, Pretraining, pretrain, save, with_chat_template

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = arguments.out / "model"
    if arguments.only in (None, "model"):
        tokenizer = train_tokenizer(seed=arguments.seed, vocab_size=arguments.vocab, num_documents=20_000)
        dialogues = {row["prompt"].split("\n", 1)[1].rsplit("\n---", 1)[0] for row in (*training, *validation)}
        started = time.monotonic()
        tokens, starts = corpus_tokens(
            tokenizer,
            seed=arguments.seed,
            num_documents=arguments.documents,
            forbidden=dialogues | {row["completion"] for row in (*training, *validation)},
        )
        seconds = time.monotonic() - started
        print(f"corpus: {len(starts):,} documents, {len(tokens):,} tokens, {seconds:.0f} s", flush=True)
        full_tokenizer = with_chat_template(tokenizer)
        model = pretrain(
            full_tokenizer,
            tokens,
            starts,
            size=ModelSize(
                hidden=arguments.hidden,
                layers=arguments.layers,
                heads=arguments.heads,
                kv_heads=arguments.kv_heads,
                mlp=arguments.mlp,
            ),
            plan=Pretraining(
                seed=arguments.seed,
                steps=arguments.steps,
                tokens_per_step=arguments.tokens_per_step,
                learning_rate=arguments.pretraining_learning_rate,
                at_most_seconds=arguments.at_most_seconds,
            ),
            device=device,
        )
        save(model, full_tokenizer, folder)
        write_facts(folder)
    check(
        folder,
        training,
        validation,
        device=device,
        seeds=arguments.seeds,
        learning_rates=arguments.learning_rates,
    )


def write_facts(folder: Path) -> None:
    """`bundled/model_facts.json`: what an inspection finds, so that a server's first page need not wait for one."""
    from tunesmith.bundled import MODEL_NAME
    from tunesmith.models.inspect import inspect_model

    facts = inspect_model(folder, MODEL_NAME).model_copy(update={"path": ""})
    (folder.parent / "model_facts.json").write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
