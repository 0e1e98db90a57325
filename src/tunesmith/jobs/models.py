"""From the MODEL argument to a local folder, without touching the network.

In: what the user wrote. Out: a name to show and a folder, or a refusal. The catalog holds the bundled model; the
service's registry will stand beside it.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.spec.paths import SKELETON_MODEL_TYPES
from tunesmith.storage.locations import is_uri, local_path

MAXIMUM_LOOK = 1 << 20  # bytes of config.json
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    name: str
    path: Path


def find_model(model: str) -> FoundModel:
    """Raises InputRefused for a name that is nothing we know, MachineCannot for a hub id that was not downloaded."""
    if model == MODEL_NAME:
        return FoundModel(name=MODEL_NAME, path=MODEL_FOLDER)
    path = local_path(model, field="MODEL")
    if path.is_dir():
        return FoundModel(name=path.name or str(path), path=path)
    if path.exists():
        raise InputRefused(
            "MODEL_NOT_A_FOLDER",
            f"MODEL {model!r} is a file: a model is a folder with config.json, tokenizer and safetensors.",
            field="model",
            hint="Name the folder that holds it.",
        )
    near = difflib.get_close_matches(model.lower(), [MODEL_NAME, MODEL_NAME.rpartition("/")[2]], n=1, cutoff=0.75)
    meant = f"Did you mean {MODEL_NAME}? " if near else ""
    if HUB_ID.fullmatch(model):
        raise MachineCannot(
            "NOT_BUILT",
            f"MODEL {model!r} is no name in the catalog and no folder. It looks like a hub id; a job that downloads "
            "its model by itself is not built yet.",
            field="model",
            hint=f"{meant}`tunesmith model download {model}` fetches it, under this name; or take {MODEL_NAME}.",
        )
    looks_like_path = is_uri(model) or "/" in model or model.startswith((".", "~"))
    raise InputRefused(
        "MODEL_NOT_FOUND",
        f"MODEL {model!r}: there is no such folder."
        if looks_like_path
        else f"MODEL {model!r} is no name in the catalog, no folder, and no hub id (those hold a slash).",
        field="model",
        hint=f"{meant}Name a model folder, or {MODEL_NAME}, the model that comes with Tunesmith.",
    )


def needs_transformers(model: str, *, device: str, path: str) -> bool:
    """Whether training it starts with importing transformers: a guess from config.json, before anything is checked."""
    if device != "cpu" and path == "generic":
        return True
    try:
        config: Any = json.loads((find_model(model).path / "config.json").read_bytes()[:MAXIMUM_LOOK])
    except (TunesmithError, OSError, ValueError):
        return False  # refused in a moment, or loaded a little later
    kind = cast("dict[str, Any]", config).get("model_type") if isinstance(config, dict) else None
    return kind is not None and kind not in SKELETON_MODEL_TYPES
