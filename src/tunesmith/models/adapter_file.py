"""The adapter on disk, in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

Tensors are float32, contiguous and sorted by name: equal adapters give equal bytes. The base's digest stands in the
tensor file's metadata (PEFT warns about keys that it does not know in the config), so an adapter finds out that it
met another base.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.errors import InputRefused
from tunesmith.files import write_json
from tunesmith.models.adapter_form import (
    BASE_DIGEST_KEY,
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    misfit,
    read_config,
    require_digest,
    settings_of,
    shapes_of,
)
from tunesmith.models.lora import (
    LoraLinear,
    adapter_parameters,
    inject,
    linear_modules,
    lora_modules,
)
from tunesmith.models.tensor_file import read_header, write_tensors
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import TrainingSettings


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
        PREFIX + name: ("F32", tuple(parameter.shape), _little_endian(parameter))
        for name, parameter in adapter_parameters(model).items()
    }


def load_adapter(folder: Path, model: nn.Module, *, base: ModelFacts | None = None) -> list[LoraLinear]:
    """Put a saved adapter (ours or PEFT's) on a base model, or its values into the adapter that the model carries.

    base: the facts of the model, whose digest is compared where the file has one. Raises InputRefused for an adapter
    that fits another base, MachineCannot for a kind that we do not compute.
    """
    config, header = read_config(folder / CONFIG_NAME), read_header(folder / WEIGHTS_NAME)
    if base is not None:
        require_digest(header, base, named=config.get("base_model_name_or_path"))
    shapes = shapes_of(header)
    settings = settings_of(config, shapes)
    if not lora_modules(model):
        known = linear_modules(model)
        unknown = sorted(name for name in settings.target_modules if name not in known)
        if unknown:
            raise misfit(f"this model has no linear module {unknown[0][:200]!r} ({len(unknown)} such names)")
        for name in settings.target_modules:
            _require_fit(name, known[name], shapes)
        inject(model, settings=settings)
    parameters = adapter_parameters(model)
    if set(parameters) != set(shapes):
        raise misfit(f"{len(set(parameters) ^ set(shapes))} tensors differ from the adapter in memory")
    _copy_into(parameters, folder / WEIGHTS_NAME)
    return lora_modules(model)


def _copy_into(parameters: dict[str, nn.Parameter], path: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(path)
    for name, parameter in parameters.items():
        value = stored[PREFIX + name]
        if value.shape != parameter.shape:
            raise misfit(f"{name} is {tuple(value.shape)}, the model needs {tuple(parameter.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise InputRefused("BROKEN_ADAPTER", f"{name} holds values that are not finite.", field=WEIGHTS_NAME)
        with torch.no_grad():
            parameter.copy_(value)


def _require_fit(name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    out_features, in_features = reversed(weight.shape) if not isinstance(module, nn.Linear) else weight.shape
    found = (shapes[f"{name}.lora_A.weight"][1:], shapes[f"{name}.lora_B.weight"][:1])
    if found != ((in_features,), (out_features,)):
        raise misfit(f"{name} has {in_features} in and {out_features} out, the adapter {found[0]} and {found[1]}")


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
