"""The form of an adapter in PEFT's format, read without torch: its config, its tensors' names and shapes, its values.

In: a folder with `adapter_config.json` and `adapter_model.safetensors`. Out: the settings that rebuild it, or a
refusal; and, for one that was trained elsewhere, whether it fits a base. Nothing is loaded into a model here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.models.tensor_file import TensorEntry, TensorFile, open_regular, read_header
from tunesmith.spec.datasets import AdapterFacts
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
BASE_DIGEST_KEY = "tunesmith_base_digest"
PREFIX = "base_model.model."
# Bit patterns of a stored value: (type, bits of the exponent, all bits but the sign's).
FLOATS = {"F32": ("<u4", 0x7F80_0000, 0x7FFF_FFFF), "F16": ("<u2", 0x7C00, 0x7FFF), "BF16": ("<u2", 0x7F80, 0x7FFF)}
_MAXIMUM_CONFIG_BYTES = 1 << 20
# PEFT's options that change what an adapter computes, and the value that ours has.
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "megatron_config": (None,),
}


def inspect_adapter(folder: Path, base: ModelFacts) -> AdapterFacts:
    """An adapter that was trained elsewhere, every check against this base passed.

    Raises InputRefused (ADAPTER_OF_ANOTHER_BASE, BROKEN_ADAPTER, ADAPTER_WITHOUT_EFFECT), MachineCannot for a kind that
    we do not compute.
    """
    config, header = read_config(folder / CONFIG_NAME), read_header(folder / WEIGHTS_NAME)
    named = config.get("base_model_name_or_path")
    digest = require_digest(header, base, named=named)
    shapes = shapes_of(header)
    settings = settings_of(config, shapes)
    modules = {module.name: module for module in base.linear_modules}
    for name in settings.target_modules:
        if name not in modules:
            raise misfit(f"{base.name} has no linear module {name[:200]!r}")
        wanted = ((settings.lora_rank, modules[name].in_features), (modules[name].out_features, settings.lora_rank))
        found = (shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"])
        if found != wanted:
            raise misfit(
                f"{name} needs A {list(wanted[0])} and B {list(wanted[1])}, it has {list(found[0])} and "
                f"{list(found[1])}"
            )
    _require_values(folder / WEIGHTS_NAME, header)
    return AdapterFacts(
        settings=settings,
        base_named=named[:400] if isinstance(named, str) else None,
        base_digest=digest,
        parameters=sum(entry.values for entry in header.tensors.values()),
    )


def require_digest(header: TensorFile, base: ModelFacts, *, named: Any) -> str | None:
    """The digest of the base that the file names, where it names one: it has to be this base's."""
    trained_on = header.metadata.get(BASE_DIGEST_KEY)
    if trained_on is not None and trained_on != base.digest:
        raise InputRefused(
            "ADAPTER_OF_ANOTHER_BASE",
            f"The adapter was trained on {named!r} with digest {trained_on[:12]}…, {base.name} has "
            f"{base.digest[:12]}….",
            field=WEIGHTS_NAME,
            hint="Name the base that the adapter was trained on.",
        )
    return trained_on


def _require_values(path: Path, header: TensorFile) -> None:
    """Every value finite, and at least one matrix B that is not zero: else the adapter does nothing."""
    start = header.size - max(entry.end for entry in header.tensors.values())
    has_effect = False
    with path.open("rb") as handle:
        for name, entry in header.tensors.items():
            values = _bits(handle, entry, start=start, name=name)
            kind = FLOATS[entry.dtype]
            if bool(((values & kind[1]) == kind[1]).any()):
                raise InputRefused(
                    "BROKEN_ADAPTER",
                    f"{name[:200]} holds values that are not finite.",
                    field=WEIGHTS_NAME,
                    hint="Its training broke down; take an earlier checkpoint.",
                )
            has_effect |= ".lora_B." in name and bool((values & kind[2]).any())
    if not has_effect:
        raise InputRefused(
            "ADAPTER_WITHOUT_EFFECT",
            "All matrices B of the adapter are zero: it changes nothing.",
            field=WEIGHTS_NAME,
            hint="It is as it was before its training; take the file that training wrote.",
        )


def _bits(handle: Any, entry: TensorEntry, *, start: int, name: str) -> Any:
    if entry.dtype not in FLOATS:
        raise InputRefused(
            "BROKEN_ADAPTER",
            f"{name[:200]} is {entry.dtype}; adapters are {', '.join(FLOATS)}.",
            field=WEIGHTS_NAME,
            hint="Save the adapter in one of these types.",
        )
    handle.seek(start + entry.start)
    return np.frombuffer(handle.read(entry.end - entry.start), dtype=FLOATS[entry.dtype][0])


def adapter_settings(folder: Path) -> TrainingSettings:
    """The form of a saved adapter: rank, alpha, kind, and its modules by their full names. Raises InputRefused."""
    return settings_of(read_config(folder / CONFIG_NAME), shapes_of(read_header(folder / WEIGHTS_NAME)))


def shapes_of(header: TensorFile) -> dict[str, tuple[int, ...]]:
    for name in header.tensors:
        if not name.startswith(PREFIX):
            raise InputRefused("BROKEN_ADAPTER", f"{name[:200]!r} is not a PEFT tensor name.", field=WEIGHTS_NAME)
    return {name.removeprefix(PREFIX): entry.shape for name, entry in header.tensors.items()}


def read_config(path: Path) -> dict[str, Any]:
    with os.fdopen(open_regular(path), "rb") as handle:
        raw = handle.read(_MAXIMUM_CONFIG_BYTES + 1)
    try:
        if len(raw) > _MAXIMUM_CONFIG_BYTES:
            raise ValueError("too large")
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputRefused("BROKEN_ADAPTER", f"{path.name} is not JSON ({error}).", field=path.name) from error
    if not isinstance(config, dict):
        raise InputRefused("BROKEN_ADAPTER", f"{path.name} is not an object.", field=path.name)
    for key, values in _PLAIN_VALUES.items():
        if key in config and config[key] not in values:
            raise MachineCannot(
                "NOT_BUILT", f"{path.name}: adapters with {key} = {str(config[key])[:100]} are not built.", field=key
            )
    return config


def settings_of(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TrainingSettings:
    """The settings that rebuild the adapter; its targets come from the tensors, never from a pattern in the config."""
    targets = sorted({name.rpartition(".lora_")[0] for name in shapes})
    expected = {f"{name}.lora_{side}.weight" for name in targets for side in "AB"}
    if not targets or expected != set(shapes):
        odd = sorted(expected ^ set(shapes))[:3]
        raise InputRefused(
            "BROKEN_ADAPTER", f"The adapter's tensors are not pairs of A and B: {odd}.", field=WEIGHTS_NAME
        )
    ranks = {shapes[f"{name}.lora_A.weight"][0] for name in targets if shapes[f"{name}.lora_A.weight"]}
    if ranks != {config.get("r")}:
        raise InputRefused(
            "BROKEN_ADAPTER", f"r is {config.get('r')!r}, the tensors have {sorted(ranks)[:5]}.", field=CONFIG_NAME
        )
    try:
        return TrainingSettings.model_validate(
            {
                "lora_rank": config["r"],
                "lora_alpha": config["lora_alpha"],
                "lora_dropout": config.get("lora_dropout", 0.0),
                "adapter": "rslora" if config.get("use_rslora") else "lora",
                "target_modules": tuple(targets),
            }
        )
    except (ValueError, KeyError) as error:
        raise InputRefused("BROKEN_ADAPTER", f"{CONFIG_NAME}: {str(error)[:300]}", field=CONFIG_NAME) from error


def misfit(fault: str) -> InputRefused:
    return InputRefused(
        "ADAPTER_OF_ANOTHER_BASE",
        f"The adapter does not fit this model: {fault}.",
        field=WEIGHTS_NAME,
        hint="Load the base that the adapter was trained on.",
    )
