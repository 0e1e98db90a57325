"""Which server a client talks to, and with what token.

In: what the caller gave, the environment. Out: an `Endpoint`. In this order: the caller's own URL and token;
TUNESMITH_URL and TUNESMITH_TOKEN; the server that runs on this state folder (`server.json` and the token file beside
it); else no server: the same application inside this process, over the same state. Nothing is sent here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from tunesmith.errors import UsageFault
from tunesmith.jobs.home import home_path
from tunesmith.jobs.launcher import is_running

URL_VARIABLE = "TUNESMITH_URL"
TOKEN_VARIABLE = "TUNESMITH_TOKEN"  # noqa: S105  # a variable's name
PROJECT_VARIABLE = "TUNESMITH_PROJECT"
PROJECT_HEADER = "X-Tunesmith-Project"
SERVER_FILE = "server.json"
TOKEN_FILE = "token"  # noqa: S105  # a file's name
IN_PROCESS_URL = "http://localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    url: str
    token: str | None
    is_in_process: bool = False
    project: str | None = None  # of every request; None: whatever the server takes without one

    @property
    def is_loopback(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def __repr__(self) -> str:  # a token is never shown
        return f"Endpoint({self.url!r})"


def find_endpoint(
    url: str | None, token: str | None, *, environment: Mapping[str, str], project: str | None = None
) -> Endpoint:
    """The server to talk to, and in which project: the caller's, else TUNESMITH_PROJECT. Raises UsageFault (BAD_URL).

    A token goes to the server that it belongs to alone: the environment's to TUNESMITH_URL (or to a URL given without
    a token), the state folder's to the server of that state folder.
    """
    home = home_path(environment)
    project = project or environment.get(PROJECT_VARIABLE) or None
    local = running_server(home)
    named = url or environment.get(URL_VARIABLE)
    if named is None:
        if local is None:
            return Endpoint(url=IN_PROCESS_URL, token=None, is_in_process=True, project=project)
        return Endpoint(url=local, token=token or home_token(home), project=project)
    named = _checked(named)
    given = token or environment.get(TOKEN_VARIABLE)
    if given is None and local is not None and named == _checked(local):
        given = home_token(home)
    return Endpoint(url=named, token=given, project=project)


def running_server(home: Path) -> str | None:
    """The URL of the server that runs on this state folder, by its `server.json`; None where its process is gone."""
    try:
        told = json.loads((home / SERVER_FILE).read_text(encoding="utf-8"))
        url, pid = str(told["url"]), int(told["pid"])
        began = float(told["process_started_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # a process that began at another time got the pid of a server that was killed: it must not be sent our token
    return url if is_running(pid, started_at=began) else None


def home_token(home: Path) -> str | None:
    try:
        return (home / TOKEN_FILE).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        parts, has_port = None, False
    if parts is None or not has_port or parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise UsageFault(
            "BAD_URL",
            f"{url!r} is not the address of a server.",
            field=URL_VARIABLE,
            hint="For example http://127.0.0.1:8440; the token stands in TUNESMITH_TOKEN, not in the address.",
        )
    return url.rstrip("/")
