"""The console in JupyterLab's launcher, by jupyter-server-proxy: what its entry point asks for.

In: the environment of the Jupyter server. Out: how to start `tunesmith serve` and where it answers: at the socket in
the state folder, which only that user reaches, so that nobody types a token whom Jupyter has let in. Where a server
runs already it is used; the one that was started waits beside it, and takes its place when it ends. This file is
imported by Jupyter itself: it imports little and makes nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tunesmith.jobs.home import Home, home_path

START_SECONDS = 60  # a first start makes the state folder, on whatever disk


def server() -> dict[str, Any]:
    """The settings of jupyter-server-proxy, under the name `tunesmith`."""
    home = Home(root=home_path(os.environ))
    return {
        "command": [sys.executable, "-m", "tunesmith", "serve", "--port", "0", "--stand-by"],
        "unix_socket": str(home.own_socket),
        "timeout": START_SECONDS,
        "new_browser_tab": True,  # no page of ours lets itself be framed
        "launcher_entry": {
            "title": "Tunesmith",
            "icon_path": str(Path(__file__).parent / "server" / "static" / "mark.svg"),
            "category": "Notebook",  # JupyterLab draws icons of this kind of entry only
        },
    }
