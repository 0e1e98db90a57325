"""`tunesmith demo`: the bundled model on the bundled data; everything that a run shows, on any machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunesmith.bundled import DEMO_SETTINGS, MODEL_NAME, TRAINING_ROWS, VALIDATION_ROWS
from tunesmith.cli.finetune import fine_tune
from tunesmith.cli.output import Output

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

NEXT_COMMAND = f"tunesmith finetune {MODEL_NAME} YOUR_ROWS.jsonl"


@app.command()
def demo(
    results: Annotated[
        str | None, typer.Option("--results", help="Folder of the artifact; default: under TUNESMITH_HOME.")
    ] = None,
    json_wanted: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")] = False,
) -> int:
    """Fine-tune the bundled model on the bundled dialogues and judge the result."""
    values: dict[str, Any] = {
        "model": MODEL_NAME,
        "dataset": str(TRAINING_ROWS),
        "validation_dataset": str(VALIDATION_ROWS),
        "version_set": "demo",
        "description": "The bundled dialogues, summarised by the bundled model.",
        # an own validation file says already that nothing is split off
        **{name: str(value) for name, value in DEMO_SETTINGS.items() if name != "validation_fraction"},
    }
    if results is not None:
        values["results"] = results
    return fine_tune(values, output=Output(json_wanted=json_wanted), next_command=NEXT_COMMAND)
