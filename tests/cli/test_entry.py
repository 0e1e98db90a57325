"""The console script before any command runs."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest

from tunesmith.cli import main


class InterruptedImport(ModuleType):
    """A module whose import Ctrl-C cuts short."""

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "--json"]])
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tunesmith.cli.app", InterruptedImport("tunesmith.cli.app"))
    monkeypatch.setattr(sys, "argv", ["tunesmith", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    said = capsys.readouterr().out
    assert (json.loads(said)["error"]["code"] == "INTERRUPTED") if "--json" in arguments else not said
