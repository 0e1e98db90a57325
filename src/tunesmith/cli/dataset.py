"""`tunesmith dataset check FILE`: every fault with line and column; with a model, tokens and what would be learned."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from tunesmith.cli.output import Output, visible
from tunesmith.cli.report import console
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import DatasetReport, Finding, Preparation, TokenSummary

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
    help="Check a dataset.",
)  # fmt: skip

HISTOGRAM_WIDTH = 40


@app.callback()
def dataset() -> None:
    """Check a dataset."""


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A JSONL, CSV or Parquet file.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Count tokens and show what is learned with this base model.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="OURS=THEIRS,...", help="Names of the file's columns."),
    ] = None,
    render: Annotated[str | None, typer.Option("--render", help="auto, chat or plain [default: auto]")] = None,
    json_wanted: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")] = False,
) -> int:
    """Check every row of FILE. Exit code 3 if a row is at fault.

    With --model: a histogram of row lengths in tokens, and the longest, the shortest and two random rows with the
    tokens that would be learned in colour.
    """
    from tunesmith.data.rows import check_file
    from tunesmith.jobs.finetune import dataset_path
    from tunesmith.jobs.settings import read_columns, read_settings

    output = Output(json_wanted=json_wanted)
    mapped = read_columns(columns or [])
    settings = read_settings({"validation_fraction": "0", **({"render": render} if render is not None else {})})
    path = dataset_path(file, field="dataset")
    report = check_file(path, columns=mapped, name=file)
    preparation: Preparation | None = None
    if model is not None and report.num_errors == 0:
        from tunesmith.jobs.home import open_home
        from tunesmith.jobs.inspection import inspect
        from tunesmith.jobs.models import find_model
        from tunesmith.spec.datasets import DatasetInput, InspectRequest

        found = find_model(model)
        home = open_home(os.environ)
        question = InspectRequest(
            model_name=found.name,
            model_path=str(found.path),
            datasets=[DatasetInput(role="training", path=str(path), name=file, columns=mapped)],
            settings=settings,
            cache_folder=str(home.cache),
            with_previews=True,
        )
        try:
            preparation = inspect(question, home=home, environment=os.environ).preparation
        except InputRefused as error:
            if error.field == "model":
                raise
            report = _with_error(report, error)
    if json_wanted:
        output.result(as_object(report, preparation))
    else:
        tell_report(report, preparation, output=output)
    return 3 if report.num_errors else 0


def _with_error(report: DatasetReport, error: InputRefused) -> DatasetReport:
    """What only a tokenizer can find, such as a row longer than the context, stands among the other errors."""
    line = (error.field or "").removeprefix("line ")
    finding = Finding(
        line=int(line) if line.isdecimal() else None,
        column=None,
        code=error.code,
        message=error.message,
        hint=error.hint,
    )
    return report.model_copy(update={"errors": [*report.errors, finding], "num_errors": report.num_errors + 1})


def as_object(report: DatasetReport, preparation: Preparation | None) -> dict[str, Any]:
    tokens = preparation.training if preparation else None
    return {
        **report.as_json(),
        "tokens": tokens.as_json() if tokens else None,
        "longest_row": preparation.longest_row if preparation else None,
        "render": preparation.render if preparation else None,
        "notices": [notice.as_json() for notice in preparation.notices] if preparation else [],
        "previews": [preview.as_json() for preview in preparation.previews] if preparation else [],
    }


def tell_report(report: DatasetReport, preparation: Preparation | None, *, output: Output) -> None:
    kind = f" {report.kind.value}" if report.kind else ""
    output.say(f"{report.path}: {report.rows:,}{kind} rows, {report.duplicates:,} of them equal to an earlier one")
    for title, findings, total in (
        ("error", report.errors, report.num_errors),
        ("warning", report.warnings, report.num_warnings),
    ):
        for finding in findings:
            output.say(f"{title}: {_place(finding)}{finding.message} ({finding.code})")
            if finding.hint:
                output.say(f"    {finding.hint}")
        if total > len(findings):
            output.say(f"... and {total - len(findings):,} more {title}s")
    if preparation is not None:
        for notice in preparation.notices:
            output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
        tell_tokens(preparation.training, output=output)
        tell_previews(preparation, output=output)
    output.say("No errors." if not report.num_errors else f"{report.num_errors:,} errors: this file is refused.")


def _place(finding: Finding) -> str:
    """Line and column, where the message does not name them itself."""
    if finding.line is None or f"line {finding.line}" in finding.message:
        return ""
    return f"line {finding.line}" + (f" column {finding.column}" if finding.column else "") + ": "


def tell_tokens(tokens: TokenSummary, *, output: Output) -> None:
    output.say(f"Tokens: {tokens.total:,}, of them {tokens.to_learn:,} to learn")
    output.say("  row lengths: " + ", ".join(f"{name} % {value:,}" for name, value in tokens.percentiles.items()))
    most = max((rows for _, rows in tokens.histogram), default=1) or 1
    first = next((place for place, (_, rows) in enumerate(tokens.histogram) if rows), 0)
    for edge, rows in tokens.histogram[first:]:
        output.say(f"  up to {edge:>7,} {'#' * max(bool(rows), round(HISTOGRAM_WIDTH * rows / most)):<40} {rows:,}")


def tell_previews(preparation: Preparation, *, output: Output) -> None:
    """Rendered rows; what would be learned is green, and between « » where there is no colour."""
    from rich.text import Text

    screen = console(output)
    has_colour = screen.color_system is not None
    for preview in preparation.previews:
        output.say(f"{preview.which} row, line {preview.line}, {preview.tokens:,} tokens:")
        text = Text()
        for piece in preview.pieces:
            shown = visible(piece.text, keep_newlines=True)
            if piece.learned:
                text.append(shown if has_colour else f"«{shown}»", style="bold green")
            else:
                text.append(shown, style="dim")
        screen.print(text)
