"""Kernels of the fast path, and of a module of the generic one, at a model's real sizes: microseconds a call, beside
what moving its bytes would take.

    python -m benchmarks.bench_kernels [--models 8b,1b] [--only NAME,..] [--sweep] [--plain] [--output FOLDER]

`--sweep` tries other tiles for each kernel and shows the best ones: the `Launch` constants in `kernels/` come from it.
`--plain` adds the time of the plain reference. Dialogue rows of 8,192 tokens, rank 32, dropout 0.05, bf16, one GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import save
from tunesmith.files import write_json
from tunesmith.kernels import lora, rms_norm, rope, swiglu, varlen_attention
from tunesmith.kernels.backend import Launch, compile_foreseen, forced, foreseeing
from tunesmith.kernels.cross_entropy import cross_entropy
from tunesmith.kernels.dropout import site_key, step_key, step_places
from tunesmith.spec.bench import SHAPES

MODELS = {"8b": "llama-3.1-8b", "1b": "llama-3.2-1b"}
TOKENS, RANK = 8192, 32
ROUNDS, CALLS = 7, 5
FLUSHED_BYTES = 256 << 20  # more than any level-2 cache holds
SLEEP_CYCLES = 1_000_000  # half a millisecond and more


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size. moved: bytes to read and write at least. run: with a Launch, or the kernel's own."""

    name: str
    moved: int
    run: Callable[[Launch | None], Any]
    launches: list[Launch] = field(default_factory=list[Launch])


def values(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*sizes, device="cuda", dtype=torch.float32).mul_(0.1).to(dtype)


def projection(features: int, count: int, number: int) -> lora.Projection:
    return lora.Projection(
        a_IK=values(count * RANK, features), count=count, rank=RANK,
        places_T=step_places(torch.arange(TOKENS, device="cuda", dtype=torch.int32), step_key(seed=0, step=1)),
        site=site_key(number), probability=0.05,
    )  # fmt: skip


def gradients(features: int, count: int) -> list[lora.Gradient | None]:
    return [lora.Gradient(into_rK=torch.zeros(RANK, features, device="cuda")) for _ in range(count)]


def tiles(
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    warps: tuple[int, ...],
    stages: tuple[int, ...],
    registers: tuple[int | None, ...] = (None,),
) -> list[Launch]:
    return [Launch(*each) for each in itertools.product(rows, columns, warps, stages, registers)]


def with_launch(run: Callable[..., Any], launch: Launch | None) -> Any:
    return run() if launch is None else run(launch=launch)


def cases(model: str) -> Iterator[Case]:
    shape = SHAPES[MODELS[model]]
    D, F, H, G, E = (
        shape.hidden_size, shape.intermediate_size, shape.num_attention_heads, shape.num_key_value_heads,
        shape.head_dim // 2,
    )  # fmt: skip
    Q = H * 2 * E
    forward = tiles((16, 32, 64), (64, 128, 256), (4, 8), (2, 3, 4))
    backward = tiles((16, 32, 64, 128), (32, 64, 128), (2, 4, 8), (3, 4), (None, 168, 128))
    one = 2 * TOKENS  # bytes of a feature of all tokens
    h, delta, weight = values(TOKENS, D), values(TOKENS, D), values(D)
    for name, count in (("qkv", 3), ("gate_up", 2)):
        site = projection(D, count, 1)
        width = D + 128 if count == 3 else D + 64

        def normed(site: lora.Projection = site, width: int = width, **more: Any) -> Any:
            return rms_norm.rms_norm_project(h, delta, weight, site, eps=1e-5, width=width, **more)

        yield Case(f"norm+{name}", one * 4 * D, lambda launch, run=normed: with_launch(run, launch), forward)
        dx, into = values(TOKENS, width), gradients(D, count)
        rstd = torch.rand(TOKENS, device="cuda") + 0.5

        def back(
            site: lora.Projection = site, dx: Tensor = dx, into: Any = into, rstd: Tensor = rstd, **more: Any
        ) -> Any:
            return lora.project_backward(dx[:, :D], dx[:, D:], h, site, into, rstd_T=rstd, weight_K=weight, **more)

        yield Case(f"{name} backward", one * 3 * D, lambda launch, run=back: with_launch(run, launch), backward)
    out_site, out, dx = projection(Q, 1, 2), values(TOKENS, Q), values(TOKENS, Q + 64)

    def projected(**more: Any) -> Any:
        return lora.project(out, out_site, width=Q + 64, **more)

    yield Case("out", one * 2 * Q, lambda launch: with_launch(projected, launch), forward)
    out_into = gradients(Q, 1)

    def out_back(**more: Any) -> Any:
        return lora.project_backward(dx[:, :Q], dx[:, Q:], out, out_site, out_into, **more)

    yield Case("out backward", one * 3 * Q, lambda launch: with_launch(out_back, launch), backward)
    # one module of the generic path
    yield Case(
        "module", one * Q, lambda launch: with_launch(partial(lora.project_alone, out, out_site), launch), forward
    )
    own_dx, du = values(TOKENS, Q), values(TOKENS, RANK)

    def module_back(**more: Any) -> Any:
        return lora.project_backward(own_dx, du, out, out_site, out_into, is_own=True, **more)

    yield Case("module backward", one * 3 * Q, lambda launch: with_launch(module_back, launch), backward)
    rstd = torch.rand(TOKENS, device="cuda") + 0.5
    yield Case(
        "norm backward", one * 4 * D, lambda launch: rms_norm.rms_norm_backward(delta, h, weight, rstd, delta), []
    )
    gate_up, down, inner = values(TOKENS, 2 * F), projection(F, 1, 3), values(TOKENS, 2 * RANK)

    def activated(**more: Any) -> Any:
        return swiglu.swiglu_project(gate_up, down, width=F + 64, **more)

    yield Case("swiglu", one * 3 * F, lambda launch: with_launch(activated, launch), forward)
    dx_F, mlp_into = values(TOKENS, F + 64), gradients(F, 3)

    def mlp_back(**more: Any) -> Any:
        return swiglu.swiglu_backward(dx_F[:, :F], dx_F[:, F:], gate_up, inner, down, mlp_into, **more)

    yield Case("swiglu backward", one * 5 * F, lambda launch: with_launch(mlp_back, launch), backward)
    angles = torch.rand(2, TOKENS, E, device="cuda")
    q = values(TOKENS, Q)
    yield Case("rotate q", one * 2 * Q, lambda launch: rope.rotate(q, q, angles[0], angles[1], heads=H), [])
    boundaries = np.append(np.arange(0, TOKENS, 178), TOKENS)
    blocks = [
        torch.from_numpy(table.astype(np.int32)).cuda() for table in varlen_attention.tables(boundaries, boundaries)
    ]
    documents = varlen_attention.Documents(boundaries, boundaries, *blocks)
    heads, kv = q.view(TOKENS, H, 2 * E), values(TOKENS, 2 * G * 2 * E)
    k, v = kv[:, : G * 2 * E].view(TOKENS, G, 2 * E), kv[:, G * 2 * E :].view(TOKENS, G, 2 * E)
    scale = (2 * E) ** -0.5
    attended, lse = varlen_attention.attend(heads, k, v, documents, scale=scale, window=None)
    yield Case(
        "attention", one * (2 * Q + 4 * G * E),
        lambda launch: varlen_attention.attend(heads, k, v, documents, scale=scale, window=None),
    )  # fmt: skip
    d_q, d_kv = torch.empty_like(q), torch.empty_like(kv)
    yield Case(
        "attention backward", one * (4 * Q + 8 * G * E),
        lambda launch: varlen_attention.attend_backward(
            heads, heads, k, v, attended, lse, documents, scale=scale, window=None, d_q=d_q, d_kv=d_kv,
            query_angles=(angles[0], angles[1]), key_angles=(angles[0], angles[1]),
        ),
    )  # fmt: skip
    logits = values(1024, shape.vocabulary_size)
    labels = torch.randint(0, shape.vocabulary_size, (1024,), device="cuda")
    factor = torch.full((), 1e-3, device="cuda")
    yield Case("cross-entropy", 4 * logits.numel(), lambda launch: cross_entropy(logits, labels, factor=factor))


def microseconds(run: Callable[[], Any]) -> float:
    """The median over rounds of calls, each on a cache that holds other things.

    The device sleeps first: what is timed is its work, not how long the host takes to ask for it.
    """
    other = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    run()
    times: list[float] = []
    for _ in range(ROUNDS):
        for _ in range(CALLS):
            other.zero_()
            torch.cuda._sleep(SLEEP_CYCLES)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1000)
    return median(times)


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    into = torch.empty_like(source)
    return 2 * source.numel() / (microseconds(lambda: into.copy_(source)) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="8b,1b")
    parser.add_argument("--only", default="")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--output", type=Path, help="A folder in place of benchmarks/results.")
    arguments = parser.parse_args()
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copies at {rate / 1e12:.2f} TB/s", flush=True)
    rows: list[dict[str, Any]] = []
    for model in arguments.models.split(","):
        for case in cases(model):
            if arguments.only and case.name not in arguments.only.split(","):
                continue
            bound = case.moved / rate * 1e6
            found = microseconds(lambda case=case: case.run(None))
            row: dict[str, Any] = {"model": model, "kernel": case.name, "microseconds": found, "bound": bound}
            if arguments.plain:
                with forced("reference"):
                    row["plain"] = microseconds(lambda case=case: case.run(None))
            plain = f", plain {row['plain']:8.1f}" if "plain" in row else ""
            print(f"{model} {case.name:20}{found:9.1f} us, bound {bound:7.1f} ({bound / found:.2f}){plain}", flush=True)
            if arguments.sweep:
                row["sweep"] = sweep(case)
                for time, launch in row["sweep"][:6]:
                    print(f"    {time:9.1f} us  {launch}", flush=True)
            rows.append(row)
    document = {"device": torch.cuda.get_device_name(), "copy_bytes_per_second": rate, "rows": rows}
    if arguments.output is not None:
        write_json(arguments.output / "bench-kernels.json", document)
    else:
        save("kernels", document, libraries=("torch", "triton"))


def sweep(case: Case) -> list[tuple[float, str]]:
    """The launches that run, fastest first."""
    with foreseeing() as foreseen:
        for launch in case.launches:
            with suppress(ValueError):  # columns that fit no tile: told below
                case.run(launch)
    compile_foreseen(foreseen, device=torch.device("cuda"), threads=os.cpu_count() or 1)
    found: list[tuple[float, str]] = []
    for launch in case.launches:
        try:
            found.append((microseconds(lambda launch=launch: case.run(launch)), str(launch)))
        except Exception as error:  # too much shared memory, too many registers: told and passed by
            print(f"    {launch}: {type(error).__name__}", flush=True)
    return sorted(found)


if __name__ == "__main__":
    main()
