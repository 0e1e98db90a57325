"""Before a job is accepted: can its results go where it wants them?

In: the URI of a place for results. Out: nothing to say, a notice, or the refusal that the job would meet at its start,
where all of this is checked again. A store is asked for what holds for all of it once in a while, however many
submissions name it. One that does not answer just then holds nobody up: the job is accepted, and told so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import sqlalchemy as sa

from tunesmith.errors import InputRefused, MachineCannot
from tunesmith.jobs.inputs import location_of
from tunesmith.jobs.queue import HIDDEN_JOB
from tunesmith.jobs.state import State
from tunesmith.spec.datasets import Notice
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.storage.location_check import check_location, in_bounded_time
from tunesmith.storage.locations import BucketPlace, find_place
from tunesmith.storage.objects import ObjectStore, open_objects
from tunesmith.storage.publish import check_target
from tunesmith.storage.publish_bucket import check_prefix
from tunesmith.storage.tables import JOBS

FIT_SECONDS = 60.0
SILENT_SECONDS = 15.0
PATIENCE_SECONDS = 5.0  # for one submission
RETRY_SECONDS = 2.0
NOT_CHECKED = "RESULTS_NOT_CHECKED"


@dataclass(slots=True)
class _Bucket:
    """What was found out about one bucket, reached in one way."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    store: ObjectStore | None = None  # None: it did not answer, or was not asked yet
    until: float = 0.0  # that long it counts


class ResultsChecks:
    """Safe from many threads."""

    def __init__(self, environment: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._environment = environment
        self._clock = clock
        self._buckets: dict[tuple[str | None, ...], _Bucket] = {}

    def check(self, results_uri: str, *, state: State, project: str) -> list[Notice]:
        """Raises what `check_results` raises, but where a store does not answer, and InputRefused (RESULTS_TAKEN)."""
        place = find_place(results_uri, field="results")
        _refuse_promised(place.uri if isinstance(place, BucketPlace) else place.as_uri(), state=state, project=project)
        if isinstance(place, Path):
            check_target(place)
            return []
        try:
            self._check_bucket(place, state=state)
        except MachineCannot as error:
            if error.code != "LOCATION_UNREACHABLE":
                raise
            return [
                Notice(
                    code=NOT_CHECKED,
                    message=f"The results location {place.uri} does not answer now: it is checked when the job starts.",
                    hint="If it is not fit for results then, the job waits for somebody to mend that.",
                )
            ]
        return []

    def _check_bucket(self, place: BucketPlace, *, state: State) -> None:
        """Raises also MachineCannot (LOCATION_UNREACHABLE)."""
        location = location_of(place.uri, state=state)
        reached = (place.bucket, location.endpoint_url, location.region, location.credentials)
        bucket = self._buckets.setdefault(reached, _Bucket())
        try:
            with bucket.lock:  # of many submissions at once the first one asks
                if self._clock() >= bucket.until:
                    bucket.store, _ = open_objects(
                        location, self._environment, retry_seconds=RETRY_SECONDS, field="results"
                    )
                    _ask(bucket.store, place, is_known=False)
                    bucket.until = self._clock() + FIT_SECONDS
                    return
                store = bucket.store
            if store is None:
                raise MachineCannot("LOCATION_UNREACHABLE", f"{place.uri} did not answer a moment ago.")
            _ask(store, place, is_known=True)
        except MachineCannot as error:
            if error.code == "LOCATION_UNREACHABLE" and bucket.store is not None:
                bucket.store, bucket.until = None, self._clock() + SILENT_SECONDS
            raise


def _ask(store: ObjectStore, place: BucketPlace, *, is_known: bool) -> None:
    """is_known: that the bucket can be written and keeps versions; then only what holds for this place is asked."""

    def check() -> None:
        check_prefix(store, place.key)
        if not is_known:
            check_location(store, place.key, field="results")

    in_bounded_time(check, uri=place.uri, field="results", seconds=PATIENCE_SECONDS)


def _refuse_promised(uri: str, *, state: State, project: str) -> None:
    """The place, or one that it lies in, is where an unfinished job will publish."""
    steps = PurePosixPath(uri.partition("://")[2])
    scheme = uri.partition("://")[0]
    places = [f"{scheme}://{each}" for each in (steps, *steps.parents)]
    with state.database.read() as connection:
        taken = connection.execute(
            sa.select(JOBS.c.job_id, JOBS.c.project)
            .where(JOBS.c.state.not_in(FINAL_STATES), JOBS.c.results_uri.in_(places))
            .limit(1)
        ).one_or_none()
    if taken is not None:
        whose = f"the unfinished job {taken.job_id}" if taken.project == project else HIDDEN_JOB
        raise InputRefused(
            "RESULTS_TAKEN",
            f"The results location {uri} is, or lies in, that of {whose}.",
            field="results",
            hint="Choose a place of its own.",
        )
