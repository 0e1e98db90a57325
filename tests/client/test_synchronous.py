from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path

import pytest

from tunesmith.client import asynchronous, synchronous

ROOT = Path(__file__).resolve().parents[2]
MAKE = runpy.run_path(str(ROOT / "scripts" / "make_sync_client.py"))


@pytest.mark.parametrize("name", MAKE["names"]())
def test_the_sync_client_is_made_from_the_async_one(name: str) -> None:
    assert (MAKE["TARGET"] / name).read_text(encoding="utf-8") == MAKE["made"](name), "run scripts/make_sync_client.py"


def test_nothing_of_the_sync_client_waits_on_an_event_loop() -> None:
    folder = Path(inspect.getfile(synchronous)).parent
    assert sorted(path.name for path in folder.glob("*.py")) == sorted(
        path.name for path in Path(inspect.getfile(asynchronous)).parent.glob("*.py")
    )
    for path in folder.glob("*.py"):
        code = path.read_text(encoding="utf-8").partition("\n")[2]
        assert re.findall(r"\b(async|await|asyncio|AsyncClient)\b", code) == [], path
