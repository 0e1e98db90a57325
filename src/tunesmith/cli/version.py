"""`tunesmith version list | show | metrics | compare | alias | edit | delete | export`: tuned models in the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    NameOption,
    SearchOption,
    TagOption,
    TagsOption,
    complete_version,
    complete_version_set,
    connected,
    given,
    noun,
    read_tags,
    tell_fields,
    tell_table,
)
from tunesmith.cli.output import Output
from tunesmith.errors import Conflict, UsageFault

if TYPE_CHECKING:
    from tunesmith.spec.catalog import Difference, VersionMetrics, VersionView

app = noun("Tuned models: their metrics, aliases and files.")
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="SET:NUMBER or SET@ALIAS.", autocompletion=complete_version)
]


@app.command("list")
def list_(
    search: SearchOption = None,
    version_set: Annotated[
        str | None, typer.Option("--set", help="Only of this version set.", autocompletion=complete_version_set)
    ] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Only in this state: CREATING, ACTIVE, FAILED, CANCELED or DELETED.")
    ] = None,
    tag: TagOption = None,
    limit: LimitOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """List model versions, the newest first."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        versions = client.versions.list(search=search, version_set=version_set, state=state, tag=tag, limit=limit)
    if not json_wanted:
        rows = [
            (each.model_version, each.shown_state, each.outcome, each.base_name, each.created_at[:19],
             each.aliases or None, each.name)
            for each in versions
        ]  # fmt: skip
        tell_table(
            output, ("version", "state", "verdict", "base", "created", "aliases", "name"), rows,
            none="No model versions. `tunesmith finetune` makes the first one.",
        )  # fmt: skip
    output.result({"versions": [each.as_json() for each in versions]})
    return 0


@app.command()
def show(version: Version, json_wanted: JsonOption = False) -> int:
    """Show a version: what it was made from, its metrics, its verdict, its files."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        detail = client.versions.get(version)
    if not json_wanted:
        _tell_version(output, detail.version)
        if detail.lineage is not None:
            lineage = detail.lineage
            datasets = [f"{each.name} ({each.role}, {each.rows:,} rows)" for each in lineage.datasets]
            tell_fields(output, {"made from": lineage.base_name, "data": datasets, "parent": lineage.parent})
        _tell_metrics(output, detail.metrics)
        if detail.verdict is not None:
            output.say(f"Verdict: {detail.verdict.outcome.value}")
            for reason in detail.verdict.reasons:
                output.say(f"  - {reason}")
        tell_table(
            output, ("bytes", "file"), [(each.size, each.path) for each in detail.files], none="No files are published."
        )
    output.result(detail.as_json())
    return 0


def _tell_version(output: Output, version: VersionView) -> None:
    tell_fields(
        output,
        {
            "version": version.model_version,
            "state": version.shown_state,
            "name": version.name,
            "description": version.description,
            "aliases": version.aliases,
            "tags": version.tags,
            "job": version.job_id,
            "artifact": version.artifact_uri,
            "created": version.created_at,
        },
    )


def _tell_metrics(output: Output, metrics: VersionMetrics) -> None:
    from tunesmith.cli.report import EPOCH_HEADER, epoch_line

    if metrics.epochs:
        output.say(EPOCH_HEADER)
    for epoch in metrics.epochs:
        is_best = " best" if epoch.epoch == metrics.best_epoch else ""
        output.say(epoch_line(epoch.epoch, epoch.training, epoch.validation) + is_best)


@app.command()
def metrics(version: Version, json_wanted: JsonOption = False) -> int:
    """Show loss and accuracy of each epoch; epoch 0 is the base."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.versions.metrics(version)
    if not json_wanted:
        _tell_metrics(output, found)
        if not found.epochs:
            output.say("No epoch has ended yet.")
    output.result(found.as_json())
    return 0


@app.command()
def compare(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="A version.", autocompletion=complete_version)],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="Another one.", autocompletion=complete_version)],
    json_wanted: JsonOption = False,
) -> int:
    """Compare two versions: what differs in settings and data, and both best epochs' scores."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        found = client.versions.compare(left, right)
    if not json_wanted:
        sides = (found.left.version.model_version, found.right.version.model_version)
        scores = [
            (each.name, _number(each.left), _number(each.right), _number(each.difference)) for each in found.scores
        ]
        tell_table(output, ("score", *sides, "difference"), scores, none="Neither was measured.")
        _tell_differences(output, "setting", sides, found.settings)
        _tell_differences(output, "data", sides, found.data)
        for notice in found.notices:
            output.say(f"! {notice.message}" + (f" {notice.hint}" if notice.hint else ""))
    output.result(found.as_json())
    return 0


def _tell_differences(output: Output, what: str, sides: tuple[str, str], differences: list[Difference]) -> None:
    rows = [(each.name, str(each.left), str(each.right)) for each in differences]
    tell_table(output, (what, *sides), rows, none=f"The same {what}s." if what == "setting" else "The same data.")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


@app.command()
def alias(
    alias: Annotated[str, typer.Argument(metavar="SET@ALIAS", help="As in support-bot@prod.")],
    number: Annotated[int | None, typer.Argument(metavar="NUMBER", help="The version it shall point at.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the alias away.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """Point SET@ALIAS at a version of its set, or take it away. A version with an alias cannot be deleted."""
    output = Output(json_wanted=json_wanted)
    version_set, at, name = alias.partition("@")
    if not (version_set and at and name) or (number is None) != delete:
        raise UsageFault(
            "BAD_OPTION", "An alias is named as SET@ALIAS, with the number that it shall point at, or with --delete.",
            field="SET@ALIAS", hint="For example `tunesmith version alias support-bot@prod 3`.",
        )  # fmt: skip
    with connected() as client:
        if number is None:
            client.version_sets.delete_alias(version_set, name)
            output.say(f"Took {alias} away.")
            output.result({"deleted": alias})
        else:
            view = client.version_sets.set_alias(version_set, name, number)
            output.say(f"{alias} is {view.model_version}")
            output.result(view.as_json())
    return 0


@app.command()
def edit(
    version: Version,
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
        view = client.versions.edit(version, checked(NounChange, **wanted))
    if not json_wanted:
        _tell_version(output, view)
    output.result(view.as_json())
    return 0


@app.command()
def delete(
    version: Version,
    with_bytes: Annotated[bool, typer.Option("--with-bytes", help="Delete its files too, for ever.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """Delete a version from the catalog. Its files stay where they are without --with-bytes."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.versions.delete(version, with_bytes=with_bytes)
    output.say(f"Deleted {version}" + (" with its files." if with_bytes else "; its files stay where they are."))
    output.result({"deleted": version, "with_bytes": with_bytes})
    return 0


@app.command()
def export(
    version: Version,
    target: Annotated[str | None, typer.Argument(metavar="FILE", help="A zip file; default: SET-NUMBER.zip.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file where there is one.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """Write the whole artifact of a version into one zip file."""
    output = Output(json_wanted=json_wanted)
    path = Path(target or version.replace(":", "-").replace("@", "-").replace("/", "-") + ".zip")
    if path.exists() and not replace:
        raise Conflict(
            "FILE_EXISTS", f"{path} is there already.", field="FILE", hint="Name another file, or say --replace."
        )
    with connected() as client:
        client.versions.export(version, path)
    output.say(f"Wrote {path} ({path.stat().st_size:,} bytes)")
    output.result({"model_version": version, "path": str(path.absolute()), "bytes": path.stat().st_size})
    return 0
