"""Whole runs of the worker on a two-layer model: events, metrics, resume, faults, artifact."""

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

from tests.train.conftest import MakeJob, some_rows
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.spec.training import SAMPLED_ROWS_WITHOUT_VALIDATION
from tunesmith.train.__main__ import main
from tunesmith.train.evaluation import training_sample

pytestmark = pytest.mark.slow


STRUCK = """
import os, runpy, sys
from tunesmith.train.events import EventLog

append, step, number = EventLog.append, int(sys.argv.pop()), int(sys.argv.pop())

def struck(log, event):
    append(log, event)
    if event.kind == "step" and event.step == step:
        os.kill(os.getpid(), number)

EventLog.append = struck
runpy.run_module("tunesmith.train", run_name="__main__", alter_sys=True)
"""


def struck(job: Path, number: signal.Signals, *, at_step: int) -> int:
    """The worker's exit code, after this signal came right after that step: sent from here it may come too late."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRUCK, str(job), str(int(number)), str(at_step)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    print(done.stdout.decode())
    return done.returncode


def start(job: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tunesmith.train", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def run(job: Path, *, expect: int = 0) -> list[dict[str, Any]]:
    """The worker's own entry point, inside this process: starting torch anew for each run costs seconds."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    try:
        assert main([str(job)]) == expect, events(job)[-1]
    finally:
        torch.set_num_threads(threads)
        for number, handler in before.items():
            signal.signal(number, handler)
    return events(job)


def events(job: Path) -> list[dict[str, Any]]:
    found = []
    for line in (job.parent / "events.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # torn by a kill
    return found


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in found if event["kind"] == kind]


def losses(found: list[dict[str, Any]]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in of_kind(found, "step")}


def epochs(found: list[dict[str, Any]]) -> dict[int, tuple[Any, Any]]:
    return {event["epoch"]: (event["training"], event["validation"]) for event in of_kind(found, "epoch")}


def adapter_hash(job: Path) -> str:
    return hashlib.sha256((job.parent / "artifact" / "adapter_model.safetensors").read_bytes()).hexdigest()


def wait_for_step(job: Path, process: subprocess.Popen[bytes], step: int) -> None:
    def is_there() -> bool:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0].decode())
        path = job.parent / "events.jsonl"
        return path.exists() and max(losses(events(job)), default=0) >= step

    until(is_there, f"step {step}")


def test_a_run_leaves_metrics_verdict_ledger_and_a_whole_artifact(make_job: MakeJob) -> None:
    job = make_job(rows=some_rows(48), epochs=3)
    found = run(job)
    assert sorted(epochs(found)) == [0, 1, 2, 3]
    assert len(losses(found)) == 3 * 5  # 36 training rows, 8 a step
    assert epochs(found)[3][1]["loss"] < epochs(found)[0][1]["loss"]
    artifact = job.parent / "artifact"
    manifest = json.loads((artifact / "manifest.json").read_text())
    for file in manifest["files"]:
        content = (artifact / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    names = {file["path"] for file in manifest["files"]}
    assert names == {path.name for path in artifact.iterdir()} - {"manifest.json"}
    assert names >= {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "README.md",
        "metrics.json", "loss.svg", "token_accuracy.svg", "completion_accuracy.svg", "ledger.jsonl", "verdict.json",
        "job.json", "generation_config.json",
    }  # fmt: skip
    ledger = [json.loads(line) for line in (artifact / "ledger.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in ledger) == list(range(1, 49))
    assert {row["fate"] for row in ledger} == {"trained", "validation"}
    verdict = json.loads((artifact / "verdict.json").read_text())
    assert verdict["outcome"] == "improved"
    assert of_kind(found, "finished")[0]["best_epoch"] in {1, 2, 3}
    # A finished job started again does nothing more.
    assert run(job) == found


def test_equal_jobs_give_equal_adapters_and_the_seed_matters(make_job: MakeJob) -> None:
    first, second, other = make_job("a"), make_job("b"), make_job("c", seed=1)
    runs = [run(job) for job in (first, second, other)]
    assert losses(runs[0]) == losses(runs[1])
    assert adapter_hash(first) == adapter_hash(second) != adapter_hash(other)


@pytest.mark.parametrize("at_step", [1, 9])
def test_killed_and_resumed_equals_uninterrupted(make_job: MakeJob, at_step: int) -> None:
    whole = make_job("whole", rows=some_rows(40), epochs=3, lora_dropout=0.1)
    expected = run(whole)
    killed = make_job("killed", rows=some_rows(40), epochs=3, lora_dropout=0.1)
    assert struck(killed, signal.SIGKILL, at_step=at_step) == -signal.SIGKILL
    found = run(killed)
    assert len(of_kind(found, "attempt")) == 2
    assert losses(found) == losses(expected)
    assert epochs(found) == epochs(expected)
    assert adapter_hash(killed) == adapter_hash(whole)
    assert of_kind(found, "verdict")[0]["verdict"] == of_kind(expected, "verdict")[0]["verdict"]


def test_the_verdict_scores_again_only_what_this_attempt_has_not_scored(make_job: MakeJob) -> None:
    base, tuned = "the base on validation rows", "the tuned model on validation rows"

    def scored(found: list[dict[str, Any]]) -> set[str]:
        return {event["detail"] for event in of_kind(found, "phase")} & {base, tuned}

    whole, resumed = make_job("whole", epochs=2), make_job("resumed", epochs=2)
    expected = run(whole)
    assert scored(expected) == set()
    assert struck(resumed, signal.SIGTERM, at_step=max(losses(expected)) - 1) == 128 + signal.SIGTERM
    found = run(resumed)
    assert scored(found) == {base}
    assert of_kind(found, "verdict")[0]["verdict"] == of_kind(expected, "verdict")[0]["verdict"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_checkpoints_and_the_run_goes_on_where_it_was(make_job: MakeJob, number: signal.Signals) -> None:
    job = make_job(rows=some_rows(60), epochs=1000)
    assert struck(job, number, at_step=3) == 128 + number
    checkpoint = of_kind(events(job), "checkpoint")[-1]
    done = max(losses(events(job)))
    assert checkpoint["after_steps"] == done == 3
    process = start(job)
    wait_for_step(job, process, done + 2)
    process.kill()
    process.communicate()
    found = events(job)
    assert of_kind(found, "attempt")[-1]["resumed_at"] == done
    steps = [event["step"] for event in of_kind(found, "step")]
    assert steps == sorted(set(steps)), "no step was done twice"


def test_micro_batch_size_may_change_at_resume(make_job: MakeJob) -> None:
    whole = make_job("whole", epochs=2, sequence_length=32)
    expected = run(whole)
    job = make_job("changed", epochs=2, sequence_length=32)
    assert struck(job, signal.SIGTERM, at_step=3) == 128 + signal.SIGTERM
    changed = json.loads(job.read_text())
    changed["settings"]["micro_batch_size"] = 1
    job.write_text(json.dumps(changed))
    found = losses(run(job))
    assert found == pytest.approx(losses(expected), rel=1e-4)


def test_other_threads_at_resume_are_said(make_job: MakeJob) -> None:
    job = make_job(epochs=1000)
    assert struck(job, signal.SIGTERM, at_step=2) == 128 + signal.SIGTERM
    changed = json.loads(job.read_text())
    changed["threads"] = 2
    job.write_text(json.dumps(changed))
    process = start(job)
    wait_for_step(job, process, max(losses(events(job))) + 1)
    process.kill()
    process.communicate()
    assert "NOT_EXACT" in [event["code"] for event in of_kind(events(job), "notice")]


def test_overfitting_is_noticed_and_the_best_epoch_is_kept(make_job: MakeJob) -> None:
    unrelated = [{"prompt": f"count {index}:", "completion": f"{index * 7919 % 1000}"} for index in range(12)]
    job = make_job(validation=unrelated, epochs=8, learning_rate=2e-2, lora_dropout=0.0)
    found = run(job)
    notice = next(event for event in of_kind(found, "notice") if event["code"] == "OVERFITTING")
    validation = {epoch: values[1]["loss"] for epoch, values in epochs(found).items() if epoch}
    assert "epoch" in notice["message"]
    best = min(validation, key=validation.__getitem__)
    assert of_kind(found, "finished")[0]["best_epoch"] == best
    metrics = json.loads((job.parent / "artifact" / "metrics.json").read_text())
    assert metrics["best_epoch"] == best


def test_early_stopping_ends_the_run(make_job: MakeJob) -> None:
    unrelated = [{"prompt": f"count {index}:", "completion": f"{index * 7919 % 1000}"} for index in range(12)]
    job = make_job(validation=unrelated, epochs=50, learning_rate=2e-2, early_stopping=2)
    found = run(job)
    finished = of_kind(found, "finished")[0]
    assert max(epochs(found)) == finished["best_epoch"] + 2 < 50
    assert "EARLY_STOPPING" in [event["code"] for event in of_kind(found, "notice")]


def test_without_validation_rows_the_last_epoch_is_kept_and_nothing_is_measured(make_job: MakeJob) -> None:
    job = make_job(validation_fraction=0.0)
    found = run(job)
    assert all(values[1] is None for values in epochs(found).values())
    assert of_kind(found, "finished")[0]["best_epoch"] == 2
    verdict = of_kind(found, "verdict")[0]["verdict"]
    assert verdict["outcome"] == "not measured"


def test_the_test_dataset_is_what_the_verdict_is_measured_on(make_job: MakeJob) -> None:
    job = make_job(rows=some_rows(40), test=some_rows(10, start=100))
    verdict = of_kind(run(job), "verdict")[0]["verdict"]
    assert (verdict["measured_on"], verdict["rows"]) == ("test", 10)


def test_an_adapter_that_hardly_moved_is_no_improvement(make_job: MakeJob) -> None:
    job = make_job(rows=some_rows(48), learning_rate=1e-12, epochs=1)
    verdict = of_kind(run(job), "verdict")[0]["verdict"]
    assert verdict["outcome"] == "no measurable improvement"
    assert any("tiny" in reason for reason in verdict["reasons"])


def poisoned_base(tiny_base: Path, folder: Path) -> Path:
    """A copy of the base whose embedding of the letter Z is infinite: rows that hold one have no finite loss."""
    model = LlamaForCausalLM.from_pretrained(tiny_base, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    letter = json.loads((tiny_base / "tokenizer.json").read_text())["model"]["vocab"]["Z"]
    model.model.embed_tokens.weight.data[letter] = math.inf
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_base / name).read_bytes())
    return folder


def test_a_step_that_is_not_finite_is_skipped_once_with_its_rows_and_fails_the_second_time(
    make_job: MakeJob, tiny_base: Path, tmp_path: Path
) -> None:
    base = poisoned_base(tiny_base, tmp_path / "poisoned")
    count = SAMPLED_ROWS_WITHOUT_VALIDATION + 20
    sampled = training_sample(count, 0, seed=0)
    unseen = next(row for row in range(count) if row not in sampled)
    rows = some_rows(count)
    rows[unseen] = {"prompt": "Z", "completion": "y"}
    job = make_job(rows=rows, base=base, epochs=3, global_batch_size=64, validation_fraction=0.0)
    found = run(job, expect=5)
    skipped = [event for event in of_kind(found, "notice") if event["code"] == "STEP_SKIPPED"]
    assert len(skipped) == 1
    assert f" {unseen + 1}," in skipped[0]["message"] or f" {unseen + 1}." in skipped[0]["message"]
    failure = found[-1]
    assert (failure["kind"], failure["error"]["code"], failure["retry"]) == ("failure", "DIVERGED", False)
    assert "learning-rate" in failure["error"]["hint"]
    step = int(re.search(r"before step (\d+)", skipped[0]["message"])[1])  # type: ignore[index]
    assert step not in losses(found)
    assert max(losses(found)) > step, "the run went on after the first one"
    assert not (job.parent / "artifact").exists()


def test_a_base_that_is_not_finite_is_refused_before_the_first_step(
    make_job: MakeJob, tiny_base: Path, tmp_path: Path
) -> None:
    base = poisoned_base(tiny_base, tmp_path / "poisoned")
    job = make_job(rows=[{"prompt": "Z", "completion": "y"}, *some_rows(9)], base=base, validation_fraction=0.0)
    failure = run(job, expect=3)[-1]
    assert failure["error"]["code"] == "MODEL_NOT_FINITE"


def test_bad_rows_end_the_run_with_their_line(make_job: MakeJob) -> None:
    job = make_job(rows=[*some_rows(5), {"prompt": "x", "completion": 3}])  # type: ignore[dict-item]
    failure = run(job, expect=3)[-1]
    assert failure["kind"] == "failure"
    assert "line 6" in failure["error"]["message"]


def test_full_disk_keeps_the_last_checkpoint(make_job: MakeJob, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        job = make_job(rows=some_rows(60), epochs=1000)
        moved = mount / "job.json"
        moved.write_bytes(job.read_bytes())
        process = start(moved)
        wait_for_step(moved, process, 8)  # past the first epoch, so past its checkpoint
        with contextlib.suppress(OSError):
            (mount / "filler").write_bytes(b"x" * 600_000)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 4, output.decode()
        (mount / "filler").unlink()
        assert not list((mount / "checkpoints").glob(".*"))
        done = max(losses(events(moved)))
        process = start(moved)
        wait_for_step(moved, process, done + 1)
        process.kill()
        process.communicate()
        assert of_kind(events(moved), "attempt")[-1]["resumed_at"] > 0
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_faulty_job_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"format": 1}')
    process = start(tmp_path / "job.json")
    output, _ = process.communicate()
    assert process.returncode == 3
    assert b"job_id" in output
    assert b"Traceback" not in output


def test_the_adapter_in_the_artifact_is_not_zero(make_job: MakeJob) -> None:
    job = make_job()
    run(job)
    tensors = load_file(job.parent / "artifact" / "adapter_model.safetensors")
    outputs = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    assert len(outputs) == 14
    assert all((tensor != 0).any() for tensor in outputs)
