"""Passes that are replayed: what was recorded for one batch computes others of its form, whatever step they are of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_decoder import CASES, batch, trained
from tunesmith.kernels.backend import HAS_TRITON, forced
from tunesmith.models import replay
from tunesmith.models.decoder import Decoder
from tunesmith.models.decoder_inputs import Form, lay, rounded
from tunesmith.models.lora import adapter_parameters, inject
from tunesmith.spec.training import TrainingSettings
from tunesmith.train.optimizer import FlatAdamW

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(lora_rank=4, lora_dropout=0.2)


class Line:
    """Stands in for a stream."""

    def __init__(self, _: Any) -> None:
        pass


class Again:
    """Stands in for a recording where there is no GPU: a replay calls the pass, which reads what is in its tensors."""

    made = 0
    last_stream: Any = None
    pools: list[Any] = []  # noqa: RUF012  # emptied by the fixture

    def __init__(self, work: Callable[[], Tensor], *, stream: Any, pool: Any) -> None:
        Again.pools.append(pool)
        assert Again.last_stream in (None, stream), "the same each time: else no memory is used twice"
        Again.last_stream = stream
        Again.made += 1
        self._work = work

    def replay(self) -> Tensor:
        return self._work()


def decoder_on(load: Callable[..., Any], case: str, *, is_on: bool) -> tuple[Decoder, FlatAdamW]:
    name, changes = CASES[case]
    model, _ = load(name, **changes)
    inject(model, settings=SETTINGS)
    trained(model)
    optimizer = FlatAdamW(adapter_parameters(model), weight_decay=0.0)
    decoder = Decoder(model, settings=SETTINGS)
    decoder.replays.is_on = is_on
    return decoder, optimizer


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "Recording", Again)
    handles = count(1)
    monkeypatch.setattr(replay.torch.cuda, "graph_pool_handle", lambda: (0, next(handles)))
    monkeypatch.setattr(replay.torch.cuda, "Stream", Line)
    monkeypatch.setattr(replay.torch.cuda, "max_memory_allocated", lambda _: 5 << 30)
    monkeypatch.setattr(replay.torch.cuda, "memory_allocated", lambda _: 3 << 30)
    monkeypatch.setattr(replay.torch.cuda, "mem_get_info", lambda _: (4 << 30, 80 << 30))
    Again.made, Again.last_stream, Again.pools = 0, None, []


@pytest.mark.slow  # in Triton's interpreter
@pytest.mark.usefixtures("stand_in")
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_replays_give_what_launches_give(load: Callable[..., Any]) -> None:
    """Three batches of one form, in steps of unlike keys and divisors; documents beyond a window and not."""
    given = [[37, 20, 11, 30], [30, 25, 13, 30], [60, 20, 9]]
    found: list[list[Tensor]] = []
    with forced("kernels"):
        for is_on in (False, True):
            decoder, optimizer = decoder_on(load, "qwen2, biases, a window in some layers", is_on=is_on)
            found.append([])
            for step, lengths in enumerate(given):
                optimizer.zero_gradient()
                made = batch(lengths, seed=step)
                if step == 1:
                    decoder.prepare(made)
                loss = decoder.train(made, seed=7, step=step, divisor=10 + step)
                found[-1] += [loss.clone(), optimizer.gradient_P.clone()]
            assert Again.made == int(is_on)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.usefixtures("stand_in")
def test_layers_that_are_computed_twice_are_recorded_anew(load: Callable[..., Any]) -> None:
    decoder, _ = decoder_on(load, "llama, tied", is_on=True)
    for recomputed, made in ((0, 0), (0, 1), (0, 1), (1, 1), (1, 2), (0, 2)):
        decoder.recomputed = recomputed
        decoder.train(batch([37, 20, 11, 30]), seed=7, step=9, divisor=10)
        assert Again.made == made


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_recorded_is_launched(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    monkeypatch.setattr(replay, "Recording", refuse)
    decoder, optimizer = decoder_on(load, "llama, tied", is_on=True)
    found = []
    for _ in range(2):
        optimizer.zero_gradient()
        decoder.train(batch([37, 20, 11, 30]), seed=7, step=1, divisor=10)
        found.append(optimizer.gradient_P.clone())
    assert decoder.replays.fault == "CUDA out of memory. Tried to allocate 2.00 GiB." and not decoder.replays.is_on
    assert torch.equal(*found)


@pytest.mark.usefixtures("stand_in")
def test_memory_that_other_passes_need_is_left_to_them(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(replay.torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(replay.torch.cuda, "mem_get_info", lambda _: (3 << 30, 80 << 30))
    decoder, _ = decoder_on(load, "llama, tied", is_on=True)
    for _ in range(3):
        decoder.train(batch([37, 20, 11, 30]), seed=7, step=1, divisor=10)
    assert Again.made == 0 and not decoder.replays.is_on
    assert emptied == [True], "what is cached is tried first"
    assert "2.0 GiB, and 3.0 GiB are free" in str(decoder.replays.fault)


@pytest.mark.usefixtures("stand_in")
def test_recordings_are_few_and_can_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_RECORDINGS", 2)
    runs = replay.Replays(lambda laid, step, factor: factor + laid.form.tokens, device=CPU)
    runs.is_on = True
    key, factor = torch.tensor(1), torch.tensor(0.5)
    forms = [lay(batch([length]), device=CPU, window=None) for length in (100, 300, 600)]
    assert len({laid.form for laid in forms}) == 3

    def run(number: int) -> None:
        assert float(runs.run(forms[number], key, factor, state=0)) == forms[number].form.tokens + 0.5

    for number in (0, 0, 1, 1, 0, 1):
        run(number)
    assert Again.made == 2
    for number in (2, 2, 2, 0):
        run(number)
    assert Again.made == 4, "the third form took the others' place"
    runs.forget()
    for _ in range(2):
        run(0)
    assert Again.made == 5, "after its first run anew"
    numbers = [pool[1] for pool in Again.pools]
    assert numbers == [1, 1, 2, 2, 3], "shared, and none taken again once its recordings are gone"


def test_sizes_come_back() -> None:
    for multiple, steps in ((128, 16), (512, 4), (64, 4)):
        sizes = [rounded(size, multiple=multiple, steps=steps) for size in range(1, 40_000)]
        assert all(size <= found and found % multiple == 0 for size, found in enumerate(sizes, 1))
        assert all(found - size < max(multiple, size / steps) for size, found in enumerate(sizes, 1))
        assert sizes == sorted(sizes)
        for power in (4096, 8192, 16384):
            assert len({found for found in sizes if power < found <= 2 * power}) <= steps
    assert rounded(8192, multiple=128, steps=16) == 8192 and rounded(16_280, multiple=128, steps=16) == 16_384


def test_a_form_is_all_that_launches_depend_on() -> None:
    """Lengths that differ by little are of one form; a document beyond the sliding window makes another."""
    one, other = (lay(batch(lengths), device=CPU, window=50) for lengths in ([37, 20, 11, 30], [30, 25, 13, 30]))
    assert one.form == other.form
    assert one.form == Form(tokens=128, tail=128, labels=256, blocks=(64, 64, 64, 64), is_windowed=False)
    assert lay(batch([60, 20, 9, 9]), device=CPU, window=50).form == one.form._replace(is_windowed=True)
    assert not lay(batch([60, 20, 9, 9]), device=CPU, window=None).form.is_windowed
    assert one.num_labels != other.num_labels
    assert not torch.equal(one.wide, other.wide)
    one.copy_(other)
    assert torch.equal(one.wide, other.wide) and torch.equal(one.narrow, other.narrow)
