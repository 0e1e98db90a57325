"""Loading a base model: transformers' own module, frozen, with our attention for packed documents.

In comes an inspected folder (`inspect.py`); out comes a causal language model without a gradient, dropout off.
Nothing is fetched, no remote code runs, only safetensors are read, and a tensor that the architecture needs and the
files lack is an error: transformers would fill it with random values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.models import attention, skeleton
from tunesmith.models.folder import ModelFolder, digest_of, read_folder
from tunesmith.models.weights import read_tensors
from tunesmith.spec.models import ModelFacts

_LISTED = 5  # names in a message


def load_base(
    facts: ModelFacts,
    *,
    dtype: torch.dtype,
    device: torch.device,
    cache_folder: Path | None = None,
    trains_only: bool = False,
) -> nn.Module:
    """The frozen model of an inspected folder, in eval mode (the base's own dropout stays off in training, too).

    trains_only: a module of our own may stand in that computes packed batches alone (`skeleton.py`), so that training
    starts without transformers. On a GPU only the fast path can use it.

    The folder is looked at and hashed again: what is loaded is what was inspected. cache_folder: where hashes of large
    files are kept. Raises InputRefused for a folder that has changed, and where tensors are missing, of the wrong shape
    or of no use to the architecture's modules.
    """
    folder = read_folder(Path(facts.path))
    if digest_of(folder, cache_folder=cache_folder) != facts.digest:
        raise InputRefused(
            "SOURCE_CHANGED",
            f"The files of {facts.name} are not the ones that were inspected.",
            field="model",
            hint="Start a new run from the model as it is now, or restore its files.",
        )
    if trains_only and skeleton.why_not(folder.config) is None:
        return _load_skeleton(facts, folder, dtype=dtype, device=device)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM  # heavy: only a worker that loads needs it
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    attention.register()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            facts.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention.NAME,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # reported instead, and refused below by name
            output_loading_info=True,
        )
    except StrictDataclassError as error:
        raise InputRefused(
            "BROKEN_CONFIG",
            f"config.json of {facts.name} contradicts itself: {' '.join(str(error).split())[:300]}",
            field="config.json",
            hint="Take config.json from the model's own source.",
        ) from error
    except (ValueError, RuntimeError, OSError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RuntimeError) and "memory" in str(error).lower():
            raise MachineCannot("OUT_OF_MEMORY", f"{facts.name} does not fit into memory.", field="model") from error
        raise InputRefused(
            "MODEL_UNLOADABLE",
            f"{facts.name}: transformers cannot build the model that config.json names ({type(error).__name__}: "
            f"{str(error)[:300]}).",
            field="model",
            hint="Take config.json and the weights from one model, whole.",
        ) from error
    model, report = loaded
    _require_whole(facts, model, report)
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    return model.to(device)


def _load_skeleton(facts: ModelFacts, folder: ModelFolder, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    model = skeleton.build(facts, folder.config)
    wanted = dict(model.named_parameters())  # a tied head is the embedding and has no name of its own
    report: dict[str, Any] = {"missing_keys": set(wanted), "mismatched_keys": [], "unexpected_keys": []}
    for file in folder.weights:
        taken: list[str] = []
        for name, entry in file.tensors.items():
            if name not in wanted:
                if not name.endswith(("rotary_emb.inv_freq", "lm_head.weight")):  # old files hold the angles
                    report["unexpected_keys"].append(name)
                continue
            report["missing_keys"].discard(name)
            if tuple(entry.shape) != tuple(wanted[name].shape):
                report["mismatched_keys"].append((name, entry.shape, wanted[name].shape))
                continue
            taken.append(name)
        for name, values in read_tensors(file, taken, device=device):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Parameter(values.to(dtype), requires_grad=False))
    if facts.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    _require_whole(facts, model, report)
    model.model.rotary_emb.to(device)
    return model.requires_grad_(False).eval()


def _require_whole(facts: ModelFacts, model: Any, report: dict[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputRefused(
            "MISSING_TENSORS",
            f"{facts.name} lacks {len(missing)} tensors that its architecture needs: {_listed(missing)}.",
            field="model",
            hint="Copy or download the model again; a file may be missing.",
        )
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, stored, needed = wrong[0]
        raise InputRefused(
            "SHAPE_MISMATCH",
            f"{facts.name} has {len(wrong)} tensors of the wrong shape: {name} is {list(stored)}, "
            f"config.json asks for {list(needed)}.",
            field="model",
            hint="Take config.json and the weights from one model.",
        )
    # Tensors beside the body (another head, say) are named by the inspection; inside of it they change the results.
    body = f"{type(model).base_model_prefix}."
    unused = sorted(name for name in report["unexpected_keys"] if name.startswith(body))
    if unused:
        raise InputRefused(
            "UNEXPECTED_TENSORS",
            f"{facts.name} has {len(unused)} tensors that the architecture of config.json has no place for: "
            f"{_listed(unused)}.",
            field="model",
            hint="Check config.json: it may switch off parts of the model (biases, norms) that the files hold.",
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
