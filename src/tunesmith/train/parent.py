"""Training goes on from the adapter of another model version, in place of a new one.

In: the model with its injected adapter, and where the other's files lie. Out: the same adapter with the other's values.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tunesmith.errors import InputRefused
from tunesmith.files import sha256_of
from tunesmith.models.adapter_file import load_adapter
from tunesmith.models.adapter_form import WEIGHTS_NAME, adapter_settings
from tunesmith.models.lora import lora_modules
from tunesmith.spec.jobs import InitialAdapter
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

MAXIMUM_NAMED = 3


def load_parent(parent: InitialAdapter, model: nn.Module, *, settings: TrainingSettings, base: ModelFacts) -> None:
    """Raises InputRefused: PARENT_DAMAGED, PARENT_DIFFERS, ADAPTER_OF_ANOTHER_BASE, BROKEN_ADAPTER."""
    folder = Path(parent.folder)
    try:
        found = sha256_of(folder / WEIGHTS_NAME)
    except OSError as error:
        raise _damaged(parent, f"cannot be read: {error.strerror}") from error
    if found != parent.sha256:
        raise _damaged(parent, "does not have the SHA-256 of its manifest")
    _require_same_form(parent, model, settings=settings)
    load_adapter(folder, model, base=base)


def _require_same_form(parent: InitialAdapter, model: nn.Module, *, settings: TrainingSettings) -> None:
    """What an adapter computes is its values in one form: rank, scaling and modules have to be the same."""
    theirs = adapter_settings(Path(parent.folder))
    differing = [
        (name, getattr(theirs, name), getattr(settings, name))
        for name in ("lora_rank", "lora_alpha", "adapter")
        if getattr(theirs, name) != getattr(settings, name)
    ]
    names, wanted = set(theirs.target_modules), {module.name for module in lora_modules(model)}
    if not differing and names != wanted:
        odd = sorted(names ^ wanted)
        more = f" and {len(odd) - MAXIMUM_NAMED} more" if len(odd) > MAXIMUM_NAMED else ""
        which = ", ".join(odd[:MAXIMUM_NAMED]) + more
        raise _differs(parent, "target_modules", f"it has {len(names)} modules, this run {len(wanted)} ({which})")
    if differing:
        told = "; ".join(f"its {name} is {its}, this run's {ours}" for name, its, ours in differing)
        raise _differs(parent, differing[0][0], told)


def _differs(parent: InitialAdapter, field: str, told: str) -> InputRefused:
    return InputRefused(
        "PARENT_DIFFERS",
        f"Training cannot go on from {parent.model_version}: {told}.",
        field=field,
        hint="Leave out the options of the adapter's form: they are then those of that version.",
    )


def _damaged(parent: InitialAdapter, what: str) -> InputRefused:
    return InputRefused(
        "PARENT_DAMAGED",
        f"The adapter of {parent.model_version} {what}.",
        field="from_version",
        hint="Restore its files, or go on from another version.",
    )
