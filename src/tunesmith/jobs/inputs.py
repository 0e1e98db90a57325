"""From what a request names to local files: datasets and models by id, by name, by `location:path`, by path.

In: the text of a request, and the state. Out: a file or folder on this machine, fetched first where it lies in a store
and held against the hash that the catalog keeps. Who may name what is decided where the request came in.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.bundled import MODEL_NAME
from tunesmith.catalog import datasets, locations
from tunesmith.catalog.datasets import find_dataset
from tunesmith.catalog.models import model_path
from tunesmith.errors import InputRefused, Unknown
from tunesmith.jobs.buckets import bucket_dataset, bucket_model, bucket_model_name
from tunesmith.jobs.models import FoundModel, find_model
from tunesmith.jobs.state import State
from tunesmith.spec.names import MODEL_NAME as MODEL_SPELLING
from tunesmith.storage.fetch import fetch, fetched_folder
from tunesmith.storage.locations import is_bucket
from tunesmith.storage.objects import Location, check_key

DATASET_ID = re.compile(r"ds-[0-9a-f]{16}")
IN_LOCATION = re.compile(r"(?P<location>[a-z0-9][a-z0-9._-]{0,62}):(?P<path>[^/].*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDataset:
    """name: as its owner calls it. columns: those that it was checked with."""

    path: Path
    name: str
    columns: Mapping[str, str]


def model_folder(
    text: str,
    *,
    state: State,
    environment: Mapping[str, str],
    progress: Callable[[str], None] | None = None,
) -> FoundModel:
    """The model's folder, fetched where it lies in a bucket. Raises Unknown, what `find_model` or a store raises."""
    if is_bucket(text):
        location = location_of(text, state=state)
        return bucket_model(location, home=state.home, environment=environment, progress=progress)
    path = _registered_path(text, state=state)
    if path is None:
        return find_model(text)  # a folder of that name; its refusal knows more ways out
    return registered_folder(text, path, state=state, environment=environment, progress=progress)


def registered_folder(
    name: str,
    path: str,
    *,
    state: State,
    environment: Mapping[str, str],
    progress: Callable[[str], None] | None = None,
) -> FoundModel:
    """The local folder of a registered model: its own, or the cache's copy of what lies in a bucket."""
    if not is_bucket(path):
        return FoundModel(name=name, path=Path(path))
    location = location_of(path, state=state)
    found = bucket_model(location, home=state.home, environment=environment, progress=progress)
    return FoundModel(name=name, path=found.path)


def model_name(text: str, *, state: State) -> str:
    """What it is called, if it is there; what lies in a bucket is looked at when the job starts."""
    if is_bucket(text):
        return bucket_model_name(text)
    if _registered_path(text, state=state) is not None:
        return text
    return find_model(text).name


def location_of(uri: str, *, state: State) -> Location:
    """How to reach a URI: as the declared location that holds it says, else by the AWS_* variables."""
    with state.database.read() as connection:
        return locations.location_of_uri(connection, uri)


def _registered_path(text: str, *, state: State) -> str | None:
    """The path of the model that the catalog has under this name."""
    if text == MODEL_NAME or not MODEL_SPELLING.is_met(text):
        return None
    try:
        with state.database.read() as connection:
            return model_path(connection, text)
    except Unknown:
        return None


def dataset_file(
    text: str,
    *,
    state: State,
    project: str,
    environment: Mapping[str, str],
    field: str = "dataset",
    stop: threading.Event | None = None,
) -> FoundDataset | None:
    """The file of a dataset's id, of `location:path` or of a bucket's URI; None for anything else, which is a path.

    Raises Unknown (UNKNOWN_DATASET, UNKNOWN_LOCATION), InputRefused (DATASET_GONE), and what a store raises.
    """
    if DATASET_ID.fullmatch(text):
        with state.database.read() as connection:
            known = find_dataset(connection, text, project=project)
            place = (
                locations.place_of_file(connection, known.source_uri, location=known.location)
                if known.source_uri
                else None
            )
        if place is None:
            path = state.home.datasets / known.dataset_id / known.file_name
            if not path.is_file():
                raise InputRefused(
                    "DATASET_GONE", f"The file of the dataset {text} is not in the state folder any more.", field=field,
                    hint="Upload it again, or restore the state folder.",
                )  # fmt: skip
        else:
            location, below = place
            path = fetch(
                location, fetched_folder(state.home.cache), path=below, environment=environment, field=field, stop=stop,
                version_id=known.source_version_id, expected_sha256=known.sha256,
            ).path  # fmt: skip
        return FoundDataset(path=path, name=known.name, columns=known.columns)
    if is_bucket(text):
        location = location_of(text, state=state)
        path = bucket_dataset(location, home=state.home, environment=environment, field=field, stop=stop)
        return FoundDataset(path=path, name=text, columns={})
    found = in_location(text)
    if found is None:
        return None
    name, below = found
    with state.database.read() as connection:
        location = locations.location_of_uri(connection, locations.find_location(connection, name).uri)
    fetched = fetch(
        location, fetched_folder(state.home.cache), environment=environment, path=below, field=field, stop=stop
    )
    return FoundDataset(path=fetched.path, name=text, columns={})


def dataset_name(text: str, *, state: State, project: str) -> str | None:
    """What the owner of a dataset's id calls it; None for anything else. Fetches nothing. Raises Unknown."""
    if DATASET_ID.fullmatch(text) is None:
        return None
    with state.database.read() as connection:
        return datasets.dataset_name(connection, text, project=project)


def dataset_id(text: str | None) -> str | None:
    """The text if it is the id of a registered dataset."""
    return text if text is not None and DATASET_ID.fullmatch(text) else None


def in_location(text: str) -> tuple[str, str] | None:
    """`team-data:support/rows.jsonl` in two; None for a path or a URI."""
    found = IN_LOCATION.fullmatch(text)
    return (found["location"], found["path"]) if found is not None else None


def results_uri(text: str, *, state: State, field: str) -> str:
    """The URI of `location:path`; anything else as it is. Raises Unknown, InputRefused for a path that leaves it."""
    found = in_location(text)
    if found is None:
        return text
    name, below = found
    check_key(below, field=field)
    with state.database.read() as connection:
        return f"{locations.find_location(connection, name).uri.rstrip('/')}/{below}"
