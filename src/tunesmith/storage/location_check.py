"""Before a job starts: can its results be written where it wants them, and does that place keep versions?

In: a location. Out: nothing, or a refusal that says what to change. Writes one small probe and deletes it again; its
version id tells of versioning where a service (OCI) does not answer the question itself.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.storage.objects import Location, ObjectStore, Stopped, join_key, open_objects

CHECK_SECONDS = 18.0  # promised: an answer within 20
RETRY_SECONDS = 6.0
PROBE = ".tunesmith-probe-"  # how the names of probes begin


def check_location(store: ObjectStore, prefix: str, *, field: str = "location") -> None:
    """Raises what an `ObjectStore` raises, and InputRefused (VERSIONING_OFF)."""
    uri = store.uri(prefix)
    if store.keeps_versions() is False:
        raise versioning_off(uri, field)
    probe = join_key(prefix, f"{PROBE}{os.getpid()}-{secrets.token_hex(4)}")
    content = secrets.token_bytes(16)
    version_id = store.put_bytes(probe, content)
    try:
        if version_id is None:
            raise versioning_off(uri, field)
        if store.get_bytes(probe, version_id=version_id, maximum_bytes=1024) != content:
            raise MachineCannot(
                "LOCATION_UNREACHABLE", f"{uri} does not give back what was written there.", field=field
            )
    finally:
        # one who may write and not delete can still publish: an empty-handed probe of 16 bytes stays
        with suppress(TunesmithError):
            store.delete(probe, version_id)


def check_declared(
    location: Location | str,
    environment: Mapping[str, str],
    *,
    field: str = "location",
    seconds: float = CHECK_SECONDS,
    also: Callable[[ObjectStore, str], None] | None = None,
) -> None:
    """`check_location` on a location, in bounded time whatever the other side does. `also` is asked first."""
    stop = threading.Event()
    store, prefix = open_objects(location, environment, retry_seconds=RETRY_SECONDS, stop=stop, field=field)

    def check() -> None:
        if also is not None:
            also(store, prefix)
        check_location(store, prefix, field=field)

    in_bounded_time(check, uri=store.uri(prefix), field=field, seconds=seconds, stop=stop)


def in_bounded_time(
    check: Callable[[], None], *, uri: str, field: str, seconds: float, stop: threading.Event | None = None
) -> None:
    """Run a check of a place in a thread of its own. `stop` is set when the time is over, else the thread is left.

    Raises what `check` raises, and MachineCannot (LOCATION_UNREACHABLE).
    """
    faults: list[BaseException] = []

    def run() -> None:
        try:
            check()
        except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if stop is not None:
        stop.set()
    if thread.is_alive() or (faults and isinstance(faults[0], Stopped)):
        raise MachineCannot(
            "LOCATION_UNREACHABLE",
            f"{uri} did not pass its check within {seconds:.0f} s.",
            field=field,
            hint="Check AWS_ENDPOINT_URL, the network and the store.",
        )
    if faults:
        if isinstance(faults[0], TunesmithError) and faults[0].field is None:
            faults[0].field = field
        raise faults[0]


def versioning_off(uri: str, field: str | None) -> InputRefused:
    bucket = uri.removeprefix("s3://").partition("/")[0]
    return InputRefused(
        "VERSIONING_OFF",
        f"The bucket of {uri} keeps no versions: a result could be overwritten and lost.",
        field=field,
        hint=f"Enable versioning: `aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration "
        "Status=Enabled` (MinIO, Ceph: the same with --endpoint-url); on OCI `oci os bucket update --name "
        f"{bucket} --versioning Enabled`, or in the console: Bucket, Edit, Enable Object Versioning.",
    )
