"""Which linear modules get an adapter, and whether the rank suits them. No torch: inspection asks, too."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from tunesmith.errors import InputRefused
from tunesmith.spec.training import ALL_LINEAR, TrainingSettings


def choose_targets(names: Sequence[str], *, targets: str | Sequence[str]) -> list[str]:
    """The names whose last parts equal one of `targets` (`q_proj`, `self_attn.q_proj`), or all of them.

    Raises InputRefused where a target fits no name, with the nearest ones that would.
    """
    if targets == ALL_LINEAR:
        return list(names)
    wanted = [targets] if isinstance(targets, str) else list(targets)
    for target in wanted:
        if not any(_ends_in(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            near = difflib.get_close_matches(target, known, n=3, cutoff=0.5) or known
            raise InputRefused(
                "UNKNOWN_TARGET_MODULE",
                f"--target-modules: {target[:100]!r} is not a linear module of this model.",
                field="target_modules",
                hint=f"Nearest: {', '.join(near)}. Or use all-linear.",
            )
    return [name for name in names if any(_ends_in(name, target) for target in wanted)]


def require_rank(name: str, in_features: int, out_features: int, *, settings: TrainingSettings) -> None:
    """Raises InputRefused where the adapter would be no smaller than what it adapts."""
    if settings.lora_rank > min(in_features, out_features):
        raise InputRefused(
            "RANK_TOO_LARGE",
            f"--lora-rank {settings.lora_rank} is above the smaller side of {name} "
            f"({in_features} in, {out_features} out).",
            field="lora_rank",
            hint=f"Use a rank of at most {min(in_features, out_features)}, or other target modules.",
        )


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)
