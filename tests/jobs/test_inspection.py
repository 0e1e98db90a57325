from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.jobs.conftest import model_facts
from tests.waiting import until
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError, UsageFault
from tunesmith.jobs import inspection
from tunesmith.jobs.home import Home
from tunesmith.jobs.inspection import Inspection, inspect
from tunesmith.jobs.launcher import process_started_at
from tunesmith.spec.datasets import InspectRequest, InspectResponse


@pytest.fixture
def question(tmp_path: Path) -> InspectRequest:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return InspectRequest(model_name="tiny", model_path=str(folder))


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str) -> Path:
    """Put a small program in the inspect worker's place; returns the file that counts its starts."""
    starts = tmp_path / "starts"
    program = tmp_path / "inspector.py"
    program.write_text(f"import os, signal, sys, time\nopen({str(starts)!r}, 'a').write('x')\n{lines}\n")
    monkeypatch.setattr(inspection, "worker_command", lambda _, argument: [sys.executable, str(program), argument])
    return starts


def says(response: InspectResponse) -> str:
    return f"print('some noise')\nprint({response.model_dump_json()!r})"


def test_an_answer_is_remembered_until_the_folder_changes(
    home: Home, question: InspectRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = script(monkeypatch, tmp_path, says(InspectResponse(facts=model_facts())))
    first = inspect(question, home=home, environment=os.environ)
    assert inspect(question, home=home, environment=os.environ) == first
    assert starts.read_text() == "x"
    (Path(question.model_path) / "config.json").write_text("{ }")
    inspect(question, home=home, environment=os.environ)
    assert starts.read_text() == "xx"


@pytest.mark.parametrize(("field", "family"), [("line 3", InputRefused), ("lora_rank", UsageFault)])
def test_the_workers_error_comes_back_and_is_not_remembered(
    home: Home, question: InspectRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str, family: type
) -> None:
    error = InputRefused("BROKEN", "It is broken.", field=field, hint="Mend it.")
    starts = script(monkeypatch, tmp_path, says(InspectResponse(error=error.form(), family="InputRefused")))
    for _ in range(2):
        with pytest.raises(TunesmithError) as caught:
            inspect(question, home=home, environment=os.environ)
        assert type(caught.value) is family and caught.value.form() == error.form()
    assert starts.read_text() == "xx"


@pytest.mark.parametrize(
    ("lines", "family", "code"),
    [
        ("print('no answer'); sys.exit(1)", TunesmithError, "INSPECT_DIED"),
        ("sys.exit(0)", TunesmithError, "INSPECT_DIED"),
        ("os.kill(os.getpid(), signal.SIGKILL)", MachineCannot, "OUT_OF_MEMORY"),
    ],
)
def test_a_worker_without_an_answer_is_named_with_its_log(
    home: Home,
    question: InspectRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lines: str,
    family: type,
    code: str,
) -> None:
    script(monkeypatch, tmp_path, lines)
    with pytest.raises(TunesmithError) as caught:
        inspect(question, home=home, environment=os.environ)
    assert type(caught.value) is family and caught.value.code == code


def test_an_inspection_left_early_takes_its_worker_with_it(
    home: Home, question: InspectRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    script(monkeypatch, tmp_path, f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    with Inspection(question, home=home, environment=os.environ):
        until(lambda: pid_file.exists() and pid_file.read_text(), "its worker runs")
    assert process_started_at(int(pid_file.read_text())) is None
    assert list((home.cache / "inspections").iterdir()) == []
