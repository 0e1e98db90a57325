"""The story of a run: prepare, load, resume, train epoch by epoch, judge, write the artifact.

Comes in: a job file, resolved. Goes out: events, checkpoints and the artifact in the job's folder. The run may be
killed at any line; started again it goes on from the newest whole checkpoint, on CPU bit for bit.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import nn

from tunesmith.data.batch import Batch, num_steps, rows_of_step, step_batches
from tunesmith.data.pack import pack
from tunesmith.data.prepare import ExampleSet, Prepared, prepare
from tunesmith.errors import InputRefused, JobFailed, MachineCannot
from tunesmith.models.adapter_file import load_adapter
from tunesmith.models.ahead import Ahead
from tunesmith.models.base import load_base
from tunesmith.models.decoder import decoder_of
from tunesmith.models.layers import is_compile_failure
from tunesmith.models.lora import adapter_parameters, disabled, inject
from tunesmith.spec.jobs import JobFile
from tunesmith.spec.metrics import (
    AttemptEvent,
    CheckpointEvent,
    EpochEvent,
    EpochMetrics,
    FinishedEvent,
    NoticeEvent,
    PathEvent,
    PhaseEvent,
    SamplesEvent,
    StepEvent,
    VerdictEvent,
)
from tunesmith.spec.training import learning_rate_at
from tunesmith.train.artifact import Evidence, write_artifact
from tunesmith.train.checkpoint import (
    RunState,
    clean_temporary,
    newest_checkpoint,
    read_best,
    remove_other_bests,
    write_best,
    write_checkpoint,
)
from tunesmith.train.evaluation import RowScores, score_rows, training_sample
from tunesmith.train.events import EVENTS_NAME, EventLog, now
from tunesmith.train.evidence import collect_verdict
from tunesmith.train.faults import is_out_of_memory, out_of_memory
from tunesmith.train.ladder import next_rung
from tunesmith.train.optimizer import FlatAdamW
from tunesmith.train.parent import load_parent
from tunesmith.train.path import Path as ComputePath
from tunesmith.train.path import may_be_fast, set_up_path, why_generic
from tunesmith.train.step import Begun, StepOutcome, train_step
from tunesmith.versions import numeric_versions

CHECKPOINT_SECONDS = 600.0
BASE_KEPT_SECONDS = 10.0  # a shorter evaluation of the base is repeated sooner than a whole state is written
PROGRESS_SECONDS = 0.5  # a phase reports its progress at most this often
EVALUATION_TOKENS = {"cpu": 4096, "cuda": 32768}  # tokens of one forward pass without gradients
MAXIMUM_SKIPPED_STEPS = 1
STEPS_AHEAD = 6  # whose products are made once while weights are read; by then, most sizes have been seen
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Stopped(Exception):
    """SIGTERM or SIGINT arrived; the run's state has been checkpointed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step computes on. rows: example indices."""

    step: int
    epoch: int
    rows: np.ndarray
    batches: list[Batch]


class Run:
    """One attempt at a job. `state` is what a checkpoint keeps; all else is rebuilt at the start."""

    def __init__(self, job: JobFile, folder: Path, log: EventLog) -> None:
        self.job, self.settings, self.folder, self.log = job, job.settings, folder, log
        self.device = torch.device(job.device)
        self.checkpoints = folder / "checkpoints"
        self.stop_signal: int | None = None
        self.state = RunState(versions=numeric_versions(), threads=job.threads)
        self.prepared: Prepared
        self.model: nn.Module
        self.optimizer: FlatAdamW
        self.path: ComputePath
        self.sample_rows: np.ndarray
        self._validated: dict[int, RowScores] = {}  # of this attempt's epochs; the base's and the best one's
        self._ahead: Ahead | None = None
        self._upcoming: StepWork | None = None
        self._begun: Begun | None = None
        self._last_progress = 0.0

    # ---- telling

    def phase(self, name: str, detail: str | None = None) -> None:
        self.log.append(PhaseEvent(time=now(), phase=name, detail=detail))  # type: ignore[arg-type]  # names are literals

    def progress(self, name: str, detail: str, done: int, total: int) -> None:
        """A phase's progress, at most twice a second, and a chance to stop."""
        self.check_stop()
        moment = time.monotonic()
        if done == total or moment - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = moment
            self.log.append(
                PhaseEvent(time=now(), phase=name, detail=detail, done=done, total=total)  # type: ignore[arg-type]
            )

    def notice(self, code: str, message: str, hint: str | None = None, *, once: bool = False) -> None:
        if once and code in self.state.told:
            return
        if once:
            self.state = self.state.model_copy(update={"told": [*self.state.told, code]})
        self.log.append(NoticeEvent(time=now(), code=code, message=message, hint=hint))

    def check_stop(self) -> None:
        if self.stop_signal is not None:
            raise Stopped(self.stop_signal)

    # ---- the way

    def execute(self) -> None:
        self._listen()
        self.checkpoints.mkdir(exist_ok=True)
        clean_temporary(self.checkpoints)
        torch.set_num_threads(self.job.threads)
        found = newest_checkpoint(self.checkpoints)
        attempt = 1 + _count_attempts(self.folder / EVENTS_NAME)
        self.log.append(
            AttemptEvent(
                time=now(), attempt=attempt, pid=os.getpid(), resumed_at=found[0].steps_done if found is not None else 0
            )
        )
        self.phase("preparing")
        if self.device.type == "cuda":
            is_fast = may_be_fast(self.job.base, self.settings, device=self.device)
            self._ahead = Ahead(self.job.base, self.settings, device=self.device, is_fast=is_fast)
        self.prepared = prepare(
            self.job.datasets,
            settings=self.settings,
            base=self.job.base,
            cache_folder=Path(self.job.cache_folder),
            progress=lambda what, done, total: self.progress("preparing", what, done, total),
        )
        if attempt == 1:
            for notice in self.prepared.summary.notices:
                self.notice(notice.code, notice.message, notice.hint)
        self.check_stop()
        if self._ahead is not None:
            steps = range(1, min(STEPS_AHEAD, self.steps) + 1)
            self._ahead.expect([batch for step in steps for batch in self._work_of(step).batches])
        self.phase("loading")
        self._load()
        if found is not None:
            self._resume(found)
        elif self.job.initial_adapter is not None:
            load_parent(self.job.initial_adapter, self.model, settings=self.settings, base=self.job.base)
            self.notice("CONTINUED", f"Training goes on from the adapter of {self.job.initial_adapter.model_version}.")
        self._set_up_path()
        self.sample_rows = training_sample(
            len(self.prepared.training), len(self.prepared.validation or ()), seed=self.settings.seed
        )
        try:
            self._train()
        except Stopped:
            self.checkpoint()
            raise
        except MachineCannot:
            with contextlib.suppress(OSError, RuntimeError, MachineCannot):  # where it can still be written
                self.checkpoint()
            raise
        self._finish()

    def _listen(self) -> None:
        def remember(number: int, _frame: FrameType | None) -> None:
            self.stop_signal = number

        signal.signal(signal.SIGTERM, remember)
        signal.signal(signal.SIGINT, remember)

    def _load(self) -> None:
        is_fast = why_generic(self.job.base, self.settings, device=self.device) is None
        try:
            self.model = load_base(
                self.job.base,
                dtype=DTYPES[self.settings.precision],
                device=self.device,
                cache_folder=Path(self.job.cache_folder),
                trains_only=self.device.type == "cpu" or is_fast,
            )
            inject(self.model, settings=self.settings)
            self.optimizer = FlatAdamW(adapter_parameters(self.model), weight_decay=self.settings.weight_decay)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, what=f"{self.job.base.name} does not fit into memory") from error

    def _set_up_path(self) -> None:
        """As planned, or as the ladder left it before a resume."""
        kept = self.state.checkpointed_layers
        settings = self.settings if kept is None else self.settings.model_copy(update={"checkpointed_layers": kept})
        self.path = set_up_path(self.model, facts=self.job.base, settings=settings, device=self.device)
        if self._ahead is not None:
            self._ahead.wait()
        reasons = self.job.plan_reasons
        if self.path.reason == "as planned":
            self.path.reason = reasons.get("path", "as asked")
        if self.path.triton_fault is not None:
            self.notice(
                "TRITON_BROKEN",
                "Triton is installed and fails on this machine: the run takes the generic path, and nothing is "
                f"compiled. {self.path.triton_fault}",
                "Is a C compiler installed (gcc, or CC set)? Does torch's CUDA fit the driver?",
            )
        self._tell_path()

    def _tell_path(self) -> None:
        self.log.append(
            PathEvent(
                time=now(),
                path=self.path.name,
                reason=self.path.reason,
                is_compiled=self.path.is_compiled,
                is_replayed=self.path.is_replayed,
                micro_batch_size=self.micro_batch_size,
                checkpointed_layers=self.path.checkpointed_layers,
            )
        )

    def _tell_replay_fault(self) -> None:
        fault = self.path.replay_fault
        if fault is not None and "NOT_REPLAYED" not in self.state.told:
            self._tell_path()
            self.notice(
                "NOT_REPLAYED",
                f"Passes could not be recorded as CUDA graphs and are launched kernel by kernel, more slowly: {fault}",
                "The results are the same.",
                once=True,
            )

    @property
    def micro_batch_size(self) -> int:
        return self.state.micro_batch_size or int(self.settings.micro_batch_size)

    def _resume(self, found: tuple[RunState, dict[str, torch.Tensor], list[Path]]) -> None:
        state, tensors, damaged = found
        for path in damaged:
            self.notice("CHECKPOINT_DAMAGED", f"{path.name} is damaged and was passed over.")
        if state.versions != self.state.versions or state.threads != self.job.threads:
            changed = sorted(
                name
                for name in state.versions.keys() | self.state.versions.keys()
                if state.versions.get(name) != self.state.versions.get(name)
            )
            self.notice(
                "NOT_EXACT",
                f"Resumed with other libraries or threads than before ({', '.join(changed) or 'threads'}): "
                "the run goes on, but not bit for bit as it would have.",
            )
        self.state = state.model_copy(update={"versions": self.state.versions, "threads": self.job.threads})
        self.optimizer.restore(tensors, updates=state.updates)

    @property
    def steps(self) -> int:
        return num_steps(
            len(self.prepared.training),
            global_batch_size=int(self.settings.global_batch_size),
            epochs=self.settings.epochs,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.steps // self.settings.epochs

    def _train(self) -> None:
        """Evaluate what is due, then step, until the last epoch or early stopping."""
        last_checkpoint = time.monotonic()
        started_at = self.state.steps_done
        while True:
            epochs_done = self.state.steps_done // self.steps_per_epoch
            if self.state.steps_done % self.steps_per_epoch == 0 and len(self.state.epochs) <= epochs_done:
                self._end_epoch(epochs_done)
                last_checkpoint = time.monotonic()
                if self._is_over(epochs_done):
                    return
                self.phase("training", f"epoch {epochs_done + 1} of {self.settings.epochs}")
            elif self._is_over(epochs_done) and self.state.steps_done % self.steps_per_epoch == 0:
                return  # resumed after the last evaluation
            elif self.state.steps_done == started_at:
                self.phase("training", f"epoch {epochs_done + 1} of {self.settings.epochs}")
            self.check_stop()
            self._step()
            if time.monotonic() - last_checkpoint >= CHECKPOINT_SECONDS:
                self.checkpoint()
                last_checkpoint = time.monotonic()

    def _is_over(self, epochs_done: int) -> bool:
        patience = self.settings.early_stopping
        if epochs_done >= self.settings.epochs:
            return True
        if patience != "off" and self.state.epochs_without_gain >= patience:
            self.notice(
                "EARLY_STOPPING",
                f"Stopped after epoch {epochs_done}: no better validation loss for {patience} epoch(s). "
                f"Epoch {self.state.best_epoch} is kept.",
                once=True,
            )
            return True
        return False

    def _work_of(self, step: int) -> StepWork:
        epoch, rows = rows_of_step(
            len(self.prepared.training),
            seed=self.settings.seed,
            step=step,
            global_batch_size=int(self.settings.global_batch_size),
        )
        batches = step_batches(
            self.prepared.training,
            rows,
            sequence_length=self.prepared.summary.sequence_length,
            micro_batch_size=self.micro_batch_size,
        )
        return StepWork(step=step, epoch=epoch, rows=rows, batches=batches)

    def _look_ahead(self, step: int) -> list[Batch]:
        """Make the next step's batches, and move them, while the device computes this one; out comes what may begin."""
        if step > self.steps:
            return []
        self._upcoming = self._work_of(step)
        if (decoder := decoder_of(self.model)) is not None:
            for batch in self._upcoming.batches:
                decoder.prepare(batch)
        is_next = self.stop_signal is None and (step - 1) % self.steps_per_epoch != 0  # no evaluation comes between
        return self._upcoming.batches if is_next else []

    def _forget_upcoming(self) -> None:
        self._upcoming = self._begun = None
        if (decoder := decoder_of(self.model)) is not None:
            decoder.forget()

    def _step(self) -> None:
        step = self.state.steps_done + 1
        work, self._upcoming = self._upcoming, None
        if work is None or work.step != step:
            work = self._work_of(step)
        rate = learning_rate_at(self.settings, step=step, steps=self.steps)
        while True:
            try:
                outcome, self._begun = train_step(
                    self.model,
                    self.optimizer,
                    work.batches,
                    seed=self.settings.seed,
                    step=step,
                    learning_rate=rate,
                    max_gradient_norm=self.settings.max_gradient_norm,
                    device=self.device,
                    begun=self._begun,
                    upcoming=lambda: self._look_ahead(step + 1),
                )
                break
            except Exception as error:  # noqa: BLE001  # raised again unless it has a remedy
                self._remedy(error, step=step, rows=work.rows, num_batches=len(work.batches))
            # outside of the handler: the exception's frames hold the step's tensors
            self._forget_upcoming()
            self._give_memory_back()
            work = self._work_of(step)
        epoch, rows, batches = work.epoch, work.rows, work.batches
        if outcome.is_finite:
            self._advance(outcome, skipped=False)
            self._tell_step(outcome, step=step, epoch=epoch, rate=rate)
            if self.path.observe(outcome, steps_left=self.steps - step):
                self._tell_path()
            self._tell_replay_fault()
        else:
            self._skip(outcome, step=step, rows=rows, batches=batches)

    def _remedy(self, error: Exception, *, step: int, rows: np.ndarray, num_batches: int) -> None:
        """Change what made a step fail, so that it can be repeated as it was; raises where nothing is left to change.

        A step changes the adapter at its very end, so a failed one has changed nothing.
        """
        if self.path.is_compiled and is_compile_failure(error):
            self.path.uncompile()
            self.notice(
                "COMPILE_FAILED",
                f"The layers could not be compiled and run as they are from here on, more slowly: "
                f"{' '.join(str(error).split())[:300]}",
                "--compile-layers off does so from the start. The results are the same.",
            )
            self._tell_path()
            return
        if not is_out_of_memory(error):
            raise error
        lengths = self.prepared.training.lengths[rows]
        packed = len(pack(lengths, sequence_length=self.prepared.summary.sequence_length))
        rung = next_rung(
            micro_batch_size=self.micro_batch_size,
            checkpointed_layers=self.path.checkpointed_layers,
            rows_in_forward=-(-packed // num_batches),
            num_layers=self.path.num_layers,
        )
        if rung is None:
            raise out_of_memory(
                error,
                what=f"Memory ran out in step {step}, with one packed row of {self.prepared.summary.sequence_length:,} "
                "tokens a forward pass and every layer computed twice",
            ) from error
        told = f"Memory ran out in step {step}: from here on {rung.told}."
        self.state = self.state.model_copy(
            update={
                "micro_batch_size": rung.micro_batch_size,
                "checkpointed_layers": rung.checkpointed_layers,
                "rungs": [*self.state.rungs, told],
            }
        )
        self.path.checkpoint(rung.checkpointed_layers)
        self.notice("MEMORY_RAN_OUT", told, "The step is repeated as it was; nothing that is learned changes.")
        self._tell_path()

    def _give_memory_back(self) -> None:
        self.path.forget_recordings()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _advance(self, outcome: StepOutcome, *, skipped: bool) -> None:
        state = self.state
        self.state = state.model_copy(
            update={
                "steps_done": state.steps_done + 1,
                "updates": self.optimizer.updates,
                "tokens": state.tokens + outcome.tokens,
                "step_seconds": state.step_seconds + outcome.seconds,
                "peak_memory_bytes": max(state.peak_memory_bytes, peak_memory_bytes(self.device)),
                "skipped_steps": [*state.skipped_steps, state.steps_done + 1] if skipped else state.skipped_steps,
            }
        )

    def _tell_step(self, outcome: StepOutcome, *, step: int, epoch: int, rate: float) -> None:
        mean_seconds = self.state.step_seconds / self.state.steps_done
        self.log.append(
            StepEvent(
                time=now(),
                step=step,
                steps=self.steps,
                epoch=epoch,
                loss=outcome.loss,
                learning_rate=rate,
                gradient_norm=outcome.gradient_norm,
                tokens=outcome.tokens,
                learned_tokens=outcome.learned_tokens,
                tokens_per_second=outcome.tokens / outcome.seconds,
                memory_bytes=self.state.peak_memory_bytes,
                eta_seconds=mean_seconds * (self.steps - step),
            )
        )

    def _skip(self, outcome: StepOutcome, *, step: int, rows: np.ndarray, batches: list[Batch]) -> None:
        """The adapter stands as before the step: nothing was updated. Once this is said, twice it is a failure."""
        lines = ", ".join(str(self.prepared.training.line(int(row))) for row in sorted(rows))
        what = f"step {step} gave a loss of {outcome.loss} and a gradient norm of {outcome.gradient_norm}"
        if len(self.state.skipped_steps) >= MAXIMUM_SKIPPED_STEPS:
            raise JobFailed(
                "DIVERGED",
                f"Training diverged: {what} (lines {lines}), after step {self.state.skipped_steps[0]} had been skipped "
                "for the same reason.",
                field="learning_rate",
                hint=f"Lower --learning-rate (now {self.settings.learning_rate:g}), or look at those lines.",
            )
        self._advance(outcome, skipped=True)
        self.notice(
            "STEP_SKIPPED",
            f"Training went back to its state before step {step} and skipped its rows: {what}. Lines: {lines}.",
            "A second such step fails the run. A lower --learning-rate usually helps.",
        )

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, tell, keep the best, checkpoint."""
        started = time.monotonic()
        self.phase("evaluating", "the base model" if epoch == 0 else f"after epoch {epoch}")
        if epoch == 0:
            with disabled(self.model):
                metrics = self._evaluate(epoch)
        else:
            metrics = self._evaluate(epoch)
        before = self.state
        gain = _is_better(metrics, before)
        if epoch > 0 and gain:
            write_best(self.checkpoints, self.optimizer.values_P, epoch=epoch)
        unwanted = before.best_epoch if gain else epoch
        if unwanted:  # the base's are kept
            self._validated.pop(unwanted, None)
        self.state = before.model_copy(
            update={
                "epochs": [*before.epochs, metrics],
                "best_epoch": epoch if epoch > 0 and gain else before.best_epoch,
                "epochs_without_gain": 0 if gain else before.epochs_without_gain + 1,
                "peak_memory_bytes": max(before.peak_memory_bytes, peak_memory_bytes(self.device)),
            }
        )
        self.log.append(EpochEvent(time=now(), epoch=epoch, training=metrics.training, validation=metrics.validation))
        self._notice_overfitting()
        if epoch > 0 or time.monotonic() - started >= BASE_KEPT_SECONDS:
            self.checkpoint()

    def _evaluate(self, epoch: int) -> EpochMetrics:
        training = self._finite_scores(self.prepared.training, self.sample_rows, f"epoch {epoch}: training rows")
        validation = None
        if (examples := self.prepared.validation) is not None:
            scores = self._finite_scores(examples, np.arange(len(examples)), f"epoch {epoch}: validation rows")
            self._validated[epoch], validation = scores, scores.metrics()
        return EpochMetrics(epoch=epoch, training=training.metrics(), validation=validation)

    def _finite_scores(self, examples: ExampleSet, rows: np.ndarray, detail: str) -> RowScores:
        scores = self.score(examples, rows, detail)
        if not math.isfinite(float(scores.nll_R.sum())):
            rows_shown = detail.rpartition(": ")[2]
            if self.state.steps_done == 0:
                raise InputRefused(
                    "MODEL_NOT_FINITE",
                    f"The base model's loss on {rows_shown} is not finite: weights overflow, or some are no numbers.",
                    field="model",
                    hint="Fetch the model again, or take another one.",
                )
            raise JobFailed(
                "DIVERGED",
                f"The loss on {rows_shown} is not finite after step {self.state.steps_done}.",
                field="learning_rate",
                hint=f"Lower --learning-rate (now {self.settings.learning_rate:g}).",
            )
        return scores

    def score(self, examples: ExampleSet, rows: np.ndarray, detail: str) -> RowScores:
        """Scores of rows; where memory runs out the pass is halved, down to one row."""
        longest = int(examples.lengths[rows].max())
        while True:
            tokens = self.state.evaluation_tokens or EVALUATION_TOKENS[self.device.type]
            try:
                return score_rows(
                    self.model,
                    examples,
                    rows,
                    device=self.device,
                    max_tokens=tokens,
                    between_batches=lambda done, total: self.progress("evaluating", detail, done, total),
                )
            except Exception as error:  # raised again unless it has a remedy
                if self.path.is_compiled and is_compile_failure(error):
                    self._remedy(error, step=self.state.steps_done, rows=rows, num_batches=1)
                elif not is_out_of_memory(error):
                    raise
                elif tokens <= longest:
                    raise out_of_memory(error, what="Memory ran out while one row was scored") from error
                else:
                    told = f"Memory ran out in an evaluation: from here on a pass takes {tokens // 2:,} tokens at most."
                    self.state = self.state.model_copy(
                        update={"evaluation_tokens": tokens // 2, "rungs": [*self.state.rungs, told]}
                    )
                    self.notice("MEMORY_RAN_OUT", told, "The evaluation is repeated; its results are the same.")
            self._give_memory_back()

    def _notice_overfitting(self) -> None:
        """Validation loss up while training loss went down, between the last two epochs of training."""
        if len(self.state.epochs) < 3:
            return
        before, after = self.state.epochs[-2:]
        if before.validation is None or after.validation is None:
            return
        if after.validation.loss > before.validation.loss and after.training.loss < before.training.loss:
            self.notice(
                "OVERFITTING",
                f"Overfitting from epoch {after.epoch} on: validation loss rose from {before.validation.loss:.4f} to "
                f"{after.validation.loss:.4f} while training loss fell from {before.training.loss:.4f} to "
                f"{after.training.loss:.4f}. The best epoch so far is {self.state.best_epoch}.",
                "Fewer epochs, a lower learning rate or more data; --early-stopping 1 stops by itself.",
                once=True,
            )

    def checkpoint(self) -> None:
        path = write_checkpoint(self.checkpoints, self.state, self.optimizer.state())
        if self.state.best_epoch is not None:
            remove_other_bests(self.checkpoints, epoch=self.state.best_epoch)
        self.log.append(CheckpointEvent(time=now(), folder=path.name, after_steps=self.state.steps_done))
        self.log.sync()

    def _path_details(self) -> list[str]:
        """What the model card tells beside path and reason."""
        twice, layers = self.path.checkpointed_layers, self.path.num_layers
        return [
            *(["layers compiled"] if self.path.is_compiled else []),
            *(["passes replayed as CUDA graphs"] if self.path.is_replayed else []),
            *([f"{twice} of {layers} layers computed twice, to save memory"] if twice else []),
            *self.state.rungs,
        ]

    def _finish(self) -> None:
        """Load the best epoch's adapter, judge it, write the artifact, read the adapter back."""
        best = self.state.best_epoch
        assert best is not None, "an epoch was trained, so one of them is the best"
        values = read_best(self.checkpoints, epoch=best)
        with torch.no_grad():
            self.optimizer.values_P.copy_(values)
        self.phase("evaluating", "the verdict")
        verdict, samples = collect_verdict(
            self.model,
            job=self.job,
            prepared=self.prepared,
            score=self.score,
            validated=(self._validated.get(0), self._validated.get(best)),
            check_stop=self.check_stop,
        )
        self._tell_replay_fault()
        self.log.append(VerdictEvent(time=now(), verdict=verdict))
        if samples:
            self.log.append(SamplesEvent(time=now(), samples=samples))
        rate = self.state.tokens / max(self.state.step_seconds, 1e-9)
        evidence = Evidence(
            epochs=self.state.epochs,
            best_epoch=best,
            verdict=verdict,
            samples=samples,
            tokens_per_second=rate,
            peak_memory_bytes=self.state.peak_memory_bytes,
            path=self.path.name,
            path_reason=self.path.reason,
            path_details=self._path_details(),
        )
        self.phase("publishing", "writing the artifact")
        artifact = self.folder / "artifact"
        write_artifact(
            artifact,
            job=self.job,
            model=self.model,
            prepared=self.prepared,
            evidence=evidence,
            events=self.folder / EVENTS_NAME,
        )
        load_adapter(artifact, self.model, base=self.job.base)
        if not torch.equal(self.optimizer.values_P.detach().cpu(), values):
            raise JobFailed(
                "ADAPTER_UNREADABLE", "The adapter read back from the artifact differs from the trained one."
            )
        self.log.append(
            FinishedEvent(
                time=now(),
                best_epoch=best,
                tokens_per_second=rate,
                peak_memory_bytes=self.state.peak_memory_bytes,
            )
        )
        self.log.sync()


def _is_better(metrics: EpochMetrics, state: RunState) -> bool:
    """Lower validation loss than the best epoch so far; without validation rows the last epoch is the best."""
    if metrics.validation is None or state.best_epoch is None:
        return True
    best = next(epoch for epoch in state.epochs if epoch.epoch == state.best_epoch)
    assert best.validation is not None, "validation rows are there in every epoch or in none"
    return metrics.validation.loss < best.validation.loss


def _count_attempts(events: Path) -> int:
    if not events.exists():
        return 0
    with events.open("rb") as handle:
        return sum(b'"kind": "attempt"' in line for line in handle)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: of the device on a GPU, resident size of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
