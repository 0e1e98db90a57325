"""`tunesmith model list | search | show | register | edit | delete`: base models. `show` reads the folder itself."""

from __future__ import annotations

import os
from typing import Annotated

import typer

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
from tunesmith.cli.output import Output

app = noun("Base models: those of the catalog, and what is in their folders.")
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Its name.", autocompletion=complete_model)]


@app.command("list")
def list_(tag: TagOption = None, limit: LimitOption = None, json_wanted: JsonOption = False) -> int:
    """List the base models of the catalog."""
    return _list(None, tag=tag, limit=limit, output=Output(json_wanted=json_wanted))


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Part of a name or description.")],
    limit: LimitOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """List the base models whose name or description holds TEXT."""
    return _list(text, tag=None, limit=limit, output=Output(json_wanted=json_wanted))


def _list(text: str | None, *, tag: str | None, limit: int | None, output: Output) -> int:
    from tunesmith.cli.report import gigabytes

    with connected() as client:
        models = client.models.list(search=text, tag=tag, limit=limit)
    if not output.json_wanted:
        rows = [
            (
                each.name,
                f"{each.facts.parameters / 1e6:,.0f} M" if each.facts else None,
                gigabytes(each.facts.weight_bytes) if each.facts else None,
                each.facts.context_length if each.facts else None,
                each.facts.licence if each.facts else None,
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
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME or OWNER/NAME.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The model's folder on the server's machine.")],
    description: DescriptionOption = None,
    tag: TagsOption = None,
    json_wanted: JsonOption = False,
) -> int:
    """Give a model's folder a name in the catalog; it is inspected first."""
    from pathlib import Path

    output = Output(json_wanted=json_wanted)
    with connected() as client:
        is_here = client.wire.endpoint.is_loopback
        path = Path(folder).absolute() if is_here else Path(folder)
        view = client.models.register(name, path, description=description or "", tags=read_tags(tag))
    output.say(f"Model {view.name}: {view.path}")
    output.result(view.as_json())
    return 0


@app.command()
def edit(
    model: Model, description: DescriptionOption = None, tag: TagsOption = None, json_wanted: JsonOption = False
) -> int:
    """Change description or tags of a model of the catalog; the tags given replace all that were there."""
    from tunesmith.cli.checked import checked
    from tunesmith.spec.catalog import BaseModelChange

    output = Output(json_wanted=json_wanted)
    wanted = given(description=description, tags=read_tags(tag))
    with connected() as client:
        view = client.models.edit(model, checked(BaseModelChange, **wanted))
    if not json_wanted:
        tell_fields(output, {"name": view.name, "description": view.description, "tags": view.tags})
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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A catalog name, a folder or s3://bucket/prefix.")],
    json_wanted: JsonOption = False,
) -> int:
    """Inspect MODEL: architecture, size, context, tokenizer, the modules that can carry an adapter."""
    from tunesmith.cli.report import gigabytes
    from tunesmith.jobs.buckets import bucket_model
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.inspection import inspect
    from tunesmith.jobs.models import find_model
    from tunesmith.spec.datasets import InspectRequest
    from tunesmith.storage.locations import is_bucket

    output = Output(json_wanted=json_wanted)
    home = open_home(os.environ)
    found = bucket_model(model, home=home, environment=os.environ) if is_bucket(model) else find_model(model)
    question = InspectRequest(model_name=found.name, model_path=str(found.path))
    facts = inspect(question, home=home, environment=os.environ).facts
    assert facts is not None, "an inspection answers with facts or an error"
    if json_wanted:
        output.result(facts.as_json())
        return 0
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
    return 0
