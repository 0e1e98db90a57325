"""The command line. `main` is the console script; everything else is imported when a command needs it."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    from tunesmith.cli.app import run  # here, so that importing the package stays free

    raise SystemExit(run())
