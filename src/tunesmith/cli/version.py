"""`tunesmith version list | register | show | metrics | compare | answers | lineage | alias | ...`: tuned models."""

from __future__ import annotations

import os
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
    bytes_bar,
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
    from tunesmith.client.synchronous.client import Client
    from tunesmith.spec.catalog import Difference, VersionDetail, VersionMetrics, VersionView
    from tunesmith.spec.metrics import Sample

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
def register(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", help="The adapter's folder on the server's machine, LOCATION:PATH, or s3://bucket/prefix."
        ),
    ],
    version_set: Annotated[
        str, typer.Argument(metavar="SET", help="Version set.", autocompletion=complete_version_set)
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", help="Base model in the catalog. Default: the one that the adapter's config names."),
    ] = None,
    render: Annotated[
        str, typer.Option("--render", help="How it was trained to read prompts: auto, chat or plain.")
    ] = "auto",
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="JSON file with what its training measured, epoch by epoch.")
    ] = None,
    results: Annotated[
        str | None, typer.Option("--results", help="Where its copy goes: LOCATION:PATH or a URI.")
    ] = None,
    name: NameOption = None,
    description: DescriptionOption = None,
    tag: TagsOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Register an adapter that was trained elsewhere (PEFT's format) as a version; it is held against its base."""
    from tunesmith.cli.checked import checked
    from tunesmith.jobs.inputs import in_location
    from tunesmith.spec.catalog import NewVersion
    from tunesmith.storage.locations import is_uri

    output = Output(json_wanted=json_wanted)
    known = _read_metrics(metrics) if metrics is not None else None
    with connected() as client:
        is_path = not is_uri(place) and (os.path.exists(place) or in_location(place) is None)
        path = str(Path(place).absolute()) if is_path and client.wire.endpoint.is_loopback else place
        wanted = checked(
            NewVersion, path=path, version_set=version_set, base=base, render=render, results=results, metrics=known,
            name=name or "", description=description or "", tags=read_tags(tag) or {},
        )  # fmt: skip
        detail = client.versions.register(
            path, version_set, base=base, render=wanted.render, name=wanted.name, description=wanted.description,
            tags=wanted.tags, metrics=known, results=results,
        )  # fmt: skip
    if not json_wanted:
        _tell_version(output, detail.version)
        _tell_registration(output, detail)
    output.result(detail.as_json())
    return 0


def _read_metrics(path: Path) -> VersionMetrics:
    from pydantic import ValidationError

    from tunesmith.spec.catalog import VersionMetrics
    from tunesmith.spec.faults import invalid

    try:
        return VersionMetrics.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageFault(
            "UNREADABLE_FILE", f"--metrics {path}: {error.strerror}.", field="metrics", hint="Name a JSON file."
        ) from error
    except ValidationError as error:
        raise UsageFault(
            "INVALID_FIELD",
            f"--metrics {path}: {invalid(error.errors()).message}",
            field="metrics",
            hint='It looks like {"epochs": [{"epoch": 1, "training": {"loss": ...}, "validation": {...}}], '
            '"best_epoch": 1}; `tunesmith version metrics --json` shows one.',
        ) from error


def _tell_registration(output: Output, detail: VersionDetail) -> None:
    if detail.lineage is not None and (found := detail.lineage.registration) is not None:
        how = {
            "hash": "the base's digest stands in its file",
            "shapes": "its file names no digest; every matrix fits this base",
        }
        tell_fields(
            output,
            {"trained elsewhere": found.source, "its base": found.base_named, "matched by": how[found.matched_by]},
        )


@app.command()
def show(version: Version, json_wanted: JsonOption = False) -> int:
    """Show a version: what it was made from, its metrics, its verdict, its files."""
    from tunesmith.cli.report import tell_samples

    output = Output(json_wanted=json_wanted)
    with connected() as client:
        detail = client.versions.get(version)
    if not json_wanted:
        _tell_version(output, detail.version)
        if detail.lineage is not None:
            lineage = detail.lineage
            datasets = [f"{each.name} ({each.role}, {each.rows:,} rows)" for each in lineage.datasets]
            tell_fields(output, {"made from": lineage.base_name, "data": datasets, "parent": lineage.parent})
            _tell_registration(output, detail)
        _tell_metrics(output, detail.metrics)
        if detail.verdict is not None:
            output.say(f"Verdict: {detail.verdict.outcome.value}")
            for reason in detail.verdict.reasons:
                output.say(f"  - {reason}")
        tell_samples(output, detail.samples)
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
def lineage(version: Version, json_wanted: JsonOption = False) -> int:
    """Show where a version comes from: base, datasets, the versions it went on from, and what went on from it."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        graph = client.versions.lineage(version)
    if not json_wanted:
        names = {node.id: node for node in graph.nodes}
        for node in graph.nodes:
            if node.kind != "version":
                continue
            output.say(f"{node.name} ({node.detail})" + (" <- this one" if node.is_asked else ""))
            for edge in graph.edges:
                if edge.target == node.id:
                    source = names[edge.source]
                    output.say(f"  {edge.role:<10}  {source.name} ({source.detail})")
        if graph.is_cut:
            output.say("There are more: older ancestors, or further descendants.")
    output.result(graph.as_json())
    return 0


@app.command()
def answers(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Versions and bases, up to four.", autocompletion=complete_version),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt; once for each. Default: held-out samples.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0: always the likeliest.")] = 0.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of each answer.")] = 256,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same answers.")] = None,
    json_wanted: JsonOption = False,
) -> int:
    """Ask several models the same: a base beside its tuned version, or two versions.

    Without --prompt the held-out samples of the first version are asked, with the answer that was wanted beside them.
    """
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        wanted = None if prompt else _samples(client, models)
        prompts = prompt or [sample.prompt for sample in wanted or []]
        found = client.versions.answers(models, prompts, temperature=temperature, max_tokens=max_tokens, seed=seed)
    if not json_wanted:
        for each in found:
            if each.model == models[0]:
                output.say(f"\n> {prompts[each.prompt]}")
                if wanted is not None:
                    output.say(f"wanted: {wanted[each.prompt].expected}")
            text = each.text if each.error is None else f"{each.text} (broken off: {each.error['message']})"
            output.say(f"{each.model}: {text}")
    output.result({"prompts": prompts, "answers": [each.as_json() for each in found]})
    return 0


def _samples(client: Client, models: list[str]) -> list[Sample]:
    """Held-out prompts of the first model that has some. Raises UsageFault."""
    for model in models:
        if ":" in model or "@" in model:
            samples = client.versions.get(model).samples
            if samples:
                return samples
    raise UsageFault(
        "BAD_OPTION", "None of these keeps held-out samples to ask.", field="prompt", hint="Add --prompt TEXT."
    )


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
    target: Annotated[
        str | None, typer.Argument(metavar="FILE", help="NAME.zip, or a folder to make; default: SET-NUMBER.zip.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the zip file where there is one.")] = False,
    json_wanted: JsonOption = False,
) -> int:
    """Write the whole artifact of a version into one zip file, or into a folder."""
    from tunesmith.client.export import is_zip, require_free

    output = Output(json_wanted=json_wanted)
    path = Path(target or version.replace(":", "-").replace("@", "-").replace("/", "-") + ".zip")
    if not is_zip(path):
        require_free(path)
    elif path.exists() and not replace:
        raise Conflict(
            "FILE_EXISTS", f"{path} is there already.", field="FILE", hint="Name another file, or say --replace."
        )
    with connected() as client, bytes_bar(output) as progress:
        client.versions.export(version, path, progress=progress)
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    size = sum(each.stat().st_size for each in files)
    output.say(f"Wrote {path} ({size:,} bytes)")
    output.result({"model_version": version, "path": str(path.absolute()), "bytes": size})
    return 0
