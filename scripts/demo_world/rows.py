"""The bundled dataset: conversations with a one-sentence summary, as prompt and completion.

In: a seed. Out: training and validation rows that share no conversation, no pair of names, no combination of facts and
no combination of wordings: in each validation row someone has a name that no training row holds, and both the facts
(what, when, where) and the wordings of the lines are combinations from a part that training never draws from.
"""

import random
import zlib
from collections.abc import Callable

from demo_world.scenes import KINDS, Scene, draw_scene
from demo_world.words import NAMES_HELD_OUT, Person, known_person

NUM_TRAINING_ROWS = 400
NUM_VALIDATION_ROWS = 64
# One in so many combinations is held out.
_PARTS = 4

Row = dict[str, str]


def _is_held_out(text: str) -> bool:
    return zlib.crc32(text.encode()) % _PARTS == 0


def as_row(scene: Scene) -> Row:
    return {"prompt": f"Summarize this dialog:\n{scene.dialogue}\n---\nSummary:\n", "completion": scene.summary}


def _seen_person(rng: random.Random) -> Person:
    while (person := known_person(rng)).name in NAMES_HELD_OUT:
        pass
    return person


def _draw_rows(
    rng: random.Random, count: int, *, person: Callable[[random.Random], Person], accept: Callable[[Scene], bool]
) -> list[Row]:
    kinds = tuple(KINDS)
    rows: dict[str, Row] = {}
    while len(rows) < count:
        scene = draw_scene(rng, person, kinds[len(rows) % len(kinds)])
        # The well-known example with these two names belongs to another dataset.
        if accept(scene) and {person.name for person in scene.speakers} != {"Amanda", "Jerry"}:
            rows.setdefault(scene.dialogue, as_row(scene))
    drawn = list(rows.values())
    rng.shuffle(drawn)
    return drawn


def bundled_rows(seed: int) -> tuple[list[Row], list[Row]]:
    """Training rows and validation rows, the same for the same seed on every machine."""
    rng = random.Random(f"bundled rows {seed}")  # a string seed is hashed the same way everywhere

    def for_training(scene: Scene) -> bool:
        return not _is_held_out(f"{scene.kind} facts {scene.facts}") and not _is_held_out(
            f"{scene.kind} forms {scene.forms}"
        )

    def for_validation(scene: Scene) -> bool:
        return (
            _is_held_out(f"{scene.kind} facts {scene.facts}")
            and _is_held_out(f"{scene.kind} forms {scene.forms}")
            and any(person.name in NAMES_HELD_OUT for person in scene.speakers)
        )

    training = _draw_rows(rng, NUM_TRAINING_ROWS, person=_seen_person, accept=for_training)
    validation = _draw_rows(rng, NUM_VALIDATION_ROWS, person=known_person, accept=for_validation)
    return training, validation
