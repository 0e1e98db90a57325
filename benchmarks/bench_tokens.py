"""Reading, checking, tokenising and packing a JSONL, against `tokenizers.encode_batch` alone on the same text.

    python -m benchmarks.bench_tokens [--megabytes 100 | --gigabyte] [--model FOLDER] [--render chat|plain]

Both run in processes of their own, by turns, with the same threads. `encode_batch` gets its texts already read, and
only its calls are timed. Ours starts from the file and ends with every row of an epoch in a `Batch`. Memory is the peak
resident size of that process. Results: benchmarks/results/tokens-<model>-<size>-<day>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.report import save

BUNDLED = Path(__file__).parents[1] / "src" / "tunesmith" / "bundled" / "model"
BASELINE_ROWS = 1000  # a call; measured as good as any from 500 to 10,000
GLOBAL_BATCH_SIZE = 64
LIMIT_BYTES = 600_000_000
LIMIT_BYTES_PER_ROW = 40
WANTED_RATIO = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--gigabyte", action="store_true")
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--render", choices=("auto", "chat", "plain"), default="auto")
    parser.add_argument("--prompt-words", type=int, default=140, help="mean; a completion has a quarter of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run = _ours if options.part == "ours" else _baseline
        print(json.dumps(run(options.file, options.model, render=options.render)))
        return
    size = 1000 if options.gigabyte else options.megabytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = write_rows(path, model=options.model, size_bytes=size * 1_000_000, prompt_words=options.prompt_words)
        parts: dict[str, list[dict[str, Any]]] = {"baseline": [], "ours": []}
        for _ in range(options.rounds):
            for part, results in parts.items():
                results.append(_in_process(part, path, options))
    seconds = {part: statistics.median(result["seconds"] for result in results) for part, results in parts.items()}
    # where other work shares the machine, the time of the processors says more than the clock
    cpu_seconds = {part: min(result["cpu_seconds"] for result in results) for part, results in parts.items()}
    ratio = seconds["baseline"] / seconds["ours"]
    peak = max(result["peak_bytes"] for result in parts["ours"])
    limit = LIMIT_BYTES + LIMIT_BYTES_PER_ROW * rows
    print(f"{size} MB, {rows:,} rows, {parts['ours'][0]['tokens']:,} tokens, {os.cpu_count()} cores")
    print(f"encode_batch alone {seconds['baseline']:.1f} s, ours {seconds['ours']:.1f} s: ratio {ratio:.2f}")
    print(f"processor time: ratio {cpu_seconds['baseline'] / cpu_seconds['ours']:.2f}")
    print(f"peak memory {peak / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB")
    path = save(
        f"tokens-{options.model.name}-{size}mb",
        {
            "megabytes": size,
            "rows": rows,
            "model": options.model.name,
            "render": parts["ours"][0]["render"],
            "threads": os.environ.get("RAYON_NUM_THREADS", os.cpu_count()),
            "runs": parts,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "load": os.getloadavg(),
            "ratio": ratio,
            "wanted_ratio": WANTED_RATIO,
            "peak_memory_bytes": peak,
            "limit_memory_bytes": limit,
        },
        libraries=("tokenizers", "numpy", "orjson", "jinja2"),
    )
    print(f"kept in {path}")


def _in_process(part: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_tokens", "--part", part, "--file", str(path)]
    command += ["--model", str(options.model), "--render", options.render]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _baseline(path: Path, model: Path, *, render: str) -> dict[str, Any]:
    from tokenizers import Tokenizer

    del render  # the same texts either way
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    seconds = cpu_seconds = 0.0
    tokens = 0
    with path.open("rb") as file:
        while lines := list(islice(file, BASELINE_ROWS)):
            texts = [text for line in lines for text in json.loads(line).values()]
            started, cpu_started = time.perf_counter(), time.process_time()
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
            seconds += time.perf_counter() - started
            cpu_seconds += time.process_time() - cpu_started
            tokens += sum(len(encoding) for encoding in encodings)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens, "peak_bytes": _peak_bytes()}


def _ours(path: Path, model: Path, *, render: str) -> dict[str, Any]:
    from tests.data.families import dataset, facts_of
    from tunesmith.data.batch import num_steps, rows_of_step, step_batches
    from tunesmith.data.prepare import prepare
    from tunesmith.spec.training import TrainingSettings

    settings = TrainingSettings.model_validate({"render": render})
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        started, cpu_started = time.perf_counter(), time.process_time()
        prepared = prepare(
            [dataset(path)], settings=settings, base=facts_of(model, context_length=4096), cache_folder=Path(cache)
        )
        prepared_at = time.perf_counter()
        rows, tokens = len(prepared.training), 0
        for step in range(1, num_steps(rows, global_batch_size=GLOBAL_BATCH_SIZE, epochs=1) + 1):
            _, chosen = rows_of_step(rows, seed=0, step=step, global_batch_size=GLOBAL_BATCH_SIZE)
            batches = step_batches(
                prepared.training, chosen, sequence_length=prepared.summary.sequence_length, micro_batch_size=4
            )
            tokens += sum(len(batch.tokens_T) for batch in batches)
        ended, cpu_ended = time.perf_counter(), time.process_time()
        assert tokens == prepared.summary.training.total
    return {
        "seconds": ended - started,
        "cpu_seconds": cpu_ended - cpu_started,
        "preparing_seconds": prepared_at - started,
        "batching_seconds": ended - prepared_at,
        "tokens": tokens,
        "render": prepared.summary.render,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_rows(path: Path, *, model: Path, size_bytes: int, prompt_words: int) -> int:
    """Rows of made-up prose: words used as often as words are (Zipf), most of them tokens of the model, as in prose.

    Made-up words alone would take three tokens each and make the tokenizer's work look greater than it is.
    """
    words = _words(model)
    written = rows = 0
    with path.open("wb") as file:
        while written < size_bytes:
            row = {"prompt": next(words(prompt_words)), "completion": next(words(max(4, prompt_words // 4)))}
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            file.write(line)
            written += len(line)
            rows += 1
    return rows


def _words(model: Path) -> Any:
    generator = random.Random(11)
    known = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    vocabulary = sorted(match[1] for token in known if (match := re.fullmatch(r"[Ġ▁]([a-z]{2,})", token)))
    parts = (
        "ba be co da de di do e fa fi ga ge ha he i la le li lo ma me mi mo na ne ni no o pa re ri ro sa se si so ta "
    )
    parts += "te ti to u va ve vi wa we th st ing er ed ly tion an on en al is ar or"
    syllables = parts.split()
    rare = {"".join(generator.choices(syllables, k=generator.randint(2, 5))) for _ in range(20_000)}
    generator.shuffle(vocabulary)
    vocabulary += sorted(rare)
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    drawn = iter(())

    def words(mean: int) -> Iterator[str]:
        nonlocal drawn
        count = generator.randint(mean // 2, mean * 3 // 2)
        taken = list(islice(drawn, count))
        if len(taken) < count:
            drawn = iter(generator.choices(vocabulary, weights, k=2_000_000))
            taken += list(islice(drawn, count - len(taken)))
        for place in range(9, len(taken), 13):
            taken[place] += generator.choice((".", ",", ".\n", "?", ": 42", " — “é”"))
        yield " ".join(taken).capitalize()

    return words


if __name__ == "__main__":
    main()
