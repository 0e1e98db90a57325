"""What a user may write where a place is meant: a path, a `file://` URI, or the URI of a bucket.

In: the user's text. Out: a local path, or a refusal that names what is not built yet. Opens nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tunesmith.errors import InputRefused, MachineCannot

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
BUCKET_SCHEMES = frozenset({"s3", "oci", "gs", "az", "abfs"})


def is_uri(text: str) -> bool:
    return SCHEME.match(text) is not None


def local_path(text: str, *, field: str) -> Path:
    """The absolute local path of a path or file:// URI. Raises MachineCannot for buckets (not built yet).

    field: the argument or option as its user wrote it (`MODEL`, `--results`); an error's field is its bare name.
    """
    name = field.removeprefix("--").replace("-", "_").lower()
    if "\0" in text:
        raise InputRefused("BAD_LOCATION", f"{field} holds a NUL character: no path does.", field=name)
    if not is_uri(text) and not text.lower().startswith("file:"):
        try:
            return Path(text).expanduser().absolute()
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
    if parts.scheme.lower() in BUCKET_SCHEMES:
        raise MachineCannot(
            "NOT_BUILT",
            f"{field} {text!r}: object storage ({parts.scheme}://) is not built yet.",
            field=name,
            hint="Use a local path or a file:// URI; copy from or to the bucket with its own tool.",
        )
    if parts.scheme.lower() != "file":
        raise InputRefused(
            "BAD_LOCATION",
            f"{field} {text!r}: the scheme {parts.scheme!r} is not known.",
            field=name,
            hint="Use a path or a file:// URI.",
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
