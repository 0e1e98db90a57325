"""The versions of everything that touches a run's numbers: part of the promise of bit-exact resume."""

from __future__ import annotations

import platform
from importlib import metadata

from tunesmith import __version__

NUMERIC_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")


def numeric_versions() -> dict[str, str]:
    """Library -> version, with `python` and `machine` (processor architecture). Imports none of them."""
    versions = {name: metadata.version(name) for name in NUMERIC_LIBRARIES}
    return {
        **versions,
        "tunesmith": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
