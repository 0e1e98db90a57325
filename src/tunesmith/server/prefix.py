"""Behind a proxy that serves us below a path of its own, as JupyterLab's does: `/user/ada/tunesmith/jobs` for `/jobs`.

In: the prefix that such a proxy tells (`X-Forwarded-Prefix`), and a page or an answer as it is without one. Out: the
same with its links below the prefix. The header decides nothing but links, in the answer to the request that carries
it: who lies gets links of no use.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from tunesmith.errors import UsageFault

HEADER = b"x-forwarded-prefix"
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~@:+,=%!-]+)+/?")
MAXIMUM_CHARACTERS = 500
STATE_KEY = "prefix"
# Every value of a template is escaped: a quote with a path behind it is written by a template, never by a user. The
# attributes are those that a browser or htmx follows.
LINKS = re.compile(r'(?<=[\s])((?:href|src|action|formaction|hx-get|hx-post|data-url)=")/(?!/)')


def told_prefix(headers: Any) -> str:
    """Without a slash at its end; empty where there is none. Raises UsageFault (BAD_PATH)."""
    values = [value.decode("latin-1") for name, value in headers if name == HEADER]
    if not values or values == ["/"]:
        return ""
    text = values[0]
    if len(values) > 1 or len(text) > MAXIMUM_CHARACTERS or not PREFIX.fullmatch(text) or _has_dots(text):
        raise UsageFault(
            "BAD_PATH", "X-Forwarded-Prefix is no path.", field="X-Forwarded-Prefix",
            hint="It is set by the proxy before this server, once, as /user/ada/tunesmith.",
        )  # fmt: skip
    return text.rstrip("/")


def prefix_of(request: Request) -> str:
    """As the guard found it."""
    return request.scope.get("state", {}).get(STATE_KEY, "")


def with_prefix(page: str, prefix: str) -> str:
    """A rendered page with its links below the prefix."""
    return LINKS.sub(rf"\g<1>{prefix}/", page) if prefix else page


def relative(target: str, raw_path: bytes) -> str:
    """A path of ours as seen from another: right below any prefix, and whether or not the proxy adds it by itself."""
    if not target.startswith("/"):
        return target
    return "../" * (raw_path.count(b"/") - 1) + "./" * (raw_path.count(b"/") <= 1) + target[1:]


def _has_dots(text: str) -> bool:
    return any(step in (".", "..") for step in text.split("/"))
