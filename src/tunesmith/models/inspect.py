"""The inspect worker: what a model folder is, before anything loads it, and what its tokenizer makes of datasets.

`python -m tunesmith.models.inspect request.json` reads an InspectRequest and ends with an InspectResponse as the last
line of standard output, refusals included. Facts come from config.json, the safetensors headers and the tokenizer:
neither torch nor transformers is imported (a bare tokenizer.model is the exception), so an answer takes well under a
second.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.models.families import family_of
from tunesmith.models.folder import ModelFolder, digest_of, read_folder
from tunesmith.models.targets import choose_targets, require_rank
from tunesmith.models.tensor_file import TensorEntry
from tunesmith.spec.datasets import InspectRequest, InspectResponse
from tunesmith.spec.families import LINEAR_SIZES, Family
from tunesmith.spec.models import LinearModule, ModelFacts

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
HEAD = "lm_head.weight"
# Those of transformers (`su`: an older name of longrope); with another one it fails while it builds the model.
ROPE_KINDS = frozenset({"default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "proportional"})
_ONE_MODEL = "Take config.json and the weights from one model."
_LICENCE = re.compile(r"^license(?:_name)?:\s*['\"]?([A-Za-z0-9][\w.+-]{0,60})", re.MULTILINE)
_MAXIMUM_SIZE = 1 << 40


def inspect_model(path: Path | str, name: str, *, cache_folder: Path | None = None) -> ModelFacts:
    """The facts of a folder, every check passed.

    name: what the user called it. cache_folder: keeps hashes of large files between calls. Raises InputRefused for a
    folder that is broken or unsafe, MachineCannot for a kind of model that is not built yet.
    """
    path = Path(path).absolute()
    folder = read_folder(path)
    config = folder.config
    _require_not_quantised(folder)
    family = family_of(config)
    tensors = _by_full_name(folder.tensors(), family)
    num_layers = _size(config, family.num_layers, "num_hidden_layers")
    hidden_size = _size(config, family.hidden_size, "hidden_size")
    num_heads = _size(config, family.num_heads, "num_attention_heads")
    is_tied = bool(config.get("tie_word_embeddings", family.ties_by_default))
    vocabulary_size = _require_ends(tensors, family, config, hidden_size=hidden_size, is_tied=is_tied)
    linear = _linear_modules(tensors, family, num_layers)
    _require_sizes(linear, family, config, hidden_size=hidden_size, num_heads=num_heads)
    beside = sorted(key for key in tensors if key != HEAD and not key.startswith(family.prefix))
    counted = {key: entry for key, entry in tensors.items() if not (is_tied and key == HEAD)}
    notices = list(folder.notices)
    if beside:
        notices.append(f"{len(beside)} tensors are not used by {family.architecture}: {', '.join(beside[:5])}.")
    context_length = _context_length(config, family, notices)
    tokens = _tokens(path, vocabulary_size=vocabulary_size, notices=notices)
    return ModelFacts(
        name=name,
        path=str(path),
        digest=digest_of(folder, cache_folder=cache_folder),
        architecture=family.architecture,
        model_type=family.model_type,
        parameters=sum(entry.values for entry in counted.values()),
        weight_bytes=sum(entry.end - entry.start for entry in counted.values()),
        dtype=_dtype(counted),
        context_length=context_length,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=_size(config, "num_key_value_heads", default=num_heads),
        head_dim=_size(config, "head_dim", default=family.head_dim or hidden_size // num_heads),
        intermediate_size=_size(config, family.intermediate_size, "intermediate_size", default=4 * hidden_size),
        vocabulary_size=vocabulary_size,
        tied_embeddings=is_tied,
        rope_kind=_rope_kind(config),
        activation=str(config.get("hidden_act") or config.get("hidden_activation") or "silu")[:40],
        licence=_licence(path),
        linear_modules=linear,
        notices=notices,
        **tokens,
    )


def _rope_kind(config: Mapping[str, Any]) -> str:
    """`rope_type` of whichever of the two keys holds it; `mixed` where layers differ (Gemma 3)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(scaling, dict):
        return "default"
    if any(isinstance(value, dict) for value in scaling.values()):
        return "mixed"
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")[:40]
    if kind not in ROPE_KINDS:
        raise InputRefused(
            "BROKEN_CONFIG",
            f"config.json: the rope scaling {kind!r} is not known; known are {', '.join(sorted(ROPE_KINDS))}.",
            field="config.json",
            hint=_ONE_MODEL,
        )
    return kind


def answer(request: InspectRequest) -> InspectResponse:
    """Inspect, and prepare the datasets where there are any. Raises the first refusal."""
    cache = Path(request.cache_folder) if request.cache_folder else None
    facts = inspect_model(request.model_path, request.model_name, cache_folder=cache)
    if request.settings is not None:
        sizes = {module.name: module for module in facts.linear_modules}
        for name in choose_targets(list(sizes), targets=request.settings.target_modules):
            module = sizes[name]
            require_rank(name, module.in_features, module.out_features, settings=request.settings)
    if request.adapter_path is not None:
        from tunesmith.models.adapter_form import inspect_adapter  # numpy: not needed for the folder alone

        return InspectResponse(facts=facts, adapter=inspect_adapter(Path(request.adapter_path), facts))
    if not request.datasets:
        return InspectResponse(facts=facts)
    if request.settings is None or cache is None:
        raise TunesmithError("BAD_REQUEST", "An inspection with datasets needs settings and a cache folder.")
    from tunesmith.data.prepare import prepare  # numpy and tokenizers: not needed for the folder alone

    prepared = prepare(
        request.datasets,
        settings=request.settings,
        base=facts,
        cache_folder=cache,
    )
    summary = prepared.summary
    if request.preview is not None:
        from tunesmith.data.preview import previews

        shown = previews(prepared, request.preview, seed=request.settings.seed)
        summary = summary.model_copy(update={"previews": shown})
    return InspectResponse(facts=facts, preparation=summary)


def _by_full_name(tensors: dict[str, TensorEntry], family: Family) -> dict[str, TensorEntry]:
    """Tensors under the causal model's names: files saved from the body alone lack its prefix (the first GPT-2)."""
    if any(name.startswith(family.prefix) for name in tensors):
        return tensors
    return {name if name == HEAD else family.prefix + name: entry for name, entry in tensors.items()}


def _require_not_quantised(folder: ModelFolder) -> None:
    for key in ("quantization_config", "compression_config"):
        found: Any = folder.config.get(key)
        if found:
            kind = found.get("quant_method", "unknown") if isinstance(found, Mapping) else found
            raise MachineCannot(
                "NOT_BUILT",
                f"{folder.path.name} is quantised ({str(kind)[:60]}); quantised bases are not built yet.",
                field="model",
                hint="Use the model's float32, bfloat16 or float16 weights.",
            )
    for file in folder.weights:
        for name, entry in file.tensors.items():
            if entry.dtype not in DTYPES and name.endswith(".weight"):
                raise MachineCannot(
                    "NOT_BUILT",
                    f"{file.path.name}: {name[:200]!r} is {entry.dtype}; weights must be float32, bfloat16 or float16.",
                    field="model",
                    hint="Use the model's float32, bfloat16 or float16 weights.",
                )


def _size(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    if type(value) is not int or not 1 <= value < _MAXIMUM_SIZE:
        raise InputRefused(
            "BROKEN_CONFIG",
            f"config.json: {keys[0]} is {str(value)[:60]!r}; a whole number from 1 on is needed.",
            field="config.json",
            hint=_ONE_MODEL,
        )
    return value


def _require_ends(
    tensors: Mapping[str, TensorEntry], family: Family, config: Mapping[str, Any], *, hidden_size: int, is_tied: bool
) -> int:
    """Embedding and head are there and fit the config. Returns the embedding's rows."""
    vocabulary_size = _size(config, "vocab_size")
    embedding = f"{family.prefix}{family.embedding}.weight"
    for name in (embedding,) if is_tied else (embedding, HEAD):
        entry = tensors.get(name)
        if entry is None:
            raise _missing([name])
        if entry.shape != (vocabulary_size, hidden_size):
            raise InputRefused(
                "SHAPE_MISMATCH",
                f"{name} is {list(entry.shape)}; config.json says [{vocabulary_size}, {hidden_size}].",
                field="config.json",
                hint=_ONE_MODEL,
            )
    padding = config.get("pad_token_id")
    if padding is not None and (type(padding) is not int or not -vocabulary_size <= padding < vocabulary_size):
        raise InputRefused(
            "BROKEN_CONFIG",
            f"config.json: pad_token_id is {str(padding)[:60]!r}; the vocabulary has {vocabulary_size} tokens.",
            field="config.json",
            hint="Name a token of the vocabulary, or take the key out.",
        )
    return vocabulary_size


def _linear_modules(tensors: Mapping[str, TensorEntry], family: Family, num_layers: int) -> list[LinearModule]:
    """Linear modules with their sizes, in the order of the layers; every layer is whole.

    Raises InputRefused for layers that lack tensors or that config.json does not count.
    """
    pattern = re.compile(re.escape(f"{family.prefix}{family.layers}.") + r"(\d+)\.(.+)")
    layers: dict[int, dict[str, TensorEntry]] = {}
    for name, entry in tensors.items():
        if found := pattern.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = entry
    beyond = sorted(number for number in layers if number >= num_layers)
    if beyond:
        raise InputRefused(
            "SHAPE_MISMATCH",
            f"The files hold layer {beyond[0]}; config.json says {num_layers} layers (0 to {num_layers - 1}).",
            field="config.json",
            hint=_ONE_MODEL,
        )
    if num_layers > len(tensors):
        raise _missing([f"{family.prefix}{family.layers}.{len(layers)}.{family.linear[0]}.weight"])
    usual = set[str]().union(*layers.values()) - {"attn.bias", "attn.masked_bias"} if layers else set[str]()
    wanted = usual | {f"{linear}.weight" for linear in family.linear}
    modules: list[LinearModule] = []
    missing: list[str] = []
    for number in range(num_layers):
        parts = layers.get(number, {})
        prefix = f"{family.prefix}{family.layers}.{number}."
        missing += [prefix + name for name in sorted(wanted - set(parts) - {"self_attn.rotary_emb.inv_freq"})]
        for linear in family.linear:
            entry = parts.get(f"{linear}.weight")
            if entry is None:
                continue
            if len(entry.shape) != 2 or prod(entry.shape) == 0:
                raise InputRefused(
                    "SHAPE_MISMATCH",
                    f"{prefix}{linear}.weight is {list(entry.shape)}, not a matrix.",
                    field="model",
                    hint="Copy or download the model again.",
                )
            first = layers[0].get(f"{linear}.weight", entry) if 0 in layers else entry
            if entry.shape != first.shape:
                raise InputRefused(
                    "SHAPE_MISMATCH",
                    f"{prefix}{linear}.weight is {list(entry.shape)}; the same matrix of layer 0 is "
                    f"{list(first.shape)}.",
                    field="model",
                    hint="Copy or download the model again; its files do not belong together.",
                )
            out_features, in_features = reversed(entry.shape) if family.is_transposed else entry.shape
            modules.append(LinearModule(name=prefix + linear, in_features=in_features, out_features=out_features))
    if missing:
        raise _missing(missing)
    return modules


def _require_sizes(
    linear: Sequence[LinearModule], family: Family, config: Mapping[str, Any], *, hidden_size: int, num_heads: int
) -> None:
    """The matrices have the sizes that config.json names. What it does not name, the architecture knows by itself."""
    own_head_dim = config.get("head_dim") is not None or family.head_dim is not None
    if not own_head_dim and hidden_size % num_heads:
        raise InputRefused(
            "BROKEN_CONFIG",
            f"config.json: {family.hidden_size} {hidden_size} is no multiple of {family.num_heads} {num_heads}.",
            field="config.json",
            hint=_ONE_MODEL,
        )
    head_dim = _size(config, "head_dim", default=family.head_dim or hidden_size // num_heads)
    sizes: dict[str, int | None] = {"hidden": hidden_size, "query": num_heads * head_dim, "key": None, "middle": None}
    if config.get("num_key_value_heads") is not None:
        num_key_value_heads = _size(config, "num_key_value_heads")
        if num_heads % num_key_value_heads:
            raise InputRefused(
                "BROKEN_CONFIG",
                f"config.json: num_attention_heads {num_heads} is no multiple of num_key_value_heads "
                f"{num_key_value_heads}.",
                field="config.json",
                hint=_ONE_MODEL,
            )
        sizes["key"] = num_key_value_heads * head_dim
    if config.get(family.intermediate_size) is not None:
        sizes["middle"] = _size(config, family.intermediate_size)
    for module in linear:
        named = LINEAR_SIZES[".".join(module.name.rsplit(".", 2)[1:])]
        wanted = tuple(sizes.get(name) for name in named)  # fused ones are held against layer 0 alone
        found = (module.in_features, module.out_features)
        if any(want not in (None, size) for want, size in zip(wanted, found, strict=True)):
            raise InputRefused(
                "SHAPE_MISMATCH",
                f"{module.name} has {found[0]} inputs and {found[1]} outputs; config.json asks for "
                f"{' and '.join('any' if want is None else str(want) for want in wanted)}.",
                field="config.json",
                hint=_ONE_MODEL,
            )


def _missing(names: list[str]) -> InputRefused:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return InputRefused(
        "MISSING_TENSORS",
        f"The files lack {len(names)} tensors that the architecture needs: {', '.join(names[:5])}{more}.",
        field="model",
        hint="Copy or download the model again; a file may be missing.",
    )


def _dtype(tensors: Mapping[str, TensorEntry]) -> str:
    """The dtype of most of the bytes."""
    totals: dict[str, int] = {}
    for entry in tensors.values():
        totals[entry.dtype] = totals.get(entry.dtype, 0) + entry.end - entry.start
    return DTYPES[max(totals, key=lambda dtype: totals[dtype])]


def _context_length(config: Mapping[str, Any], family: Family, notices: list[str]) -> int:
    """Positions that one set of rotary factors serves.

    With `longrope` and `dynamic` the factors change with the longest row of a batch, so packed and single rows would
    differ: such models are used up to their original context.
    """
    whole = _size(config, family.context_length, "max_position_embeddings")
    rope: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) not in ("longrope", "su", "dynamic"):
        return whole
    original: Any = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if type(original) is not int or not 1 <= original < whole:
        return whole
    notices.append(
        f"The context is taken as {original:,} of {whole:,} tokens: beyond it this model changes its rotary factors "
        "with the longest row of a batch, which is not built yet."
    )
    return original


def _tokens(path: Path, *, vocabulary_size: int, notices: list[str]) -> dict[str, Any]:
    """The tokenizer's part of the facts. Raises InputRefused: missing, endless, or larger than the embedding."""
    from tunesmith.data.tokenizer import load_tokenizer  # loads the tokenizers library: after the cheap refusals

    tokenizer = load_tokenizer(path)
    ids = tokenizer.template.get_vocab(with_added_tokens=True).values()
    largest = max(ids, default=-1)
    if largest >= vocabulary_size:
        raise InputRefused(
            "TOKENIZER_TOO_LARGE",
            f"The tokenizer has ids up to {largest}, the embedding has {vocabulary_size} rows.",
            field="tokenizer.json",
            hint="Use the tokenizer that belongs to this model.",
        )
    if tokenizer.eos_id is None:
        raise InputRefused(
            "NO_END_TOKEN",
            "The tokenizer names no end token (eos_token), so the model could not learn where to stop.",
            field="tokenizer_config.json",
            hint="Name the model's end token as eos_token in tokenizer_config.json.",
        )
    pad_id = tokenizer.pad_id
    if pad_id is None:
        pad_id = tokenizer.eos_id
        notices.append("The tokenizer names no padding token; the end token is recorded as one (packing needs none).")
    return {
        "tokenizer_size": tokenizer.size,
        "has_chat_template": tokenizer.chat_template is not None,
        "end_token": tokenizer.token_text(tokenizer.eos_id),
        "end_token_id": tokenizer.eos_id,
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": pad_id,
    }


def _licence(path: Path) -> str | None:
    """The licence that the model card's front matter names."""
    card = path / "README.md"
    if card.is_symlink() or not card.is_file():
        return None
    try:
        with card.open("rb") as handle:
            text = handle.read(65_536).decode(errors="replace")
    except OSError:
        return None
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = _LICENCE.search(front)
    return found[1] if found else None


def main(arguments: list[str]) -> int:
    """Worker: one request file in, one response as the last line of standard output. Exits 0 whenever it answered."""
    output = sys.stdout
    if len(arguments) != 1:
        print("usage: python -m tunesmith.models.inspect request.json", file=sys.stderr)
        return 2
    with contextlib.redirect_stdout(sys.stderr):  # nothing but the response may reach standard output
        try:
            response = answer(InspectRequest.model_validate_json(Path(arguments[0]).read_bytes()))
        except TunesmithError as error:
            response = InspectResponse(error=error.form(), family=type(error).__name__)
        except (ValidationError, OSError) as error:
            response = _internal(f"The request {arguments[0]} cannot be used: {str(error)[:300]}")
        except Exception as error:  # noqa: BLE001 - the edge of a process: recorded, then told as a fault of ours
            traceback.print_exc()
            response = _internal(f"Inspection failed: {type(error).__name__}: {str(error)[:300]}")
    print(response.model_dump_json(), file=output, flush=True)
    return 0


def _internal(message: str) -> InspectResponse:
    error = TunesmithError("INTERNAL", message, hint="This is a fault of ours; the log has the details.")
    return InspectResponse(error=error.form(), family=TunesmithError.__name__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
