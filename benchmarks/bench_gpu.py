"""One GPU, side by side: Tunesmith by both paths and the peers, each in its own process, in the same run.

    python -m benchmarks.bench_gpu [--models 8b,1b] [--workloads dialog,long] [--runs fast,generic,compiled,...]
                                   [--budget SECONDS] [--seconds SECONDS] [--output FOLDER]

First the roofline (a sustained bf16 product, a copy), then every run with a time limit; `RESULT ` and one JSON object a
line for each, with its share of the roofline and its ratio to the `compiled` baseline and to the best peer of this run.
What does not fit into the budget is skipped and said. Results are kept as data under `results/` (or in --output).

`generic-plain` is the generic path uncompiled, `fast-launched` the fast one without CUDA graphs: see RUNS.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.report import save
from tunesmith.spec.bench import ROW_TOKENS, SHAPES, BenchRequest

MODELS = {"8b": "llama-3.1-8b", "1b": "llama-3.2-1b", "135m": "smollm2-135m", "tiny": "tiny"}
# name -> what differs from the request; peers have none of their own
RUNS: dict[str, dict[str, Any]] = {
    "fast": {"path": "fast"},
    "fast-launched": {"path": "fast", "with_replay": False},
    "generic": {"path": "generic"},
    "generic-plain": {"path": "generic", "compile_layers": "off"},
}
PEERS = ("compiled", "trl", "axolotl", "unsloth")
STRONGEST = ("trl", "axolotl", "unsloth")  # other people's; `compiled` is our own baseline
LIMITS = {"8b": 150, "1b": 110, "135m": 60, "tiny": 60}
LIBRARIES = (
    "torch", "triton", "transformers", "peft", "numpy", "trl", "liger-kernel", "cut-cross-entropy", "axolotl",
    "unsloth", "tunesmith",
)  # fmt: skip


def request_for(model: str, workload: str, arguments: argparse.Namespace, **changes: Any) -> BenchRequest:
    shape = SHAPES[MODELS[model]]
    device = arguments.device
    return BenchRequest.model_validate(
        {
            "shape": MODELS[model], "workload": workload, "device": device,
            "precision": "bf16" if device == "cuda" else "float32", "threads": os.cpu_count() or 1,
            "row_tokens": 512 if model == "tiny" else ROW_TOKENS[device],
            "rows_per_forward": shape.rows_per_forward, "forwards_per_step": shape.forwards_per_step,
            "seconds": arguments.seconds, "maximum_steps": arguments.maximum_steps,
            "with_roofline": False, **changes,
        }
    )  # fmt: skip


def environment_of(run: str) -> dict[str, str]:
    sites = os.environ.get("PEERS_SITES")
    extra = [] if sites is None else [
        f"{sites}/site-{name}" for name in ("u", "x") if run == "unsloth" or (run == "axolotl" and name == "x")
    ]  # fmt: skip
    paths = [path for path in extra if os.path.isdir(path)] + [os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true", "UNSLOTH_DISABLE_STATISTICS": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }  # fmt: skip


def measured(command: list[str], *, run: str, limit: float, log: Any) -> dict[str, Any]:
    """The run's result, or what it ended with."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment_of(run),
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
        note = f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        note = f"stopped after {limit:.0f} s"
    log.write(f"\n===== {run}: {note}, {time.monotonic() - started:.0f} s\n{output[-60_000:]}\n")
    log.flush()
    for line in reversed(output.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "RESULT":
            return json.loads(rest)
        if word == "ERROR":
            found = json.loads(rest)
            return {"error": found.get("error", found)}
    return {"error": {"code": "NO_RESULT", "message": f"{note}: {output[-600:]}"}}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="1b,8b")
    parser.add_argument("--workloads", default="dialog,long")
    parser.add_argument("--runs", default="fast,generic,compiled,trl,axolotl,unsloth")
    parser.add_argument("--budget", type=float, default=520.0, help="Seconds for everything.")
    parser.add_argument("--seconds", type=float, default=6.0, help="Seconds of training that are measured.")
    parser.add_argument("--maximum-steps", type=int, default=60)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="A folder in place of benchmarks/results.")
    parser.add_argument("--no-roofline", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    folder = arguments.output or Path(__file__).parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    roofline: dict[str, Any] | None = None
    with (folder / "bench-gpu.log").open("w") as log:
        if not arguments.no_roofline:
            probe = request_for("tiny", "dialog", arguments, with_roofline=True, path="generic", compile_layers="off",
                                maximum_steps=6, seconds=0.1, with_evaluation=False)  # fmt: skip
            found = measured(_ours(probe), run="roofline", limit=60, log=log)
            roofline = found.get("roofline")
            print("RESULT " + json.dumps({"run": "roofline", **(roofline or found)}), flush=True)
        for model in arguments.models.split(","):
            for workload in arguments.workloads.split(","):
                for run in arguments.runs.split(","):
                    left = arguments.budget - (time.monotonic() - started)
                    if left < 25:
                        print(f"-- {model} {workload} {run}: skipped, {left:.0f} s left", flush=True)
                        continue
                    request = request_for(model, workload, arguments, **RUNS.get(run, {}))
                    command = _ours(request) if run in RUNS else _peer(run, request)
                    result = measured(command, run=run, limit=min(left, LIMITS[model]), log=log)
                    rows.append({**result, "run": run, "model": model, "workload": workload})
                    _judge(rows[-1], rows, roofline)
                    print("RESULT " + json.dumps(rows[-1]), flush=True)
    for row in rows:  # once more: the baseline may have run after it
        _judge(row, rows, roofline)
    _show(rows)
    document = {"roofline": roofline, "rows": rows, "device": _device_name(rows)}
    if arguments.output is not None:
        (folder / "bench-gpu.json").write_text(json.dumps(document | {"versions": _versions()}, indent=1) + "\n")
    else:
        save("gpu", document, libraries=tuple(_versions()))
    return 0


def _ours(request: BenchRequest) -> list[str]:
    return [sys.executable, "-m", "tunesmith.train.bench", request.model_dump_json()]


def _peer(name: str, request: BenchRequest) -> list[str]:
    if name not in PEERS:
        raise SystemExit(f"{name} is none of {', '.join((*RUNS, *PEERS))}")
    return [sys.executable, "-m", "benchmarks.peers_gpu", name, request.model_dump_json()]


def _judge(row: dict[str, Any], rows: list[dict[str, Any]], roofline: dict[str, Any] | None) -> None:
    """Add the ratios that can be told by now."""
    rate = row.get("tokens_per_second")
    if rate is None:
        return
    beside = {
        other["run"]: other for other in rows
        if (other["model"], other["workload"]) == (row["model"], row["workload"]) and "tokens_per_second" in other
    }  # fmt: skip
    if "compiled" in beside:
        row["ratio_to_compiled"] = round(rate / beside["compiled"]["tokens_per_second"], 3)
    peers = [beside[name]["tokens_per_second"] for name in STRONGEST if name in beside]
    if peers:
        row["ratio_to_best_peer"] = round(rate / max(peers), 3)
    needed = next((other["operations_per_token"] for other in beside.values() if "operations_per_token" in other), None)
    if roofline is not None and needed is not None:
        share = rate * needed / roofline["product_operations_per_second"]
        row["share_of_roofline"] = round(share, 3)
        if row.get("evaluation_tokens_per_second") is not None and row.get("evaluation_operations_per_token"):
            forward = row["evaluation_tokens_per_second"] * row["evaluation_operations_per_token"]
            row["evaluation_share"] = round(forward / roofline["product_operations_per_second"], 3)


def _show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'model':6}{'rows':8}{'run':15}{'tok/s':>9}{'roof':>7}{'/compiled':>11}{'/peer':>8}{'GiB':>7}{'first':>7}"
          f"{'eval':>10}{'roof':>7}  losses")  # fmt: skip
    for row in rows:
        head = f"{row['model']:6}{row['workload']:8}{row['run']:15}"
        if "error" in row:
            print(head + f"  {row['error']['code']}: {row['error']['message'][:160]!r}")
            continue

        def figure(name: str, form: str, row: dict[str, Any] = row) -> str:
            return form.format(row[name]) if row.get(name) is not None else "-"

        losses = " ".join(f"{value:.4f}" for value in row["losses"].values() if value is not None)
        print(head + f"{row['tokens_per_second']:9,.0f}{figure('share_of_roofline', '{:.3f}'):>7}"
              f"{figure('ratio_to_compiled', '{:.3f}'):>11}{figure('ratio_to_best_peer', '{:.3f}'):>8}"
              f"{row['peak_memory_bytes'] / 2**30:7.1f}{row['first_step_seconds']:7.1f}"
              f"{figure('evaluation_tokens_per_second', '{:,.0f}'):>10}{figure('evaluation_share', '{:.3f}'):>7}"
              f"  {losses}")  # fmt: skip


def _device_name(rows: list[dict[str, Any]]) -> str | None:
    return next((row["device_name"] for row in rows if "device_name" in row), None)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
