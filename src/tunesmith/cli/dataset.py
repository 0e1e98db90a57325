"""`tunesmith dataset check FILE`: every fault with line and column; with a model, tokens and what would be learned.

And the datasets of the service: `list | show | rows | uses | upload | register | edit | delete`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    NameOption,
    SearchOption,
    TagOption,
    TagsOption,
    bytes_bar,
    complete_dataset,
    complete_location,
    connected,
    given,
    noun,
    read_tags,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output, visible
from tunesmith.cli.report import console
from tunesmith.errors import InputRefused, UsageFault
from tunesmith.spec.datasets import DatasetReport, Finding, Preparation, Preview, PreviewWish, TokenSummary
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.locations import is_bucket

app = noun("Check a file; upload and look at datasets.")
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Its id.", autocompletion=complete_dataset)]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="OURS=THEIRS,...", help="Names of the file's columns."),
]

HISTOGRAM_WIDTH = 40


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A JSONL, CSV or Parquet file; a path or s3://bucket/key.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Count tokens and show what is learned with this base model.")
    ] = None,
    columns: ColumnsOption = None,
    render: Annotated[str | None, typer.Option("--render", help="auto, chat or plain [default: auto]")] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Check every row of FILE. Exit code 3 if a row is at fault.

    With --model: a histogram of row lengths in tokens, and the longest, the shortest and two random rows with the
    tokens that would be learned in colour.
    """
    from tunesmith.data.rows import check_file
    from tunesmith.jobs.buckets import bucket_dataset
    from tunesmith.jobs.finetune import dataset_path
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.settings import read_columns, read_settings

    output = Output(json_wanted=json_wanted)
    mapped = read_columns(columns or [])
    settings = read_settings({"validation_fraction": "0", **({"render": render} if render is not None else {})})
    if is_bucket(file):
        path = bucket_dataset(file, home=open_home(os.environ), environment=os.environ)
    else:
        path = dataset_path(file, field="dataset")
    report = check_file(path, columns=mapped, name=file)
    preparation: Preparation | None = None
    if model is not None and report.num_errors == 0:
        try:
            preparation = _prepared(path, name=file, columns=mapped, model=model, settings=settings, wish=PreviewWish())
        except InputRefused as error:
            if error.field == "model":
                raise
            report = _with_error(report, error)
            if error.code == "ROW_TOO_LONG":  # its lengths are what the user wants to see now
                settings = settings.model_copy(update={"too_long": "cut"})
                preparation = _without_cuts(
                    _prepared(path, name=file, columns=mapped, model=model, settings=settings, wish=PreviewWish())
                )
    if json_wanted:
        output.result(as_object(report, preparation))
    else:
        tell_report(report, preparation, output=output)
    return 3 if report.num_errors else 0


def _prepared(
    path: Path, *, name: str, columns: dict[str, str], model: str, settings: TrainingSettings, wish: PreviewWish
) -> Preparation | None:
    """What the inspect worker tells of a file's rows under a model. Raises its refusal."""
    from tunesmith.jobs.buckets import bucket_model
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.inspection import inspect
    from tunesmith.jobs.models import find_model
    from tunesmith.spec.datasets import DatasetInput, InspectRequest

    home = open_home(os.environ)
    found = bucket_model(model, home=home, environment=os.environ) if is_bucket(model) else find_model(model)
    question = InspectRequest(
        model_name=found.name,
        model_path=str(found.path),
        datasets=[DatasetInput(role="training", path=str(path), name=name, columns=columns)],
        settings=settings,
        cache_folder=str(home.cache),
        preview=wish,
    )
    return inspect(question, home=home, environment=os.environ).preparation


@app.command()
def preview(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="The id of a dataset, or a file (a path or s3://bucket/key).",
            autocompletion=complete_dataset,
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="The base model whose tokens and template are shown.")],
    columns: ColumnsOption = None,
    render: Annotated[str | None, typer.Option("--render", help="auto, chat or plain [default: auto]")] = None,
    lines: Annotated[
        str | None,
        typer.Option("--lines", metavar="LINE,...", help="Rows to show, by the lines at which they start; at most 20."),
    ] = None,
    spans: Annotated[bool, typer.Option("--spans", help="Show each row token by token.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """Show rows as a model sees them, with what it learns in colour: the longest, the shortest and two others.

    With --lines the rows that start there.
    """
    from tunesmith.jobs.inputs import DATASET_ID
    from tunesmith.jobs.settings import read_columns, read_lines, read_settings
    from tunesmith.spec.api import DatasetPreview

    output = Output(json_wanted=json_wanted)
    settings = read_settings(
        {"validation_fraction": "0", "too_long": "cut", **({"render": render} if render is not None else {})}
    )
    wish = PreviewWish(lines=read_lines(lines), spans=spans)
    if DATASET_ID.fullmatch(dataset):
        if columns:
            raise UsageFault(
                "OPTIONS_EXCLUDE", "--columns is for files: a dataset keeps those that it was checked with.",
                field="columns", hint="Leave it out, or upload the file again with other columns.",
            )  # fmt: skip
        with connected() as client:
            found = client.datasets.preview(dataset, model, render=settings.render, lines=wish.lines, spans=spans)
    else:
        from tunesmith.data.rows import check_file, require_rows
        from tunesmith.jobs.buckets import bucket_dataset
        from tunesmith.jobs.finetune import dataset_path
        from tunesmith.jobs.home import open_home

        mapped = read_columns(columns or [])
        if is_bucket(dataset):
            path = bucket_dataset(dataset, home=open_home(os.environ), environment=os.environ)
        else:
            path = dataset_path(dataset, field="dataset")
        require_rows(check_file(path, columns=mapped, name=dataset))
        told = _prepared(path, name=dataset, columns=mapped, model=model, settings=settings, wish=wish)
        assert told is not None, "a dataset was given"
        found = DatasetPreview(render=told.render, tokens=told.training, previews=told.previews, notices=told.notices)
    if not json_wanted:
        for notice in found.notices:
            output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
        tell_previews(found.previews, output=output)
    output.result(found.as_json())
    return 0


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


def _without_cuts(preparation: Preparation | None) -> Preparation | None:
    """The rows as they stand: that some would be cut is not what was asked."""
    if preparation is None:
        return None
    notices = [notice for notice in preparation.notices if notice.code != "ROWS_CUT"]
    return preparation.model_copy(update={"notices": notices})


def as_object(report: DatasetReport, preparation: Preparation | None) -> dict[str, Any]:
    tokens = preparation.training_file if preparation else None
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
        if preparation.training_file is not None:
            tell_tokens(preparation.training_file, output=output)
        tell_previews(preparation.previews, output=output)
    errors = f"{report.num_errors:,} error{'s' * (report.num_errors != 1)}"
    output.say(f"{errors}: this file is refused." if report.num_errors else "No errors.")


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


def tell_previews(previews: Sequence[Preview], *, output: Output) -> None:
    """Rendered rows; what would be learned is green, and between « » where there is no colour; | parts spans."""
    from rich.text import Text

    screen = console(output)
    has_colour = screen.color_system is not None and not screen.no_color
    for preview in previews:
        output.say(f"{preview.which} row, line {preview.line}, {preview.tokens:,} tokens:")
        text = Text()
        for place, piece in enumerate(preview.spans or preview.pieces):
            if place and preview.spans:
                text.append("|", style="blue")
            shown = visible(piece.text, keep_newlines=True)
            if piece.learned:
                text.append(shown if has_colour else f"«{shown}»", style="bold green")
            else:
                text.append(shown, style="dim")
        screen.print(text)
        if preview.tokens_left_out:
            output.say(f"... and {preview.tokens_left_out:,} more tokens")


# ---- datasets of the service


@app.command("list")
def list_(
    search: SearchOption = None, tag: TagOption = None, limit: LimitOption = None, json_wanted: JsonOption = False
) -> int:
    """List the service's datasets, the newest first."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        datasets = client.datasets.list(search=search, tag=tag, limit=limit)
    if not json_wanted:
        rows = [
            (each.dataset_id, each.kind, each.rows, each.bytes, each.created_at[:19], each.name) for each in datasets
        ]
        tell_table(
            output, ("id", "kind", "rows", "bytes", "created", "name"), rows,
            none="No datasets. `tunesmith dataset upload FILE` makes the first one.",
        )  # fmt: skip
    output.result({"datasets": [each.as_json() for each in datasets]})
    return 0


@app.command()
def show(dataset: Dataset, json_wanted: JsonOption = False) -> int:
    """Show a dataset of the service with the report of its check."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view, report = client.datasets.get(dataset), client.datasets.report(dataset)
    if not json_wanted:
        tell_fields(output, view.as_json())
        tell_report(report, None, output=output)
    output.result({**view.as_json(), "report": report.as_json()})
    return 0


@app.command()
def upload(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A JSONL, CSV or Parquet file.")],
    name: NameOption = None,
    columns: ColumnsOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Upload FILE to the service. It is checked while it arrives: exit code 3 if a row is at fault."""
    from tunesmith.jobs.settings import read_columns

    output = Output(json_wanted=json_wanted)
    with connected() as client, bytes_bar(output) as progress:
        view = client.datasets.upload(
            file, name=name, columns=read_columns(columns) if columns else None, progress=progress
        )
    output.say(f"Dataset {view.dataset_id}: {view.rows:,} rows, {view.bytes:,} bytes, {view.num_warnings:,} warnings")
    output.result(view.as_json())
    return 0


@app.command()
def register(
    location: Annotated[
        str, typer.Argument(metavar="LOCATION", help="A declared location.", autocompletion=complete_location)
    ],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Within it.")],
    name: NameOption = None,
    columns: ColumnsOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Make a dataset of an object that stays where it lies, pinned by its version."""
    from tunesmith.jobs.settings import read_columns

    output = Output(json_wanted=json_wanted)
    with connected() as client:
        view = client.datasets.register(location, path, name=name, columns=read_columns(columns) if columns else None)
    output.say(f"Dataset {view.dataset_id}: {view.rows:,} rows of {view.source_uri}")
    output.result(view.as_json())
    return 0


@app.command()
def rows(
    dataset: Dataset,
    after: Annotated[int, typer.Option("--after", min=0, help="Only rows behind this line.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="At most this many.")] = 20,
    json_wanted: JsonOption = False,
) -> int:
    """Show rows of a dataset as they stand in its file, with what its check found in each."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.datasets.rows(dataset, after=after, limit=limit)
    for row in found if not json_wanted else ():
        output.say(f"line {row.line}")
        for each in row.texts:
            more = each.characters - len(each.text)
            output.say(f"  {each.role}: {each.text}" + (f"… ({more:,} more characters)" if more else ""))
        for warning in row.warnings:
            output.say(f"  ! {warning.message}")
    if not found:
        output.say(f"No rows behind line {after}.")
    output.result({"rows": [each.as_json() for each in found]})
    return 0


@app.command()
def uses(dataset: Dataset, json_wanted: JsonOption = False) -> int:
    """Show what was trained on a dataset, and its other versions: of the same name, or of the same place."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.datasets.uses(dataset)
    if not json_wanted:
        made = [(each.model_version, each.shown_state, each.outcome, each.created_at[:19]) for each in found.versions]
        tell_table(output, ("version", "state", "verdict", "created"), made, none="Nothing was trained on it.")
        others = [(each.dataset_id, each.rows, each.created_at[:19], each.name) for each in found.siblings]
        if others:
            tell_table(output, ("other version", "rows", "created", "name"), others, none="")
    output.result(found.as_json())
    return 0


@app.command()
def edit(
    dataset: Dataset,
    name: NameOption = None,
    description: DescriptionOption = None,
    tag: TagsOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change name, description or tags; the tags given replace all that were there."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import NounChange

    output = Output(json_wanted=json_wanted)
    wanted = given(name=name, description=description, tags=read_tags(tag))
    with connected() as client:
        view = client.datasets.edit(dataset, checked(NounChange, **wanted))
    if not json_wanted:
        tell_fields(output, view.as_json())
    output.result(view.as_json())
    return 0


@app.command()
def delete(dataset: Dataset, json_wanted: JsonOption = False) -> int:
    """Delete a dataset; refused while a job needs it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.datasets.delete(dataset)
    output.say(f"Deleted the dataset {dataset}.")
    output.result({"deleted": dataset})
    return 0
