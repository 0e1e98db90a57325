"""Where a command's words go: human text and, under `--json`, one object on the last line of standard output.

User text never reaches a terminal as it is: control and bidirectional characters are shown, not obeyed. A reader that
went away (a closed pipe) silences the output and stops nothing; nor does a full disk, but a lost result is an error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from tunesmith.errors import ErrorForm, MachineCannot
from tunesmith.text import visible

__all__ = ["Output", "Unbreakable", "silence", "visible"]


class Output:
    """The two streams of one command."""

    def __init__(self, *, json_wanted: bool) -> None:
        self.json_wanted = json_wanted
        # a stream that was closed before the start is None
        sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # as long as the process lives
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # text files have it

    @property
    def human(self) -> TextIO:
        """The stream for people: standard error where standard output is for a program."""
        return sys.stderr if self.json_wanted else sys.stdout

    def say(self, text: str = "") -> None:
        """A line for people; its newlines count, everything else that acts on a terminal is shown."""
        self._write(self.human, visible(text, keep_newlines=True) + "\n")

    def piece(self, text: str) -> None:
        """A part of a line for people, as it comes; made safe like a line."""
        self._write(self.human, visible(text, keep_newlines=True))

    def warn(self, text: str) -> None:
        """A line on standard error whatever else is asked for."""
        self._write(sys.stderr, visible(text, keep_newlines=True) + "\n")

    def result(self, value: Any) -> None:
        """The object of `--json`, on one line; nothing without it. Raises MachineCannot if it cannot be written."""
        failure = self._write_object(value)
        if failure is not None:
            raise MachineCannot(
                "OUTPUT_LOST",
                f"The result could not be written to standard output: {failure.strerror}.",
                hint="Send the output elsewhere. A job that ran is kept: `tunesmith job list` shows it.",
            )

    def _write_object(self, value: Any) -> OSError | None:
        if not self.json_wanted:
            return None
        return self._write(sys.stdout, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")

    def error(self, form: ErrorForm) -> None:
        """An error for people on standard error, and for a program as the last line of standard output."""
        self.warn(f"error: {form['message']}")
        if form["hint"]:
            self.warn(f"  {form['hint']}")
        self.warn(f"  ({form['code']})")
        self._write_object({"error": form})

    def _write(self, stream: TextIO, text: str) -> OSError | None:
        """The failure, if it is one that the reader did not choose."""
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            silence(stream)
        except OSError as error:
            silence(stream)
            return error
        return None


def silence(stream: TextIO) -> None:
    """Send what is still to come nowhere: the reader is gone, the work is not."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Unbreakable:
    """A stream for rich that survives its reader's leaving and a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()
