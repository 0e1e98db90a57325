"""The adapter on disk, in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

Tensors are float32, contiguous and sorted by name: equal adapters give equal bytes. The base's digest stands in the
tensor file's metadata (PEFT warns about keys that it does not know in the config), so an adapter finds out that it
met another base.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.files import write_json
from tunesmith.models.lora import (
    PARAMETER_A,
    LoraLinear,
    adapter_parameters,
    inject,
    linear_modules,
    lora_modules,
)
from tunesmith.models.tensor_file import TensorFile, open_regular, read_header, write_tensors
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
BASE_DIGEST_KEY = "tunesmith_base_digest"
_PREFIX = "base_model.model."
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


def save_adapter(folder: Path, model: nn.Module, *, settings: TrainingSettings, base: ModelFacts) -> None:
    """Write both files into an existing folder, each atomically, the weights first."""
    write_tensors(folder / WEIGHTS_NAME, adapter_bytes(model), {"format": "pt", BASE_DIGEST_KEY: base.digest})
    modules = lora_modules(model)
    write_json(
        folder / CONFIG_NAME,
        {
            "base_model_name_or_path": base.name,
            "bias": "none",
            "fan_in_fan_out": all(module.is_transposed for module in modules),
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": _whole(settings.lora_alpha),
            "lora_dropout": settings.lora_dropout,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": settings.lora_rank,
            "target_modules": _target_names(model, modules),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": settings.adapter == "rslora",
        },
    )


def adapter_bytes(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """PEFT's tensor names with (dtype, shape, bytes) of the model's adapter."""
    return {
        _PREFIX + name: ("F32", tuple(parameter.shape), _little_endian(parameter))
        for name, parameter in adapter_parameters(model).items()
    }


def load_adapter(folder: Path, model: nn.Module, *, base: ModelFacts | None = None) -> list[LoraLinear]:
    """Put a saved adapter (ours or PEFT's) on a base model, or its values into the adapter that the model carries.

    base: the facts of the model, whose digest is compared where the file has one. Raises InputRefused for an adapter
    that fits another base, MachineCannot for a kind that we do not compute.
    """
    config, header = _read_config(folder / CONFIG_NAME), read_header(folder / WEIGHTS_NAME)
    trained_on = header.metadata.get(BASE_DIGEST_KEY)
    if base is not None and trained_on is not None and trained_on != base.digest:
        raise InputRefused(
            "ADAPTER_OF_ANOTHER_BASE",
            f"The adapter was trained on {config.get('base_model_name_or_path')!r} with digest {trained_on[:12]}…, "
            f"this model has {base.digest[:12]}….",
            field=WEIGHTS_NAME,
        )
    shapes = _shapes_of(header)
    settings = _settings_of(config, shapes)
    if not lora_modules(model):
        known = linear_modules(model)
        unknown = sorted(name for name in settings.target_modules if name not in known)
        if unknown:
            raise _misfit(f"this model has no linear module {unknown[0][:200]!r} ({len(unknown)} such names)")
        for name in settings.target_modules:
            _require_fit(name, known[name], shapes)
        inject(model, settings=settings)
    parameters = adapter_parameters(model)
    if set(parameters) != set(shapes):
        raise _misfit(f"{len(set(parameters) ^ set(shapes))} tensors differ from the adapter in memory")
    _copy_into(parameters, folder / WEIGHTS_NAME)
    return lora_modules(model)


def adapter_settings(folder: Path) -> TrainingSettings:
    """The form of a saved adapter: rank, alpha, kind, and its modules by their full names. Raises InputRefused."""
    return _settings_of(_read_config(folder / CONFIG_NAME), _shapes_of(read_header(folder / WEIGHTS_NAME)))


def _shapes_of(header: TensorFile) -> dict[str, tuple[int, ...]]:
    for name in header.tensors:
        if not name.startswith(_PREFIX):
            raise InputRefused("BROKEN_ADAPTER", f"{name[:200]!r} is not a PEFT tensor name.", field=WEIGHTS_NAME)
    return {name.removeprefix(_PREFIX): entry.shape for name, entry in header.tensors.items()}


def _copy_into(parameters: dict[str, nn.Parameter], path: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(path)
    for name, parameter in parameters.items():
        value = stored[_PREFIX + name]
        if value.shape != parameter.shape:
            raise _misfit(f"{name} is {tuple(value.shape)}, the model needs {tuple(parameter.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise InputRefused("BROKEN_ADAPTER", f"{name} holds values that are not finite.", field=WEIGHTS_NAME)
        with torch.no_grad():
            parameter.copy_(value)


def _read_config(path: Path) -> dict[str, Any]:
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


def _settings_of(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TrainingSettings:
    """The settings that rebuild the adapter; its targets come from the tensors, never from a pattern in the config."""
    targets = sorted({name.rpartition(".lora_")[0] for name in shapes})
    expected = {f"{name}.lora_{side}.weight" for name in targets for side in "AB"}
    if not targets or expected != set(shapes):
        odd = sorted(expected ^ set(shapes))[:3]
        raise InputRefused(
            "BROKEN_ADAPTER", f"The adapter's tensors are not pairs of A and B: {odd}.", field=WEIGHTS_NAME
        )
    ranks = {shapes[f"{name}.{PARAMETER_A}"][0] for name in targets if shapes[f"{name}.{PARAMETER_A}"]}
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


def _require_fit(name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    out_features, in_features = reversed(weight.shape) if not isinstance(module, nn.Linear) else weight.shape
    found = (shapes[f"{name}.lora_A.weight"][1:], shapes[f"{name}.lora_B.weight"][:1])
    if found != ((in_features,), (out_features,)):
        raise _misfit(f"{name} has {in_features} in and {out_features} out, the adapter {found[0]} and {found[1]}")


def _misfit(fault: str) -> InputRefused:
    return InputRefused(
        "ADAPTER_OF_ANOTHER_BASE",
        f"The adapter does not fit this model: {fault}.",
        field=WEIGHTS_NAME,
        hint="Load the base that the adapter was trained on.",
    )


def _target_names(model: nn.Module, modules: list[LoraLinear]) -> list[str]:
    """Last parts of the names where those choose exactly our modules in PEFT, else the full names."""
    chosen = {module.name for module in modules}
    last_parts = {name.rpartition(".")[2] for name in chosen}
    others = (name for name in linear_modules(model) if name.removesuffix(".base") not in chosen)
    is_exact = not any(name.rpartition(".")[2] in last_parts for name in others)
    return sorted(last_parts) if is_exact else sorted(chosen)


def _little_endian(parameter: Tensor) -> bytes:
    array = parameter.detach().to("cpu", torch.float32).contiguous().numpy()
    return array.astype(np.dtype("<f4"), copy=False).tobytes()


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
