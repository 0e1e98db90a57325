"""The scripted jobs of `tests/jobs`, and a way to run the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.jobs.conftest import home, job, no_sampling_of_the_processors, state, worker
from tunesmith.cli.app import run
from tunesmith.jobs.home import Home

__all__ = ["home", "job", "no_sampling_of_the_processors", "state", "worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object on the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def tunesmith(home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`tunesmith("job", "list")` runs the command with a home of the test's own."""
    monkeypatch.setenv("TUNESMITH_HOME", str(home.root))

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        code = run(arguments)
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err, "no traceback reaches a user"
        return Done(code=code, out=captured.out, err=captured.err)

    return call
