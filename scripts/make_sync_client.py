"""Writes `tunesmith.client.synchronous` from `tunesmith.client.asynchronous`, so that the two never differ.

python scripts/make_sync_client.py

`tests/client/test_synchronous.py` checks that it is up to date. The rules are the whole difference between the two;
what cannot follow from a rule (pauses, files, transports) has both forms by hand, `async_name` beside `name`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "src" / "tunesmith" / "client"
SOURCE, TARGET = CLIENT / "asynchronous", CLIENT / "synchronous"
HEAD = "# Made from client/asynchronous/{name} by scripts/make_sync_client.py; do not edit.\n"
RULES = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\basync_(\w+)", r"\1"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit|iter|next)__", r"__\1__"),
    (r"\ba(close|read|iter_bytes)\b", r"\1"),
    (r"\bclient\.asynchronous\b", "client.synchronous"),
]
FIRST_LINE = (
    '"""The client without an event loop: made from `tunesmith.client.asynchronous`, the same but for waiting."""\n'
)


def made(name: str) -> str:
    """The synchronous form of one module."""
    if name == "__init__.py":
        return FIRST_LINE
    text = (SOURCE / name).read_text(encoding="utf-8")
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return _tidy(HEAD.format(name=name) + text)


def _tidy(text: str) -> str:
    """Imports in order and lines as long as they may be: names got shorter."""
    for arguments in (("check", "--quiet", "--fix", "--select", "I", "-"), ("format", "--quiet", "-")):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET / "made.py")]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def names() -> list[str]:
    return sorted(path.name for path in SOURCE.glob("*.py"))


if __name__ == "__main__":
    TARGET.mkdir(exist_ok=True)
    for each in names():
        (TARGET / each).write_text(made(each), encoding="utf-8")
    print(f"wrote {TARGET}")
