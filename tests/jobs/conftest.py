"""A job whose worker is a small program: a real process that writes real events, so that control is tested alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunesmith.jobs import launcher, supervisor
from tunesmith.jobs.home import Home, open_home
from tunesmith.jobs.records import JobFolder, create_job, new_job_id
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import NewJob
from tunesmith.spec.datasets import DatasetInput, Preparation, RowCounts, TokenSummary
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.models import LinearModule, ModelFacts
from tunesmith.spec.plan import Plan
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings


@pytest.fixture(autouse=True)
def no_sampling_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second at each start of a worker; `test_launcher` tests it."""
    for module in (launcher, supervisor):
        monkeypatch.setattr(module, "machine_is_idle", lambda: False)


# argv: job.json, then words of behaviour; `died` counts how often it was started in its folder.
WORKER = """
import json, os, signal, sys, time
from hashlib import sha256
from pathlib import Path

folder = Path(sys.argv[1]).parent
behaviour = sys.argv[2]
starts = folder / "starts"
start = len(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text("x" * start)
log = (folder / "events.jsonl").open("ab+", buffering=0)
if log.tell() and (folder / "events.jsonl").read_bytes()[-1:] != b"\\n":
    log.write(b"\\n")  # as the trainer does: a torn last line is closed

def say(kind, **fields):
    log.write(json.dumps({"time": "2026-01-01T00:00:00Z", "kind": kind, **fields}).encode() + b"\\n")

def scores(loss):
    return {"loss": loss, "token_accuracy": 0.5, "completion_accuracy": 0.25}

def step(number):
    say("step", step=number, steps=4, epoch=1, loss=2.0, learning_rate=1e-4, gradient_norm=1.0, tokens=10,
        learned_tokens=5, tokens_per_second=100.0, memory_bytes=1000, eta_seconds=1.0)

def fail(code, family, retry):
    error = {"code": code, "message": "It failed.", "field": None, "hint": "Mend it."}
    say("failure", error=error, family=family, retry=retry)
    sys.exit(5)

def verdict(outcome):
    say("verdict", verdict={"outcome": outcome, "reasons": ["so it was measured"], "rows": 9,
        "measured_on": "validation", "base_loss": 2.0, "tuned_loss": 1.0, "difference": -1.0, "interval": [-1.1, -0.9]})

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
say("attempt", attempt=start, pid=os.getpid(), resumed_at=0 if start == 1 else 2)
say("phase", phase="training")
step(1)
if behaviour == "dies once" and start == 1 or behaviour == "dies always":
    log.write(b'{"time": "2026-01-01T00:00:00Z", "kind": "st')  # a torn last line
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "floods its log":
    for number in range(4000):
        print(f"line {number} " + "x" * 100, flush=True)
        if number % 400 == 0:
            time.sleep(0.1)
if behaviour == "exits without a word":
    print("Traceback: the last words of the log")
    sys.exit(7)
if behaviour == "asks for another attempt" and start == 1:
    fail("FLAKY", "TunesmithError", True)
if behaviour == "refuses":
    fail("BAD_ROWS", "InputRefused", False)
if behaviour == "disk full once" and start == 1:
    fail("DISK_FULL", "MachineCannot", False)
if behaviour in ("waits", "waits and ignores"):
    (folder / "ready").touch()
    patience = time.monotonic() + 300
    while time.monotonic() < patience and not (folder / "go").exists():
        time.sleep(0.01)
        if stopping and behaviour == "waits":
            sys.exit(143)
if start > 1 and behaviour == "dies once":
    log.write(b"\\n")
say("epoch", epoch=0, training=scores(2.0), validation=scores(2.5))
step(2)
say("epoch", epoch=1, training=scores(1.0), validation=scores(1.5))
verdict("not usable" if behaviour == "not usable" else "improved")
artifact = folder / "artifact"
artifact.mkdir(exist_ok=True)
(artifact / "adapter_model.safetensors").write_bytes(b"w" * 3000)
(artifact / "curves").mkdir(exist_ok=True)
(artifact / "curves" / "loss.svg").write_text("<svg/>")
files = [{"path": path.relative_to(artifact).as_posix(), "size": path.stat().st_size,
          "sha256": sha256(path.read_bytes()).hexdigest(), "version_id": None}
         for path in sorted(artifact.rglob("*")) if path.is_file() and path.name != "manifest.json"]
job = json.loads((folder / "job.json").read_text())
manifest = {"format": 1, "job_id": job["job_id"], "model_version": job["model_version"], "files": files}
(artifact / "manifest.json").write_text(json.dumps(manifest))
if behaviour == "dies before its last event" and start == 1:
    os.kill(os.getpid(), signal.SIGKILL)
say("finished", best_epoch=1, tokens_per_second=100.0, peak_memory_bytes=12345)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home({"TUNESMITH_HOME": str(tmp_path / "home")})


@pytest.fixture
def state(home: Home) -> Iterator[State]:
    opened = open_state(home)
    yield opened
    opened.database.close()


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[str], Callable[[Path], list[str]]]:
    """`worker("dies once")` is the command that starts the scripted worker with that behaviour."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return lambda behaviour: lambda job_file: [sys.executable, str(script), str(job_file), behaviour]


def model_facts(path: str = "/models/tiny", **changes: object) -> ModelFacts:
    modules = [
        LinearModule(name=f"model.layers.{layer}.{name}", in_features=64, out_features=64)
        for layer in range(2)
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    ]
    facts = ModelFacts(
        name="tiny", path=path, digest="0" * 64, architecture="LlamaForCausalLM", model_type="llama",
        parameters=100_000, weight_bytes=400_000, dtype="float32", context_length=256,
        hidden_size=64, num_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=128, vocabulary_size=500, tokenizer_size=500,
        tied_embeddings=True, has_chat_template=True, end_token="<end>", end_token_id=2, bos_token_id=1, pad_token_id=0,
        licence=None, linear_modules=modules,
    )  # fmt: skip
    return ModelFacts.model_validate(facts.model_dump() | changes)


def preparation(*, training: int = 90, validation: int = 10, tokens: int = 9000, longest: int = 120) -> Preparation:
    def summary(total: int) -> TokenSummary:
        return TokenSummary(total=total, to_learn=total // 2, percentiles={"50": 100}, histogram=[(128, 90)])

    return Preparation(
        counts=RowCounts(training=training, validation=validation, cut=0, dropped=0, duplicates=0),
        training=summary(tokens), validation=summary(tokens // 9) if validation else None, test=None,
        longest_row=longest, sequence_length=longest, render="chat", notices=[],
    )  # fmt: skip


def resolved_settings() -> TrainingSettings:
    return TrainingSettings(
        sequence_length=120, render="chat", global_batch_size=8, micro_batch_size=4, precision="float32",
        base_precision="float32", strategy="single", path="generic", compile_layers="off", checkpointed_layers=0,
    )  # fmt: skip


def submit_job(state: State, *, results: Path | None, **changes: object) -> JobFolder:
    """A job that was submitted and not yet started, with all that its worker gets."""
    settings = resolved_settings()
    fields = {
        "job_id": new_job_id(), "request": FinetuneRequest(model="tiny", dataset="rows.jsonl"), "settings": settings,
        "version_set": "tiny-rows", "results_uri": results.as_uri() if results else None, "is_foreground": True,
        "results_root": state.home.results, "base_name": "tiny",
    } | changes  # fmt: skip
    with state.database.write() as connection:
        record = state.jobs.insert(connection, NewJob(**fields))  # type: ignore[arg-type]
    data = DatasetInput(role="training", path=str(state.home.root / "rows.jsonl"), name="rows.jsonl")
    job_file = JobFile(
        job_id=record.job_id, model_version=record.model_version, name=record.name, created_at=record.created_at,
        base=model_facts(), datasets=[data], cache_folder=str(state.home.cache), settings=settings, threads=1,
        device="cpu", versions={},
    )  # fmt: skip
    plan = Plan(
        settings=settings, reasons={}, device="cpu", device_name="test", threads=1, trainable_parameters=1000,
        steps_per_epoch=2, steps=4, tokens_per_epoch=9000, memory=[], peak_memory_bytes=1, free_memory_bytes=2,
        disk_bytes=1, seconds=1.0, seconds_reason="test", notices=[],
    )  # fmt: skip
    return create_job(state.home, job_file=job_file, preparation=preparation(), plan=plan)


@pytest.fixture
def job(state: State, tmp_path: Path) -> JobFolder:
    """A job of the foreground; its results go to `results` beside the home."""
    return submit_job(state, results=tmp_path / "results")
