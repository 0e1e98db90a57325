"""What is shipped about models: the facts of the bundled one, and the file of well-known ones; each read once.

In: nothing. Out: `ModelFacts`, `KnownModels`, checked strictly: a file that breaks its own rules is a fault of ours.
"""

from __future__ import annotations

from functools import cache, lru_cache

from tunesmith.bundled import KNOWN_MODELS, MODEL_FACTS, MODEL_FOLDER
from tunesmith.spec.explorer import QuantisedSize, quantised_size
from tunesmith.spec.known_models import KnownModel, KnownModels
from tunesmith.spec.models import ModelFacts


@lru_cache(maxsize=1)
def bundled_facts() -> ModelFacts:
    """Of the bundled model; its folder moves with the installation."""
    facts = ModelFacts.model_validate_json(MODEL_FACTS.read_bytes())
    return facts.model_copy(update={"path": str(MODEL_FOLDER)})


@lru_cache(maxsize=1)
def known_models() -> KnownModels:
    return KnownModels.model_validate_json(KNOWN_MODELS.read_bytes())


def find_known(name: str | None) -> KnownModel | None:
    """By its hub id; upper and lower case do not count there."""
    if name is None:
        return None
    return next((model for model in known_models().models if model.name.lower() == name.lower()), None)


@cache
def known_quantised(name: str) -> QuantisedSize | None:
    """name: of one that is known. Kept, since every list of cards asks it of all of them."""
    known = find_known(name)
    sizes = known.sizes() if known is not None else None
    return quantised_size(sizes, known.weight_bytes) if known is not None and sizes is not None else None
