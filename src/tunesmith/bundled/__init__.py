"""The bundled base model `tunesmith/demo` and its dataset: paths, and the settings that the demo trains with.

Both were made by `scripts/make_demo_model.py`; `model/README.md` says how. Beside them lie the model's facts, as an
inspection finds them (a test holds them against one), and those of well-known models; `catalog/known.py` reads both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL_NAME = "tunesmith/demo"
MODEL_FOLDER = Path(__file__).parent / "model"
MODEL_FACTS = Path(__file__).parent / "model_facts.json"
TRAINING_ROWS = Path(__file__).parent / "data" / "train.jsonl"
KNOWN_MODELS = Path(__file__).parent / "known_models.json"
VALIDATION_ROWS = Path(__file__).parent / "data" / "validation.jsonl"

# A model of a few million parameters moves with a far higher rate than one of billions.
DEMO_SETTINGS: dict[str, Any] = {"epochs": 3, "learning_rate": 4e-3, "validation_fraction": 0.0}
