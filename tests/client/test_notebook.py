"""What a notebook shows: figures, curves, and nothing of a user's text that acts; once in a real kernel, a real job."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.client.test_display import EVIL, TIME, assert_harmless, tags_of
from tests.server.test_run import Server
from tunesmith.bundled import TRAINING_ROWS
from tunesmith.client import Client
from tunesmith.client.notebook import comparison_html, metrics_html, register, report_html, version_html
from tunesmith.spec.catalog import Comparison, VersionDetail, VersionMetrics
from tunesmith.spec.datasets import DatasetReport

SCORES = {"loss": 2.0, "token_accuracy": 0.5, "completion_accuracy": 0.1}
BETTER = {"loss": 1.0, "token_accuracy": 0.75, "completion_accuracy": 0.2}
METRICS = {
    "epochs": [
        {"epoch": 0, "training": SCORES, "validation": SCORES},
        {"epoch": 1, "training": BETTER, "validation": BETTER},
        {"epoch": 2, "training": {**BETTER, "loss": 0.5}, "validation": {**BETTER, "loss": 1.5}},
    ],
    "best_epoch": 1,
}


def detail(**changed: Any) -> VersionDetail:
    version = {
        "model_version": "bot:1", "version_set": "bot", "number": 1, "project": "default", "state": "ACTIVE",
        "shown_state": "Active", "name": EVIL, "description": EVIL, "tags": {}, "aliases": ["prod"],
        "base_name": EVIL, "job_id": None, "parent": None, "results_uri": EVIL, "artifact_uri": None, "best_epoch": 1,
        "outcome": "improved", "created_at": TIME, "changed_at": TIME,
    }  # fmt: skip
    verdict = {
        "outcome": "improved", "reasons": [EVIL], "rows": 9, "measured_on": "validation", "base_loss": 2.0,
        "tuned_loss": 1.0, "difference": -1.0, "interval": [-1.1, -0.9],
    }  # fmt: skip
    made = {"version": version, "lineage": None, "metrics": METRICS, "verdict": verdict, "files": [], "children": []}
    return VersionDetail.model_validate(made | changed)


def harmless(html: str) -> str:
    """The words of it, once its drawings, which only we make, are out of it."""
    assert not re.search(r"<(script|style|link|image|use|foreignObject)|style=|xlink|url\(", html)
    words = re.sub(r"<svg .*?</svg>", "", html)
    assert_harmless(words)
    return words


def test_a_version_shows_its_verdict_scores_and_curves_escaped() -> None:
    shown = version_html(detail())
    words = harmless(shown)
    for told in ("bot:1", "Active", "prod", "improved", "0 (base)", "75.0%", "From epoch 2 on it overfits"):
        assert told in words, told
    loss, tokens = re.findall(r"<svg .*?</svg>", shown)
    assert 'aria-label="Loss by epoch"' in loss and "validation, epoch 2: 1.500" in loss and "best epoch: 1" in loss
    assert loss.count("<circle") == tokens.count("<circle") == 6
    ys = [float(y) for y in re.findall(r'cy="([0-9.]+)" r="3" fill="#0f8a90"', loss)]
    assert ys[1] > ys[2] > ys[0]  # 1.0 lies below 1.5, and that below 2.0


@pytest.mark.parametrize("epochs", [[], METRICS["epochs"][:1], [{"epoch": 0, "training": SCORES, "validation": None}]])
def test_a_version_at_its_beginning_shows_what_there_is(epochs: list[Any]) -> None:
    shown = metrics_html(VersionMetrics.model_validate({"epochs": epochs}))
    assert ("<svg" in shown) == bool(epochs) and "nan" not in shown


def test_two_versions_are_compared_and_a_report_tells_its_findings() -> None:
    compared = Comparison.model_validate(
        {
            "left": detail().as_json(), "right": detail().as_json(),
            "settings": [{"name": EVIL, "left": EVIL, "right": 3}], "data": [],
            "scores": [{"name": "loss", "left": 2.0, "right": None, "difference": None}],
            "same_validation_rows": True, "notices": [{"code": "SAID", "message": EVIL, "hint": None}],
        }
    )  # fmt: skip
    assert "2.0000" in harmless(comparison_html(compared))
    finding = {"line": 3, "column": 1, "code": "BAD", "message": EVIL, "hint": EVIL}
    report = DatasetReport.model_validate(
        {
            "path": EVIL, "kind": "messages", "rows": 1200, "bytes": 5, "content_hash": "0", "errors": [finding] * 12,
            "num_errors": 400, "warnings": [], "num_warnings": 0, "duplicates": 2,
        }
    )  # fmt: skip
    words = harmless(report_html(report))
    assert "1,200" in words and "400 errors, the first 10" in words and tags_of(words).seen >= {"table", "td"}


def test_ipython_is_told_where_it_runs_and_is_not_brought_in_elsewhere(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    register()
    assert "IPython" not in sys.modules
    told: dict[type, Any] = {}
    package: Any = ModuleType("IPython")
    formatter = SimpleNamespace(for_type=told.__setitem__)
    package.get_ipython = lambda: SimpleNamespace(
        display_formatter=SimpleNamespace(formatters={"text/html": formatter})
    )
    monkeypatch.setitem(sys.modules, "IPython", package)
    Client.over(client.wire)
    assert told[VersionDetail](detail()) == version_html(detail())


# ---- a real kernel


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "home")
    yield running
    running.end()


CELLS = [
    """from tunesmith.client import Client
client = Client()
dataset = client.datasets.upload(ROWS, name="<script>alert(1)</script>")""",
    "client.datasets.report(dataset.dataset_id)",
    'client.plan("tunesmith/demo", dataset.dataset_id, epochs=2)',
    """job = client.jobs.submit("tunesmith/demo", dataset.dataset_id, version_set="bot", epochs=2, name="<b>bold</b>")
job.watch()""",
    "client.versions.get(job.model_version)",
    "print(client.versions.get(job.model_version).version.state)",
]


@pytest.mark.servers
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel", "nbformat")),
    reason="nbclient and ipykernel are not installed (.[dev])",
)
def test_a_notebook_submits_watches_and_shows(server: Server, tmp_path: Path) -> None:
    """In a process of its own: what notebooks import warns, and runs an event loop."""
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:60]))
    program = tmp_path / "execute.py"
    cells = [CELLS[0].replace("ROWS", repr(str(rows))), *CELLS[1:]]
    program.write_text(
        "import json, sys, nbformat, nbclient\n"
        "book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in json.load(sys.stdin)])\n"
        "nbclient.NotebookClient(book, timeout=400, kernel_name='python3').execute()\n"
        "print(json.dumps([cell.outputs for cell in book.cells]))\n"
    )
    folders = {name: str(tmp_path / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    environment = os.environ | folders | {"TUNESMITH_HOME": str(Path(server.told["token_file"]).parent)}
    done = subprocess.run(
        [sys.executable, str(program)], input=json.dumps(cells), env=environment, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    _, report, plan, watched, version, printed = json.loads(done.stdout.splitlines()[-1])
    assert "60" in html_of(report) and "<table" in html_of(report)
    assert "parameters" in html_of(plan) and "because" in html_of(plan)
    panel = html_of([each for each in watched if each["output_type"] == "display_data"])
    assert "SUCCEEDED" in panel and "Verdict: " in panel and "&lt;b&gt;bold" in panel and "<b>bold" not in panel
    shown = html_of(version)
    assert shown.count("<svg") == 2 and "&lt;script&gt;" in shown and "<script" not in shown
    assert "text/plain" in version[0]["data"] and printed[0]["text"].strip().endswith("ACTIVE")


def html_of(outputs: list[Any]) -> str:
    [html] = [each["data"]["text/html"] for each in outputs if "text/html" in each.get("data", {})]
    return html if isinstance(html, str) else "".join(html)
