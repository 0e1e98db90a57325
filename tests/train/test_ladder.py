"""Memory that runs out: the rungs, and a run that loses memory once and ends as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import MakeJob
from tests.train.test_loop import adapter_hash, epochs, events, losses, of_kind, run, start, wait_for_step
from tunesmith.errors import TunesmithError
from tunesmith.models import layers
from tunesmith.train import evaluation, loop
from tunesmith.train.faults import classify, is_gpu_fault, is_out_of_memory
from tunesmith.train.ladder import next_rung

GONE = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")


def test_rows_are_halved_first_then_layers_are_computed_twice_then_it_is_over() -> None:
    rows, twice = 8, 0
    taken: list[tuple[int, int]] = []
    while rung := next_rung(micro_batch_size=rows, checkpointed_layers=twice, rows_in_forward=6, num_layers=5):
        assert "longer" in rung.told
        rows, twice = rung.micro_batch_size, rung.checkpointed_layers
        taken.append((rows, twice))
    assert taken == [(3, 0), (1, 0), (1, 3), (1, 5)]


def fail_at(monkeypatch: pytest.MonkeyPatch, times: dict[int, int], *, error: Exception = GONE) -> list[int]:
    """Let step n fail as often as `times` says, in the middle: after the gradients of its first micro-batch."""
    left = dict(times)
    seen: list[int] = []
    whole = loop.train_step

    def broken(model: Any, optimizer: Any, batches: Any, **options: Any) -> Any:
        step = options["step"]
        seen.append(step)
        if left.get(step, 0):
            left[step] -= 1
            update = optimizer.update
            optimizer.update = lambda **_: (_ for _ in ()).throw(error)
            try:
                return whole(model, optimizer, batches, **options)
            finally:
                optimizer.update = update
        return whole(model, optimizer, batches, **options)

    monkeypatch.setattr(loop, "train_step", broken)
    return seen


@pytest.mark.slow
def test_a_step_without_memory_is_repeated_with_half_the_rows_and_ends_the_same(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_job("plain", sequence_length=32, lora_dropout=0.2)
    expected = run(plain)
    job = make_job("disturbed", sequence_length=32, lora_dropout=0.2)
    seen = fail_at(monkeypatch, {2: 1, 4: 1})
    found = run(job)
    assert seen.count(2) == seen.count(4) == 2
    # the same rows in other forward passes: sums in another order, nothing else
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    assert epochs(found)[2][1] == pytest.approx(epochs(expected)[2][1], rel=1e-4)
    notices = [event for event in of_kind(found, "notice") if event["code"] == "MEMORY_RAN_OUT"]
    assert len(notices) == 2 and "step 2" in notices[0]["message"] and "longer" in notices[0]["message"]
    assert [event["micro_batch_size"] for event in of_kind(found, "path")] == [4, 2, 1]
    card = (job.parent / "artifact" / "README.md").read_text()
    assert "Memory ran out in step 2" in card and "generic path" in card


@pytest.mark.slow
def test_layers_computed_twice_give_the_same_bytes_and_the_rung_survives_a_kill(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_job("plain", micro_batch_size=1, lora_dropout=0.2, epochs=3)
    expected = run(plain)
    asked = make_job("asked", micro_batch_size=1, lora_dropout=0.2, epochs=3, checkpointed_layers=1)
    run(asked)
    assert adapter_hash(asked) == adapter_hash(plain), "asked for from the start"
    job = make_job("disturbed", micro_batch_size=1, lora_dropout=0.2, epochs=3)
    fail_at(monkeypatch, {1: 1})
    found = run(job)
    assert [event["checkpointed_layers"] for event in of_kind(found, "path")] == [0, 1]
    assert losses(found) == losses(expected) and adapter_hash(job) == adapter_hash(plain)


@pytest.mark.slow
def test_a_rung_is_kept_across_a_resume(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(micro_batch_size=1, epochs=40)
    steps = fail_at(monkeypatch, {1: 1})

    def stop(self: Any) -> None:
        if len(steps) > 4:
            raise loop.Stopped(15)

    monkeypatch.setattr(loop.Run, "check_stop", stop)
    run(job, expect=128 + 15)
    monkeypatch.undo()
    process = start(job)
    wait_for_step(job, process, max(losses(events(job))) + 1)
    process.kill()
    process.communicate()
    assert [event["checkpointed_layers"] for event in of_kind(events(job), "path")] == [0, 1, 1]


@pytest.mark.slow
def test_no_rung_left_fails_with_clear_words_and_a_checkpoint(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(micro_batch_size=2)
    fail_at(monkeypatch, {3: 1000})
    found = run(job, expect=4)
    failure = of_kind(found, "failure")[0]
    assert failure["error"]["code"] == "OUT_OF_MEMORY" and "step 3" in failure["error"]["message"]
    assert "every layer computed twice" in failure["error"]["message"] and failure["error"]["hint"]
    assert "Traceback" not in failure["error"]["message"] and not failure["retry"]
    assert list((job.parent / "checkpoints").glob("step-*")), "what was there before is kept"


@pytest.mark.slow
def test_an_evaluation_without_memory_is_repeated_in_smaller_passes(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_job("plain")
    expected = run(plain)
    job = make_job("disturbed")
    whole = evaluation.forward_scores

    def greedy_for_memory(model: Any, batch: Any, **options: Any) -> Any:
        if len(batch.tokens_T) > 100:
            raise GONE
        return whole(model, batch, **options)

    monkeypatch.setattr(evaluation, "forward_scores", greedy_for_memory)
    found = run(job)
    told = [event["message"] for event in of_kind(found, "notice") if event["code"] == "MEMORY_RAN_OUT"]
    assert told and "evaluation" in told[0]
    assert epochs(found)[2][0] == pytest.approx(epochs(expected)[2][0], rel=1e-4)
    monkeypatch.setattr(evaluation, "forward_scores", lambda *_, **__: (_ for _ in ()).throw(GONE))
    failure = of_kind(run(make_job("hopeless"), expect=4), "failure")[0]
    assert failure["error"]["code"] == "OUT_OF_MEMORY" and "one row" in failure["error"]["message"]


@pytest.mark.slow
def test_no_memory_at_load_names_the_model(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise GONE

    monkeypatch.setattr(loop, "load_base", load)
    failure = of_kind(run(make_job(), expect=4), "failure")[0]
    assert failure["error"]["code"] == "OUT_OF_MEMORY" and "tests/tiny" in failure["error"]["message"]


@pytest.mark.slow
def test_a_compiler_that_fails_is_told_and_the_run_goes_on(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(make_job("plain"))
    failure = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})("no ptxas")
    assert layers.is_compile_failure(failure)
    monkeypatch.setattr(loop, "set_up_path", compiling(loop.set_up_path))
    fail_at(monkeypatch, {2: 1}, error=failure)
    found = run(make_job("failing"))
    notice = next(event for event in of_kind(found, "notice") if event["code"] == "COMPILE_FAILED")
    assert "no ptxas" in notice["message"]
    assert [event["is_compiled"] for event in of_kind(found, "path")] == [True, False]
    assert losses(found) == losses(expected)


def compiling(set_up: Any) -> Any:
    """A path that says it is compiled; what compiling does is tested in `tests/models/test_layers.py`."""

    def made(*arguments: Any, **options: Any) -> Any:
        path = set_up(*arguments, **options)
        path.is_compiled = True
        return path

    return made


@pytest.mark.slow
def test_a_triton_that_fails_is_told_with_the_way_out(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up = loop.set_up_path

    def without_triton(*arguments: Any, **options: Any) -> Any:
        path = set_up(*arguments, **options)
        path.triton_fault = "RuntimeError: Failed to find C compiler."
        return path

    monkeypatch.setattr(loop, "set_up_path", without_triton)
    notice = next(event for event in of_kind(run(make_job()), "notice") if event["code"] == "TRITON_BROKEN")
    assert "C compiler" in notice["message"] and "gcc" in notice["hint"]


@pytest.mark.slow
def test_replaying_is_told_and_so_is_its_end(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is switched on where it pays, `tests/train/test_path.py` shows; what it computes, `tests/models`."""
    observed: list[int] = []

    def observe(path: Any, outcome: Any, *, steps_left: int) -> bool:
        observed.append(steps_left)
        return len(observed) == 2

    monkeypatch.setattr(loop.ComputePath, "observe", observe)
    monkeypatch.setattr(loop.ComputePath, "is_replayed", property(lambda _: len(observed) == 2))
    monkeypatch.setattr(
        loop.ComputePath, "replay_fault", property(lambda _: "no memory" if len(observed) > 2 else None)
    )
    found = run(make_job())
    assert observed == list(range(len(observed) - 1, -1, -1))
    assert [event["is_replayed"] for event in of_kind(found, "path")] == [False, True, False]
    notices = [event for event in of_kind(found, "notice") if event["code"] == "NOT_REPLAYED"]
    assert len(notices) == 1 and "no memory" in notices[0]["message"]
    monkeypatch.setattr(loop.ComputePath, "replay_fault", None)
    monkeypatch.setattr(loop.ComputePath, "is_replayed", True)
    kept = make_job("kept")
    run(kept)
    assert "passes replayed as CUDA graphs" in (kept.parent / "artifact" / "README.md").read_text()


def test_faults_are_told_apart() -> None:
    assert is_out_of_memory(GONE) and is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    for words in (
        "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later",
        "CUDA error: uncorrectable ECC error encountered",
        "Found no NVIDIA driver on your system.",
        "No CUDA GPUs are available",
    ):
        error, may_retry = classify(RuntimeError(words))
        assert (error.code, may_retry) == ("GPU_FAULT", True), words
        assert words.partition("\n")[0] in error.message and "checkpoint" in error.message and error.hint
        assert "might be reported later" not in error.message
    assert not is_gpu_fault(RuntimeError("shapes do not match"))
    ours, may_retry = classify(ValueError("x"))
    assert (ours.code, may_retry) == ("INTERNAL", True)
    refused = TunesmithError("X", "y")
    assert classify(refused) == (refused, False)


def test_who_holds_the_memory_is_named_and_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\ncase \"$*\" in *compute-apps*) echo '4711, /usr/bin/python3, 70000';; "
        "*) echo '0, NVIDIA H100, 81559, 9000, 580.1, 9.0';; esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    error, may_retry = classify(GONE)
    assert (error.code, may_retry) == ("DOES_NOT_FIT_NOW", False)
    assert "python3, pid 4711: 73.4 GB" in error.message and error.hint
    smi.write_text("#!/bin/sh\ncase \"$*\" in *compute-apps*) ;; *) echo '0, NVIDIA H100, 81559, 9000, 580.1';; esac\n")
    assert classify(GONE)[0].code == "OUT_OF_MEMORY"


def test_an_update_without_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.train.optimizer import FlatAdamW

    optimizer = FlatAdamW({"a": torch.nn.Parameter(torch.ones(3))}, weight_decay=0.1)
    optimizer.gradient_P.fill_(5.0)
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}

    def no_memory(*_: Any, **__: Any) -> Any:
        raise GONE

    monkeypatch.setattr(torch, "empty_like", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.update(learning_rate=0.1, norm=10.0, max_norm=1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state().items())
    assert optimizer.updates == 0 and optimizer.gradient_P.eq(5.0).all()
