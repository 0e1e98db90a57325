"""What a caller may name as a model, a dataset or a place for results.

In: a request. Out: nothing, or a refusal. By id, by catalog name, or by `location:relative/path`, for everybody; a path
or a URI only for the local administrator, who could read that file without us.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import PurePosixPath

from tunesmith.catalog import locations
from tunesmith.catalog.models import model_path
from tunesmith.errors import InputRefused, MachineCannot, NotPermitted
from tunesmith.jobs.inputs import DATASET_ID, in_location
from tunesmith.server.service import Call
from tunesmith.spec.faults import shown
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.storage.locations import is_uri

INSPECTION_PATIENCE_SECONDS = 10.0
NOWHERE = PurePosixPath(".")
DATASET_FIELDS = ("dataset", "validation_dataset", "test_dataset")


def check_places(call: Call, request: FinetuneRequest) -> None:
    """Raises NotPermitted (PATH_NOT_PERMITTED), InputRefused (PATH_NOT_ABSOLUTE), Unknown for a model's name."""
    for field in DATASET_FIELDS:
        text = getattr(request, field)
        if text is not None and not DATASET_ID.fullmatch(text):
            check_place(call, text, field=field)
    if request.results is not None:
        check_place(call, request.results, field="results")
    check_model(call, request.model)


def names_only(request: FinetuneRequest) -> bool:
    """Whether all that it names stands in the catalog: looking at it reads a few rows, no disk and no network."""
    texts = [getattr(request, field) for field in DATASET_FIELDS]
    return (
        all(text is None or DATASET_ID.fullmatch(text) for text in texts)
        and not _is_path(request.model)
        and request.results is None
        and request.from_version is None
    )


def check_model(call: Call, text: str) -> None:
    if _is_path(text):
        check_path(call, text, field="model")
    else:
        with call.database.read() as connection:
            model_path(connection, text)


def check_place(call: Call, text: str, *, field: str) -> None:
    found = in_location(text)
    if found is None:
        check_path(call, text, field=field)
    else:
        check_in_location(call, *found, field=field)


def check_in_location(call: Call, location: str, below: str, *, field: str) -> None:
    """Raises Unknown for a location that is none, InputRefused (OBJECT_NOT_FOUND) for what another project published.

    A location is everybody's; what Tunesmith wrote there for a project is that project's.
    """
    with call.database.read() as connection:
        top, place = locations.find_location(connection, location), PurePosixPath(below)
        around = [locations.place_in(top, "" if each == NOWHERE else str(each)) for each in (place, *place.parents)]
        if locations.places_of_others(connection, around, project=call.project):
            raise InputRefused(
                "OBJECT_NOT_FOUND", f"There is nothing at {shown(f'{location}:{below}')} for this project.",
                field=field, hint="Browse the location for what is there.",
            )  # fmt: skip


def check_path(call: Call, text: str, *, field: str) -> None:
    """A path or URI of the machine: the local administrator's alone, and whole (the server has a folder of its own)."""
    if not call.principal.is_local:
        raise NotPermitted(
            "PATH_NOT_PERMITTED", f"{field} is a path or a URI: {shown(text)}.", field=field,
            hint="Use the id of an uploaded dataset, the name of a base model, or LOCATION:path of a location.",
        )  # fmt: skip
    if not is_uri(text) and not text.startswith("/"):
        raise InputRefused(
            "PATH_NOT_ABSOLUTE", f"{field} is {shown(text)}, which is no id, no name and no whole path.", field=field,
            hint="Write the whole path, beginning with a slash.",
        )  # fmt: skip


@contextmanager
def inspecting(call: Call) -> Generator[None]:
    """A worker that inspects takes a core for seconds: a few at a time. Raises MachineCannot (BUSY)."""
    if not call.service.inspections.acquire(timeout=INSPECTION_PATIENCE_SECONDS):
        raise MachineCannot(
            "BUSY", "Other models and datasets are being inspected.", hint="Try again in a few seconds."
        )  # fmt: skip
    try:
        yield
    finally:
        call.service.inspections.release()


def _is_path(text: str) -> bool:
    return is_uri(text) or text.startswith(("/", ".", "~"))
