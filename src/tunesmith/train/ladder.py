"""What is given up, in which order, when memory runs out: half the packed rows of a forward pass, again and again, then
half of the layers computed twice, then all of them; then the run cannot go on.

Pure: in comes where the run stands, out comes the next rung with its price in words. The step is repeated as it was:
the global batch is the same, and dropout goes by a token's place in the step, so no rung changes what is learned.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    micro_batch_size: int
    checkpointed_layers: int
    told: str


def next_rung(*, micro_batch_size: int, checkpointed_layers: int, rows_in_forward: int, num_layers: int) -> Rung | None:
    """The rung below; None where there is none. rows_in_forward: packed rows of the largest forward of the step."""
    rows = min(micro_batch_size, rows_in_forward)
    if rows > 1:
        return Rung(
            micro_batch_size=rows // 2,
            checkpointed_layers=checkpointed_layers,
            told=f"a forward pass takes {rows // 2} packed row{'s' if rows // 2 > 1 else ''} in place of {rows}, at "
            "the same global batch; more and smaller passes take a few per cent longer",
        )
    half = -(-num_layers // 2)
    twice = half if checkpointed_layers < half else num_layers
    if checkpointed_layers >= num_layers:
        return None
    return Rung(
        micro_batch_size=micro_batch_size,
        checkpointed_layers=twice,
        told=f"{twice} of {num_layers} layers keep only their input and are computed twice; the steps take about "
        f"{twice / num_layers / 3:.0%} longer",
    )
