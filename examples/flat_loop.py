"""A whole LoRA fine-tuning in one flat loop, from a JSONL to an adapter file, with nothing hidden.

    python examples/flat_loop.py my-rows.jsonl my-adapter

The product's worker (`src/tunesmith/train/`) does the same, and adds what a run that matters needs: evaluation of each
epoch, checkpoints, the best epoch, a verdict, a ledger of the rows. Read this first, `train/step.py` next.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tunesmith.bundled import MODEL_FOLDER
from tunesmith.data.batch import num_steps, rows_of_step, step_batches
from tunesmith.data.prepare import prepare
from tunesmith.models.adapter_file import save_adapter
from tunesmith.models.base import load_base
from tunesmith.models.forward import hidden_states, output_head
from tunesmith.models.inspect import inspect_model
from tunesmith.models.lora import adapter_parameters, inject, set_dropout_position
from tunesmith.models.loss import head_loss
from tunesmith.spec.datasets import DatasetInput
from tunesmith.spec.training import TrainingSettings, learning_rate_at

ROWS_A_STEP = 8


def fine_tune(dataset: Path, out: Path, *, epochs: int = 3, learning_rate: float = 2e-3) -> list[float]:
    """Train the bundled model on `dataset`, write the adapter to `out`, return the loss of each step."""
    device = torch.device("cpu")

    # 1. Look at the model's folder before anything loads it.
    facts = inspect_model(MODEL_FOLDER, "tunesmith/demo")
    settings = TrainingSettings(epochs=epochs, learning_rate=learning_rate, validation_fraction=0.0, seed=0)

    # 2. Rows to tokens: checked, rendered by the model's chat template, the completion marked as what is learned.
    with TemporaryDirectory() as cache:
        datasets = [DatasetInput(role="training", path=str(dataset), name=dataset.name)]
        prepared = prepare(datasets, settings=settings, base=facts, cache_folder=Path(cache))
        examples = prepared.training
        print(f"{len(examples)} rows, {int(examples.lengths.sum())} tokens, {int(examples.num_learned.sum())} to learn")

        # 3. The frozen base, and beside each of its linear modules the two small matrices that learn.
        model = load_base(facts, dtype=torch.float32, device=device)
        inject(model, settings=settings)
        parameters = list(adapter_parameters(model).values())
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)

        # 4. The loop.
        steps = num_steps(len(examples), global_batch_size=ROWS_A_STEP, epochs=epochs)
        losses: list[float] = []
        for step in range(1, steps + 1):
            # Which rows: a pure function of seed and step, so that a run can be resumed anywhere.
            epoch, rows = rows_of_step(len(examples), seed=settings.seed, step=step, global_batch_size=ROWS_A_STEP)
            batches = step_batches(
                examples, rows, sequence_length=prepared.summary.sequence_length, micro_batch_size=ROWS_A_STEP
            )
            # Tokens of the whole step are counted first: micro-batches hold different numbers of them.
            to_learn = sum(batch.num_learned for batch in batches)
            loss_sum = 0.0
            for batch in batches:
                set_dropout_position(model, seed=settings.seed, step=step, offset=batch.offset_in_step)
                hidden_TD = hidden_states(model, batch, device=device)
                scores = head_loss(hidden_TD, head=output_head(model), labels_T=torch.from_numpy(batch.labels_T))
                (scores.loss_sum / to_learn).backward()
                loss_sum += float(scores.loss_sum.detach())
            loss = loss_sum / to_learn
            if not math.isfinite(loss):
                raise SystemExit(f"The loss of step {step} is not finite: lower the learning rate.")

            torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            optimizer.param_groups[0]["lr"] = learning_rate_at(settings, step=step, steps=steps)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            if step % 10 == 0 or step == steps:
                print(f"epoch {epoch}, step {step} of {steps}: loss {loss:.4f}")

    # 5. The adapter, in the format that PEFT, transformers and vLLM read.
    out.mkdir(parents=True)
    save_adapter(out, model, settings=settings, base=facts)
    print(f"The adapter lies in {out}")
    return losses


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/flat_loop.py ROWS.jsonl ADAPTER_FOLDER")
    fine_tune(Path(sys.argv[1]), Path(sys.argv[2]))
