"""The command line. `main` is the console script; everything else is imported when a command needs it."""

from __future__ import annotations

import sys

__all__ = ["main"]

EXIT_INTERRUPTED = 130
INTERRUPTED = (
    '{"error": {"code": "INTERRUPTED", "message": "Interrupted; no job was started.", "field": null, "hint": null}}'
)


def main() -> None:
    try:
        from tunesmith.cli.app import run  # here, so that importing the package stays free
    except KeyboardInterrupt:  # later ones are for `run` to answer
        if "--json" in sys.argv:
            sys.stdout.write(INTERRUPTED + "\n")
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(run())
