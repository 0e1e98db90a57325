"""`tunesmith model show MODEL`: what is known of a base model's folder."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tunesmith.cli.output import Output

app = typer.Typer(
    rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
    help="Look at a base model.",
)  # fmt: skip


@app.callback()
def model() -> None:
    """Look at a base model."""


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A catalog name or a folder.")],
    json_wanted: Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")] = False,
) -> int:
    """Inspect MODEL: architecture, size, context, tokenizer, the modules that can carry an adapter."""
    from tunesmith.cli.report import gigabytes
    from tunesmith.jobs.home import open_home
    from tunesmith.jobs.inspection import inspect
    from tunesmith.jobs.models import find_model
    from tunesmith.spec.datasets import InspectRequest

    output = Output(json_wanted=json_wanted)
    found = find_model(model)
    question = InspectRequest(model_name=found.name, model_path=str(found.path))
    facts = inspect(question, home=open_home(os.environ), environment=os.environ).facts
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
