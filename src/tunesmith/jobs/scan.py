"""Finds the models that lie in a declared location: folders with config.json and safetensors, at any depth.

In: a store and a prefix. Out: what each folder holds, by its config and its sizes; nothing is registered, no weights
are read. A whole bucket may lie behind it: past `MAXIMUM_FOLDERS` looks, `MAXIMUM_DEPTH` or `MAXIMUM_SECONDS` the
answer says that it is cut.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any, cast

import orjson

from tunesmith.errors import InputRefused
from tunesmith.spec.explorer import FoundModel, ScannedLocation, labels_of
from tunesmith.storage.locations import is_bucket, local_path
from tunesmith.storage.objects import ObjectStore, join_key

MAXIMUM_FOLDERS = 500
MAXIMUM_DEPTH = 8
MAXIMUM_SECONDS = 20.0  # a person waits for the answer, and a thread of the server
MAXIMUM_CONFIG_BYTES = 1 << 20
CONFIG = "config.json"


def scan(store: ObjectStore, prefix: str, *, uri: str, registered: dict[str, str]) -> ScannedLocation:
    """registered: path or URI of what the catalog has -> its name. Raises as ObjectStore."""
    found: list[FoundModel] = []
    waiting: deque[tuple[str, int]] = deque([("", 0)])
    looks, is_cut, started = 0, False, monotonic()
    while waiting and looks < MAXIMUM_FOLDERS and monotonic() - started < MAXIMUM_SECONDS:
        below, depth = waiting.popleft()
        looks += 1
        top = join_key(prefix, below) if below else prefix
        listing = store.list(f"{top}/" if top else "", by_folder=True)
        is_cut |= listing.next is not None
        names = {each.key.rpartition("/")[2]: each.size for each in listing.objects}
        weights = [size for name, size in names.items() if name.endswith(".safetensors")]
        if CONFIG in names and weights:
            name = registered.get(_place(uri, below))
            found.append(_look(store, top, below, bytes_=sum(weights), name=name))
        elif depth < MAXIMUM_DEPTH:
            base = f"{prefix}/" if prefix else ""
            waiting.extend((folder.removeprefix(base).rstrip("/"), depth + 1) for folder in listing.folders)
        else:
            is_cut |= bool(listing.folders)
    return ScannedLocation(models=sorted(found, key=lambda each: each.path), is_cut=is_cut or bool(waiting))


def _place(uri: str, below: str) -> str:
    """As the catalog writes it: a folder by its path, for a URI has several spellings."""
    if is_bucket(uri):
        return f"{uri.rstrip('/')}/{below}".rstrip("/")
    return str(local_path(uri, field="uri") / below)


def _look(store: ObjectStore, top: str, below: str, *, bytes_: int, name: str | None) -> FoundModel:
    model_type, architecture, fault = None, None, None
    try:
        key = join_key(top, CONFIG) if top else CONFIG
        config: Any = orjson.loads(store.get_bytes(key, maximum_bytes=MAXIMUM_CONFIG_BYTES))
        known = cast("dict[str, Any]", config)
        model_type = str(known["model_type"])[:60]
        architecture = str((known.get("architectures") or [model_type])[0])[:80]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        fault = f"{CONFIG} names no model_type"
    except InputRefused as error:
        fault = error.message
    labels = (
        labels_of(model_type, architecture or model_type, has_experts=False, is_here=True, versions=0)
        if model_type is not None
        else []
    )
    return FoundModel(
        path=below, bytes=bytes_, model_type=model_type, architecture=architecture, labels=labels[:1], fault=fault,
        registered_as=name,
    )  # fmt: skip
