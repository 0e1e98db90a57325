"""What a device reaches with nothing else to do: a matrix product, a copy. The measure that a benchmark is judged by.

In: a device and a precision. Out: `Roofline`, measured here and now: a chip's clock follows its power and heat, so
figures of another day or another card say little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from tunesmith.spec.bench import Roofline
from tunesmith.spec.models import ModelFacts

PRODUCT_SIDE = {"cuda": 8192, "cpu": 1024}
COPY_BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}
SUSTAINED_SECONDS = {"cuda": 2.0, "cpu": 1.0}


def measure(device: torch.device, *, dtype: torch.dtype) -> Roofline:
    """About three seconds. Needs 2 to 4 GB on a GPU that are given back."""
    side = PRODUCT_SIDE[device.type]
    product = partial(
        torch.matmul,
        torch.randn(side, side, device=device, dtype=dtype),
        torch.randn(side, side, device=device, dtype=dtype),
    )
    operations = 2 * side**3
    first = operations / min(seconds_of(product, device=device, repeats=1) for _ in range(10))
    at_once = 20 if device.type == "cuda" else 1
    rounds, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SUSTAINED_SECONDS[device.type]:
        seconds_of(product, device=device, repeats=at_once)
        rounds += at_once
    del product
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    copying = partial(torch.empty_like(source).copy_, source)
    copy = min(seconds_of(copying, device=device, repeats=3) for _ in range(4)) / 3
    del source, copying
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Roofline(
        product_operations_per_second=operations * rounds / elapsed,
        product_operations_at_first=first,
        copy_bytes_per_second=2 * COPY_BYTES[device.type] / copy,
    )


def seconds_of(work: Callable[[], object], *, device: torch.device, repeats: int) -> float:
    """Wall time of `repeats` times `work`, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def operations_per_token(
    facts: ModelFacts, *, adapter_values: int, learned_share: float, mean_context: float, trains: bool
) -> float:
    """What must be computed for a token at least: no gradient of the frozen base, the head on learned tokens alone.

    Training: forward and input gradient of the frozen products (4 a weight), both and the weights' gradient of the
    adapter's (6), attention over half of the token's own row (7 a value: 2 products forward, 5 backward), the two
    products of the head. Forward alone: 2, 2, 2 and one.
    """
    frozen = sum(module.in_features * module.out_features for module in facts.linear_modules)
    width = facts.num_attention_heads * facts.head_dim
    context = facts.num_layers * width * mean_context
    head = facts.vocabulary_size * facts.hidden_size * learned_share
    if trains:
        return 4 * frozen + 6 * adapter_values + 7 * context + 4 * head
    return 2 * frozen + 2 * adapter_values + 2 * context + 2 * head
