"""`tunesmith model list | search | show | register | edit | delete`: base models, here and elsewhere."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

import typer

from tunesmith.cli.checked import checked
from tunesmith.cli.connected import (
    DescriptionOption,
    JsonOption,
    LimitOption,
    TagOption,
    TagsOption,
    complete_model,
    connected,
    given,
    noun,
    read_tags,
    tell_fields,
    tell_table,
)
from tunesmith.cli.download import bring, download_model
from tunesmith.cli.output import Output
from tunesmith.errors import UsageFault
from tunesmith.spec import names
from tunesmith.spec.explorer import Label, ModelDetail, Sort
from tunesmith.spec.hub import HubQuery
from tunesmith.spec.known_models import Kind
from tunesmith.spec.models import ModelFacts

app = noun("Base models: those of the catalog, well-known ones, and what is in a folder.")
LicenceNoteOption = Annotated[
    str | None, typer.Option("--licence-note", help="What your organisation has to say about its licence.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Its name.", autocompletion=complete_model)]


app.command("download")(download_model)


@app.command("list")
def list_(tag: TagOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the base models of the catalog; `model search` knows others, too."""
    from tunesmith.cli.report import gigabytes

    output = Output(json_wanted=json_wanted)
    with connected() as client:
        models = client.models.list(tag=tag, limit=limit)
    if not json_wanted:
        rows = [
            (
                each.name,
                _in_short(each.facts.parameters),
                gigabytes(each.facts.weight_bytes),
                each.facts.context_length,
                each.facts.licence,
                each.description,
            )
            for each in models
        ]
        tell_table(
            output, ("name", "parameters", "weights", "context", "licence", "description"), rows,
            none="No model is called so.",
        )  # fmt: skip
    output.result({"models": [each.as_json() for each in models]})
    return 0


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Words of a name, publisher or tag.")] = None,
    label: Annotated[Label | None, typer.Option(help="Only with this label.")] = None,
    family: Annotated[str | None, typer.Option(help="As in `Llama 3.1`.")] = None,
    publisher: Annotated[str | None, typer.Option(help="As in `Mistral AI`.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="What it was made for.")] = None,
    licence: Annotated[str | None, typer.Option(help="As in `apache-2.0`.")] = None,
    tag: TagOption = None,
    here: Annotated[
        bool | None, typer.Option("--here/--elsewhere", help="Only models whose weights are here, or only others.")
    ] = None,
    minimum: Annotated[str | None, typer.Option("--minimum-size", metavar="SIZE", help="Parameters: 500M, 3B.")] = None,
    maximum: Annotated[str | None, typer.Option("--maximum-size", metavar="SIZE", help="Parameters: 500M, 3B.")] = None,
    sort: Annotated[Sort, typer.Option(help="Order of the list.")] = Sort.RELEVANCE,
    hub: Annotated[bool, typer.Option("--hub", help="Search the Hugging Face Hub instead.")] = False,
    author: Annotated[str | None, typer.Option(help="With --hub: of this account.")] = None,
    task: Annotated[str | None, typer.Option(help="With --hub: default text-generation.")] = None,
    limit: LimitOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Search base models: those of the catalog, and well-known ones whose weights are not here; or the hub."""
    output = Output(json_wanted=json_wanted)
    if hub:
        _refuse_with_hub(
            label=label, family=family, publisher=publisher, kind=kind, tag=tag, here=here,
            sort=None if sort is Sort.RELEVANCE else sort,
        )  # fmt: skip
        wishes = {
            "author": author, "task": task, "licence": licence, "limit": limit,
            "minimum_parameters": _parameters(minimum, "--minimum-size"),
            "maximum_parameters": _parameters(maximum, "--maximum-size"),
        }  # fmt: skip
        return _search_hub(text, wishes, output)
    if author is not None or task is not None:
        raise UsageFault("BAD_OPTION", "--author and --task are for the hub.", field="author", hint="Add --hub.")
    filters = {
        "label": label, "family": family, "publisher": publisher, "kind": kind, "licence": licence, "tag": tag,
        "here": here, "minimum_parameters": _parameters(minimum, "--minimum-size"),
        "maximum_parameters": _parameters(maximum, "--maximum-size"), "sort": sort,
    }  # fmt: skip
    with connected() as client:
        cards = client.models.explore(
            text, limit=limit, **{name: each for name, each in filters.items() if each is not None}
        )
    if not json_wanted:
        rows = [
            (
                card.name,
                _in_short(card.parameters),
                card.context_length,
                card.licence,
                ", ".join(each.label for each in card.labels),
            )
            for card in cards
        ]
        tell_table(output, ("name", "parameters", "context", "licence", "labels"), rows, none="No model is so.")
    output.result({"models": [card.as_json() for card in cards]})
    return 0


def _refuse_with_hub(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageFault(
                "BAD_OPTION", f"--{name} does not go with --hub.", field=name,
                hint="The hub is searched by TEXT, --author, --task, --licence and size.",
            )  # fmt: skip


def _search_hub(text: str | None, wishes: dict[str, Any], output: Output) -> int:
    given = {name: value for name, value in wishes.items() if value is not None}
    query = checked(HubQuery, search=text, **given)
    with connected() as client:
        models = client.hub.search(text, **query.model_dump(exclude_unset=True, exclude={"search"}))
    if not output.json_wanted:
        rows = [
            (
                each.hub_id + (" (here)" if each.is_here else ""),
                _in_short(each.parameters),
                (each.licence or "-") + (", gated" if each.is_gated else ""),
                each.downloads,
                ", ".join(label.label for label in each.labels),
            )
            for each in models
        ]
        tell_table(output, ("name", "parameters", "licence", "downloads", "labels"), rows, none="The hub has none so.")
    output.result({"models": [each.as_json() for each in models]})
    return 0


def _parameters(text: str | None, option: str) -> int | None:
    """`3B`, `500M` or a plain number. Raises UsageFault."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMBkmb]?)", text.strip())
    if found is None:
        raise UsageFault(
            "BAD_OPTION", f"{option}: {text[:40]!r} is no number of parameters.", field=option.removeprefix("--"),
            hint="Write 500M, 3B or 7.6B.",
        )  # fmt: skip
    return int(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[found[2].lower()])


def _in_short(parameters: int | None) -> str | None:
    if parameters is None:
        return None
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


@app.command()
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME or OWNER/NAME.")],
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", help="A folder on the server's machine, LOCATION:PATH, s3://bucket/prefix, or a hub id."
        ),
    ],
    description: DescriptionOption = None,
    tag: TagsOption = None,
    licence_note: LicenceNoteOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Give a model a name in the catalog: a folder, or what lies in a location or a bucket. It is inspected first.

    OWNER/NAME that is no folder here is a model of the hub: it is downloaded, as `model download` does.
    """
    from pathlib import Path

    from tunesmith.jobs.inputs import in_location
    from tunesmith.storage.locations import is_uri

    output = Output(json_wanted=json_wanted)
    if names.HUB_ID.is_met(place) and not os.path.exists(place):
        wishes = {"hub_id": place, "name": name, "description": description or "", "tags": read_tags(tag) or {}}
        return bring(wishes, output=output)
    with connected() as client:
        is_path = not is_uri(place) and (os.path.exists(place) or in_location(place) is None)
        path = str(Path(place).absolute()) if is_path and client.wire.endpoint.is_loopback else place
        view = client.models.register(
            name, path, description=description or "", tags=read_tags(tag), licence_note=licence_note or ""
        )
    output.say(f"Model {view.name}: {view.path}")
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    model: Model,
    description: DescriptionOption = None,
    tag: TagsOption = None,
    licence_note: LicenceNoteOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Change description, tags or licence note of a model of the catalog; tags given replace all that were there."""
    from tunesmith.spec.catalog import BaseModelChange

    output = Output(json_wanted=json_wanted)
    wanted = given(description=description, tags=read_tags(tag), licence_note=licence_note)
    with connected() as client:
        view = client.models.edit(model, checked(BaseModelChange, **wanted))
    if not json_wanted:
        tell_fields(
            output,
            {
                "name": view.name,
                "description": view.description,
                "tags": view.tags,
                "licence note": view.licence_note,
            },
        )
    output.result(view.as_json())
    return 0


@app.command()
def delete(model: Model, json_wanted: JsonOption = False) -> int:
    """Take a model out of the catalog; its folder stays as it is."""
    output = Output(json_wanted=json_wanted)
    with connected() as client:
        client.models.delete(model)
    output.say(f"The model {model} is in the catalog no more; its folder is as it was.")
    output.result({"deleted": model})
    return 0


@app.command()
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name of `model search`, a folder or s3://bucket/prefix.")
    ],
    json_wanted: JsonOption = False,
) -> int:
    """Show MODEL: architecture, size, context, licence, labels, the memory that fine-tuning it needs here.

    A folder or a bucket's prefix is inspected: tokenizer, digest, the modules that can carry an adapter.
    """

    from tunesmith.bundled import MODEL_NAME
    from tunesmith.storage.locations import is_uri

    output = Output(json_wanted=json_wanted)
    is_place = is_uri(model) or model.startswith((".", "/", "~")) or (model != MODEL_NAME and os.path.exists(model))
    if is_place or not names.MODEL_NAME.is_met(model):
        facts = _inspected(model)
        if not json_wanted:
            _tell_facts(output, facts)
        output.result(facts.as_json())
        return 0
    with connected() as client:
        detail = client.models.detail(model)
    if not json_wanted:
        _tell_detail(output, detail)
    facts = detail.facts.as_json() if detail.facts is not None else {"name": detail.card.name}
    output.result({**facts, "explorer": detail.model_dump(mode="json", exclude={"facts"})})
    return 0


def _inspected(model: str) -> ModelFacts:
    from tunesmith.jobs.buckets import bucket_model
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.inspection import inspect
    from tunesmith.jobs.models import find_model
    from tunesmith.spec.datasets import InspectRequest
    from tunesmith.storage.locations import is_bucket

    home = open_home(os.environ)
    found = bucket_model(model, home=home, environment=os.environ) if is_bucket(model) else find_model(model)
    question = InspectRequest(model_name=found.name, model_path=str(found.path))
    facts = inspect(question, home=home, environment=os.environ).facts
    assert facts is not None, "an inspection answers with facts or an error"
    return facts


def _tell_detail(output: Output, detail: ModelDetail) -> None:
    from tunesmith.cli.report import gigabytes

    card = detail.card
    if detail.facts is not None:
        _tell_facts(output, detail.facts)
    else:
        size = gigabytes(card.weight_bytes) if card.weight_bytes else None
        fields = {
            "name": card.name,
            "title": card.title,
            "publisher": card.publisher,
            "architecture": f"{card.architecture} ({card.model_type})",
            "parameters": card.parameters,
            "weights": f"about {size} in {card.dtype}, derived from the parameters",
            "context": f"{card.context_length:,} tokens",
            "licence": card.licence + (" (its terms are accepted on the hub)" if card.is_gated else "")
            if card.licence
            else None,
            "revision": card.revision or "not known; a download pins the newest one",
            "note": card.description,
        }
        tell_fields(output, fields)
    for name, value in (("tags", card.tags), ("licence note", detail.licence_note)):
        if value:
            output.say(f"{name:<16} {value}")
    for each in card.labels:
        output.say(f"* {each.label}: {each.reason}")
    if detail.memory:
        rows = [
            (each.device_name, each.sequence_length, each.precision, gigabytes(each.peak_bytes), each.verdict)
            for each in detail.memory
        ]
        tell_table(output, ("fine-tuning on", "tokens a row", "precision", "memory", "verdict"), rows, none="")
    if detail.memory_note is not None:
        output.say(detail.memory_note)
    for version in detail.tuned:
        output.say(f"fine-tuned: {version.model_version} ({version.shown_state})")
    for named in detail.sources:
        output.say(
            f"source of {named.facts}: {named.source.title}" + (f", {named.source.url}" if named.source.url else "")
        )


def _tell_facts(output: Output, facts: ModelFacts) -> None:
    from tunesmith.cli.report import gigabytes

    targets = sorted({module.name.rpartition(".")[2] for module in facts.linear_modules})
    rows = {
        "name": facts.name,
        "folder": facts.path,
        "architecture": f"{facts.architecture} ({facts.model_type})",
        "parameters": f"{facts.parameters:,}",
        "weights": f"{gigabytes(facts.weight_bytes)} in {facts.dtype}",
        "context": f"{facts.context_length:,} tokens",
        "layers": f"{facts.num_layers}, hidden size {facts.hidden_size:,}, {facts.num_attention_heads} heads "
        f"({facts.num_key_value_heads} for keys and values)",
        "vocabulary": f"{facts.vocabulary_size:,} ({facts.tokenizer_size:,} in the tokenizer)",
        "chat template": "yes" if facts.has_chat_template else "no",
        "end token": f"{facts.end_token} ({facts.end_token_id})",
        "tied embeddings": "yes" if facts.tied_embeddings else "no",
        "target modules": f"{', '.join(targets)} ({len(facts.linear_modules)} in all)",
        "licence": facts.licence or "not stated",
        "digest": facts.digest,
    }
    for name, value in rows.items():
        output.say(f"{name:<16} {value}")
    for notice in facts.notices:
        output.say(f"! {notice}")
