"""Inputs that are named by the URI of a bucket: fetched into the cache, each in the version that it has now.

In: `s3://bucket/path` of a dataset or a model. Out: a local file or folder. What a catalog or a declared location
names is `inputs.py`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from tunesmith.jobs.home import Home
from tunesmith.jobs.models import FoundModel
from tunesmith.storage.fetch import fetch, fetch_model, fetched_folder
from tunesmith.storage.locations import find_place, uri_of
from tunesmith.storage.objects import Location


def bucket_dataset(
    location: Location | str,
    *,
    home: Home,
    environment: Mapping[str, str],
    field: str = "dataset",
    stop: threading.Event | None = None,
) -> Path:
    """Raises what `fetch` raises."""
    return fetch(location, fetched_folder(home.cache), environment=environment, field=field, stop=stop).path


def bucket_model(
    location: Location | str,
    *,
    home: Home,
    environment: Mapping[str, str],
    progress: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> FoundModel:
    """Raises what `fetch_model` raises."""
    fetched = fetch_model(location, fetched_folder(home.cache), environment=environment, progress=progress, stop=stop)
    return FoundModel(name=fetched.path.name, path=fetched.path)


def bucket_model_name(text: str) -> str:
    """What a model under this URI is called, before it is fetched. Raises InputRefused (BAD_LOCATION)."""
    return PurePosixPath(uri_of(find_place(text, field="MODEL"))).name
