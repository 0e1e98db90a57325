"""What a user may write where a place is meant: a path, a `file://` URI, or the URI of a bucket.

In: the user's text. Out: a local path, a bucket with a key, or a refusal. Opens nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tunesmith.errors import InputRefused, MachineCannot

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
OTHER_BUCKET_SCHEMES = frozenset({"oci", "gs", "az", "abfs"})
MAXIMUM_NAME_BYTES, MAXIMUM_PATH_BYTES = 255, 4096  # of Linux: more can be no file
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")  # AWS is stricter, OCI and Ceph are not


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketPlace:
    """key: of an object, or a prefix; no slash at either end, empty for the bucket itself."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.key else f"s3://{self.bucket}"


Place = Path | BucketPlace


def is_uri(text: str) -> bool:
    return SCHEME.match(text) is not None


def is_bucket(text: str) -> bool:
    return text[:5].lower() == "s3://"


def uri_of(place: Place) -> str:
    return place.uri if isinstance(place, BucketPlace) else place.as_uri()


def find_place(text: str, *, field: str) -> Place:
    """The absolute local path, or the bucket and key. Raises InputRefused; MachineCannot for a scheme not built yet.

    field: the argument or option as its user wrote it (`MODEL`, `--results`); an error's field is its bare name.
    """
    if not is_bucket(text):
        return local_path(text, field=field)
    bucket, _, key = text[5:].partition("/")
    key = key.strip("/")
    steps = key.split("/") if key else []
    if not BUCKET.fullmatch(bucket) or any(step in ("", ".", "..") for step in steps) or re.search(r"[\0-\x1f]", key):
        raise InputRefused(
            "BAD_LOCATION",
            f"{field} {text!r} is no place in a bucket.",
            field=_bare(field),
            hint="Write s3://bucket/path, without . or .. or empty steps; endpoint and credentials come from AWS_* "
            "variables.",
        )
    return BucketPlace(bucket=bucket, key=key)


def local_path(text: str, *, field: str) -> Path:
    """The absolute local path of a path or file:// URI. Raises InputRefused for a bucket, which has none, and for what
    no file system could hold.
    """
    path = _local_path(text, field=field)
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > MAXIMUM_NAME_BYTES or len(os.fsencode(path)) >= MAXIMUM_PATH_BYTES:
        raise InputRefused(
            "BAD_LOCATION",
            f"{field} {text[:60]!r}... is too long for a path: a name holds up to {MAXIMUM_NAME_BYTES} bytes, a path "
            f"fewer than {MAXIMUM_PATH_BYTES:,}.",
            field=_bare(field),
            hint="Write a shorter one.",
        )
    return path


def _local_path(text: str, *, field: str) -> Path:
    name = _bare(field)
    if "\0" in text:
        raise InputRefused("BAD_LOCATION", f"{field} holds a NUL character: no path does.", field=name)
    if not is_uri(text) and not text.lower().startswith("file:"):
        try:
            path = Path(text)
            return (path.expanduser() if text.startswith("~") else path).absolute()
        except RuntimeError as error:  # ~somebody, and the system knows no such user
            raise InputRefused(
                "BAD_LOCATION",
                f"{field} {text!r} starts with the home of a user who is not known here.",
                field=name,
                hint="Write the whole path, or ./~name for a file of that name.",
            ) from error
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InputRefused(
            "BAD_LOCATION", f"{field} {text!r} is no URI: {error}.", field=name, hint="Use a path or a file:// URI."
        ) from error
    if parts.scheme.lower() in OTHER_BUCKET_SCHEMES:
        raise MachineCannot(
            "NOT_BUILT",
            f"{field} {text!r}: {parts.scheme}:// is not built yet.",
            field=name,
            hint="Use the service's S3-compatible endpoint: s3://bucket/path with AWS_ENDPOINT_URL set.",
        )
    if parts.scheme.lower() != "file":
        raise InputRefused(
            "BAD_LOCATION",
            f"{field} {text!r} is no local place."
            if parts.scheme.lower() == "s3"
            else f"{field} {text!r}: the scheme {parts.scheme!r} is not known.",
            field=name,
            hint="Use a path, a file:// URI or s3://bucket/path.",
        )
    path = Path(unquote(parts.path))
    is_local = parts.netloc in ("", "localhost") and path.is_absolute() and "\0" not in str(path)
    if not is_local or parts.query or parts.fragment:
        raise InputRefused(
            "BAD_LOCATION",
            f"{field} {text!r} is no local file URI.",
            field=name,
            hint="Write file:///absolute/path, with three slashes; ? and # in a name as %3F and %23.",
        )
    return path


def _bare(field: str) -> str:
    return field.removeprefix("--").replace("-", "_").lower()
