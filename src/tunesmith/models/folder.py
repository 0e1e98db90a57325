"""A model folder, looked at before any library is: which files would be loaded, and is each of them harmless.

In comes a path that somebody gave; out come checked JSON documents and tensor headers. Nothing outside the folder is
opened, nothing is waited for, no folder is walked, no pickle is read. Each refusal names the file and the way out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.errors import InputRefused
from tunesmith.files import CHUNK_BYTES, write_json
from tunesmith.models.tensor_file import TensorEntry, TensorFile, open_regular, read_header

MAXIMUM_ENTRIES = 10_000
MAXIMUM_CONFIG_BYTES = 4 * 1024 * 1024
MAXIMUM_TOKENIZER_BYTES = 256 * 1024 * 1024
MAXIMUM_SHARDS = 1_000
CONFIG = "config.json"
SINGLE_WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Small documents that a loader reads for their keys.
SETTINGS_FILES = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja")
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
# Keys by which a folder asks a loader to run its code or to read another file.
CODE_KEYS = frozenset(
    {
        "auto_map", "_attn_implementation_internal", "_experts_implementation_internal", "model_file", "custom_code",
        "trust_remote_code", "custom_pipelines", "custom_generate", "transformers_weights", "vhead_file",
        "adapter_path",
    }
)  # fmt: skip
FILE_KEY = re.compile(r"(^|_)(file|files|path|paths|dir|folder|filename)$")
# Where the saving machine kept the model: loaders overwrite these and open nothing by them.
ORIGIN_KEYS = frozenset({"_name_or_path", "name_or_path", "base_model_name_or_path"})
_AGAIN = "Copy or download the model again."
_HASH_CACHE = "file-hashes.json"
_HASH_CACHED_FROM_BYTES = 8 * 1024 * 1024
HASHED_AT_ONCE = 8  # shards of a large model; hashing a file is a core's work
_Identity = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What a loader would read: `identities` are device, inode, size and mtime of each file when it was checked."""

    path: Path
    settings: dict[str, dict[str, Any]]
    weights: list[TensorFile]
    identities: dict[str, _Identity]
    notices: list[str]

    @property
    def config(self) -> dict[str, Any]:
        return self.settings[CONFIG]

    def tensors(self) -> dict[str, TensorEntry]:
        return {name: entry for file in self.weights for name, entry in file.tensors.items()}


def read_folder(path: Path) -> ModelFolder:
    """Check everything that a loader would read. Raises InputRefused."""
    names = _names(path)
    if "adapter_config.json" in names:
        raise InputRefused(
            "ADAPTER_NOT_BASE",
            f"{path.name} holds an adapter (adapter_config.json), not a base model.",
            field="model",
            hint="Give the folder of the base model that the adapter was trained on.",
        )
    notices: list[str] = []
    identities: dict[str, _Identity] = {}
    settings: dict[str, dict[str, Any]] = {}
    if CONFIG not in names:
        raise InputRefused(
            "CONFIG_MISSING",
            f"{path.name} has no config.json.",
            field=CONFIG,
            hint="Name the folder that holds config.json, the tokenizer and the safetensors files.",
        )
    for name in SETTINGS_FILES:
        if name in names:
            identities[name] = _check_file(path, name, limit=MAXIMUM_CONFIG_BYTES)
            settings[name] = read_json(path / name, limit=MAXIMUM_CONFIG_BYTES)
            _require_harmless(name, settings[name])
    for name in TOKENIZER_FILES:
        if name in names:
            identities[name] = _check_file(path, name, limit=MAXIMUM_TOKENIZER_BYTES)
    weight_names, index = _weight_names(path, names, notices, identities)
    weights: list[TensorFile] = []
    for name in weight_names:
        identities[name] = _check_file(path, name, limit=None)
        weights.append(read_header(path / name))
    _require_distinct(weights)
    if index is not None:
        _require_index(index, weights)
    return ModelFolder(path=path, settings=settings, weights=weights, identities=identities, notices=notices)


def digest_of(folder: ModelFolder, *, cache_folder: Path | None) -> str:
    """SHA-256 over the sorted names and hashes of the files that are loaded.

    Hashes of large files are kept under `cache_folder` by path, size, time and inode (16 GB take 10 s of a core and
    more). Raises InputRefused (SOURCE_CHANGED) if a file is not the one that was checked.
    """
    cache = _HashCache(cache_folder)
    total = hashlib.sha256()
    names = sorted(folder.identities)
    known = {name: cache.get(folder.path / name, folder.identities[name]) for name in names}
    unknown = [name for name in names if known[name] is None]
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        found = dict(zip(unknown, pool.map(lambda name: _hash(folder.path / name), unknown), strict=True))
    for name in names:
        path = folder.path / name
        identity = folder.identities[name]
        value = known[name]
        if value is None:
            value = found[name]
            cache.put(path, identity, value)
        if _identity(path) != identity:
            raise InputRefused("SOURCE_CHANGED", f"{name} changed while it was read.", field=name, hint="Try again.")
        total.update(f"{name}\0{value}\n".encode())
    cache.save()
    return total.hexdigest()


def read_json(path: Path, *, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes, UTF-8 without a BOM. Raises InputRefused."""
    with os.fdopen(open_regular(path), "rb") as handle:
        raw = handle.read(limit + 1)
    if len(raw) > limit:
        raise InputRefused(
            "BROKEN_CONFIG", f"{path.name} is larger than {limit:,} bytes.", field=path.name, hint=_AGAIN
        )
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise InputRefused(
            "BROKEN_CONFIG",
            f"{path.name} starts with a byte-order mark.",
            field=path.name,
            hint="Save it as UTF-8 without a byte-order mark.",
        )
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputRefused(
            "BROKEN_CONFIG", f"{path.name} is not JSON: {str(error)[:200]}.", field=path.name, hint=_AGAIN
        ) from error
    if not isinstance(value, dict):
        raise InputRefused(
            "BROKEN_CONFIG", f"{path.name} holds a {type(value).__name__}, not an object.", field=path.name, hint=_AGAIN
        )
    return cast(dict[str, Any], value)


def _names(path: Path) -> frozenset[str]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise InputRefused(
            "MODEL_NOT_FOUND",
            f"There is no model folder at {path}.",
            field="model",
            hint="Check the spelling of the path.",
        ) from error
    if not is_folder:
        raise InputRefused(
            "MODEL_NOT_A_FOLDER",
            f"{path} is not a folder.",
            field="model",
            hint="Give the folder that holds config.json and the safetensors files.",
        )
    names: set[str] = set()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                names.add(entry.name)
                if len(names) > MAXIMUM_ENTRIES:
                    raise InputRefused(
                        "TOO_MANY_FILES",
                        f"{path.name} holds more than {MAXIMUM_ENTRIES:,} files; that is no model folder.",
                        field="model",
                        hint="Give a folder that holds the model alone.",
                    )
    except OSError as error:
        raise InputRefused(
            "UNREADABLE_FILE",
            f"{path} cannot be listed: {error.strerror}.",
            field="model",
            hint="Check the folder's permissions.",
        ) from error
    return frozenset(names)


def _check_file(folder: Path, name: str, *, limit: int | None) -> _Identity:
    """The identity of a regular file within the folder. A link may lead within one hub cache repository only."""
    path = folder / name
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise InputRefused(
                "UNSAFE_LINK",
                f"{name} is a link that leads nowhere.",
                field=name,
                hint="Copy the real file to its place.",
            ) from error
        snapshot = folder.resolve()
        is_hub = snapshot.parent.name == "snapshots" and target.parent == snapshot.parent.parent / "blobs"
        if not is_hub:
            raise InputRefused(
                "UNSAFE_LINK",
                f"{name} is a link to a file outside of the model folder.",
                field=name,
                hint="Copy the real files into the folder; only a hub cache repository may link to its own blobs.",
            )
    os.close(open_regular(path))
    identity = _identity(path)
    if limit is not None and identity[2] > limit:
        raise InputRefused("BROKEN_CONFIG", f"{name} is larger than {limit:,} bytes.", field=name, hint=_AGAIN)
    if identity[2] < 200 and not name.endswith(".safetensors"):
        with path.open("rb") as handle:
            if handle.read(20).startswith(b"version https://git"):
                raise InputRefused(
                    "LFS_POINTER",
                    f"{name} is a Git LFS pointer, not the file.",
                    field=name,
                    hint="Fetch the real file, for example with git lfs pull.",
                )
    return identity


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key, value) at any depth; items of a list carry the list's key."""
    pending: list[tuple[str, Any]] = [(key, value)]
    while pending:
        name, item = pending.pop()
        yield name, item
        if isinstance(item, dict):
            pending += cast(dict[str, Any], item).items()
        elif isinstance(item, list):
            pending += ((name, inner) for inner in cast(list[Any], item))


def _require_harmless(file: str, document: dict[str, Any]) -> None:
    for key, value in _walk(document):
        if key in CODE_KEYS and value not in (None, False, "", {}, []):
            raise _unsafe(file, key, "asks a loader to run code or to read another file")
        if "implementation" in key and isinstance(value, str) and re.search(r"[/\\:@]", value):
            raise _unsafe(file, key, f"names code from elsewhere ({value[:80]!r})")
        is_file_key = FILE_KEY.search(key) is not None and key not in ORIGIN_KEYS
        if is_file_key and isinstance(value, str) and not _is_contained(value):
            raise _unsafe(file, key, f"names a file outside of the folder ({value[:80]!r})")


def _is_contained(value: str) -> bool:
    """A plain relative path that stays where it starts."""
    parts = re.split(r"[/\\]", value)
    return not (
        value.startswith(("/", "\\", "~")) or ".." in parts or ":" in value or "\0" in value or len(value) > 1_000
    )


def _unsafe(file: str, key: str, what: str) -> InputRefused:
    return InputRefused(
        "UNSAFE_CONFIG",
        f"{file}: {key[:80]!r} {what}.",
        field=file,
        hint="Remove the key if the model works without it; Tunesmith runs no code from a model folder.",
    )


def _weight_names(
    path: Path, names: frozenset[str], notices: list[str], identities: dict[str, _Identity]
) -> tuple[list[str], dict[str, Any] | None]:
    """The weight files in order, and the index where they are sharded."""
    if SINGLE_WEIGHTS in names:
        if WEIGHTS_INDEX in names:
            _read_index(path, {})  # an index that leads out of the folder is refused, used or not
            notices.append(f"{SINGLE_WEIGHTS} is used; {WEIGHTS_INDEX} and its shards are not.")
        return [SINGLE_WEIGHTS], None
    if WEIGHTS_INDEX not in names:
        raise _no_weights(path, names)
    index, shards = _read_index(path, identities)
    for shard in shards:
        if shard not in names:
            raise InputRefused(
                "SHARD_MISSING",
                f"{WEIGHTS_INDEX} names {shard}, which is not in the folder.",
                field=shard,
                hint=_AGAIN,
            )
    if len(shards) > MAXIMUM_SHARDS:
        raise InputRefused(
            "BROKEN_INDEX",
            f"{WEIGHTS_INDEX} names {len(shards)} shards; the limit is {MAXIMUM_SHARDS}.",
            field=WEIGHTS_INDEX,
            hint="Save the model in fewer, larger files.",
        )
    extra = sorted(name for name in names if name.startswith("model-") and SHARD_NAME.fullmatch(name))
    unused = [name for name in extra if name not in shards]
    if unused:
        notices.append(f"Not used, because {WEIGHTS_INDEX} does not name them: {', '.join(unused[:5])}.")
    return shards, index


def _read_index(path: Path, identities: dict[str, _Identity]) -> tuple[dict[str, Any], list[str]]:
    """The index and the shards that it names, each a plain name."""
    identities[WEIGHTS_INDEX] = _check_file(path, WEIGHTS_INDEX, limit=16 * MAXIMUM_CONFIG_BYTES)
    index = read_json(path / WEIGHTS_INDEX, limit=16 * MAXIMUM_CONFIG_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputRefused("BROKEN_INDEX", f"{WEIGHTS_INDEX} has no weight_map.", field=WEIGHTS_INDEX, hint=_AGAIN)
    shards = sorted({str(shard) for shard in cast(dict[str, Any], weight_map).values()})
    for shard in shards:
        if not SHARD_NAME.fullmatch(shard):
            raise InputRefused(
                "UNSAFE_CONFIG",
                f"{WEIGHTS_INDEX} names {shard[:100]!r}; a shard is a plain file name in the folder.",
                field=WEIGHTS_INDEX,
                hint="Take the model from a source that you trust; its shards lie beside the index.",
            )
    return index, shards


def _no_weights(path: Path, names: frozenset[str]) -> InputRefused:
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        return InputRefused(
            "PICKLE_ONLY",
            f"{path.name} has its weights in {pickles[0]} only. Such a file can run code when it is read.",
            field=pickles[0],
            hint="Convert it to model.safetensors in a sandbox without network, or take the repository's safetensors.",
        )
    others = sorted(name for name in names if name.endswith((".gguf", ".safetensors")))
    found = f" (found {', '.join(others[:3])})" if others else ""
    return InputRefused(
        "NO_WEIGHTS",
        f"{path.name} has no {SINGLE_WEIGHTS} and no {WEIGHTS_INDEX}{found}.",
        field="model",
        hint=f"Copy the safetensors files into the folder; a single one is called {SINGLE_WEIGHTS}.",
    )


def _require_distinct(weights: list[TensorFile]) -> None:
    seen: dict[str, str] = {}
    for file in weights:
        for name in file.tensors:
            if name in seen:
                raise InputRefused(
                    "DUPLICATE_TENSOR",
                    f"Tensor {name[:200]!r} stands in {seen[name]} and in {file.path.name}.",
                    field=file.path.name,
                    hint=_AGAIN,
                )
            seen[name] = file.path.name


def _require_index(index: Mapping[str, Any], weights: list[TensorFile]) -> None:
    stored = {name: file.path.name for file in weights for name in file.tensors}
    named = cast(dict[str, str], index["weight_map"])
    for name, shard in named.items():
        if stored.get(name) != shard:
            raise InputRefused(
                "BROKEN_INDEX",
                f"{WEIGHTS_INDEX} looks for {name[:200]!r} in {shard}, which lacks it.",
                field=shard,
                hint=_AGAIN,
            )
    forgotten = sorted(set(stored) - set(named))
    if forgotten:
        raise InputRefused(
            "BROKEN_INDEX",
            f"{stored[forgotten[0]]} holds {forgotten[0][:200]!r}, which {WEIGHTS_INDEX} does not name.",
            field=WEIGHTS_INDEX,
            hint=_AGAIN,
        )
    metadata = index.get("metadata")
    said = cast(dict[str, Any], metadata).get("total_size") if isinstance(metadata, dict) else None
    total = sum(entry.end - entry.start for file in weights for entry in file.tensors.values())
    if said is not None and said != total:
        raise InputRefused(
            "BROKEN_INDEX",
            f"{WEIGHTS_INDEX} says {str(said)[:40]} bytes in all, the shards hold {total}.",
            field=WEIGHTS_INDEX,
        )


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with os.fdopen(open_regular(path), "rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class _HashCache:
    """Hashes of large files; a broken cache file is no more than an empty one."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / _HASH_CACHE if folder is not None else None
        self._known: dict[str, Any] = {}
        self._is_changed = False
        if self._path is not None and self._path.is_file():
            try:
                self._known = read_json(self._path, limit=MAXIMUM_CONFIG_BYTES)
            except InputRefused:
                self._known = {}

    def get(self, path: Path, identity: _Identity) -> str | None:
        entry = self._known.get(str(path.resolve()))
        if isinstance(entry, list) and entry[:4] == list(identity) and isinstance(entry[-1], str):
            return entry[-1]
        return None

    def put(self, path: Path, identity: _Identity, value: str) -> None:
        if self._path is not None and identity[2] >= _HASH_CACHED_FROM_BYTES:
            self._known[str(path.resolve())] = [*identity, value]
            self._is_changed = True

    def save(self) -> None:
        if self._path is not None and self._is_changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)
