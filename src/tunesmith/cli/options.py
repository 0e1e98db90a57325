"""The options of `finetune` and `plan`, made from the specs: names, limits, defaults and help stand there once.

Values arrive as text and are judged by `jobs/settings.py`, so that a faulty one is answered in our words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from tunesmith.errors import UsageFault
from tunesmith.jobs.settings import ARGUMENTS, allowed_values, option_name, read_columns, read_request, read_settings
from tunesmith.jobs.settings import refuse_contradictions as refuse_contradictions_of
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")]


def with_run_options(command: Callable[..., int], *, more: Sequence[inspect.Parameter] = ()) -> Callable[..., int]:
    """Give `command(values, json)` the arguments and options of a run. `values` holds only what the user gave.

    more: options of the command's own, passed to it by name.
    """

    def run(**given: Any) -> int:
        json_wanted = bool(given.pop("json"))
        own = {parameter.name: given.pop(parameter.name) for parameter in more}
        wanted = {name: value for name, value in given.items() if value or name in ARGUMENTS}
        return command({name: _once(name, value) for name, value in wanted.items()}, json_wanted, **own)

    parameters = [_parameter(FinetuneRequest, name) for name in FinetuneRequest.model_fields]
    parameters += [_parameter(TrainingSettings, name) for name in TrainingSettings.model_fields]
    parameters += more
    parameters.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = command.__doc__
    return run


def _parameter(model: type[FinetuneRequest] | type[TrainingSettings], name: str) -> inspect.Parameter:
    field = model.model_fields[name]
    if name in ARGUMENTS:
        annotation: Any = Annotated[str, typer.Argument(metavar=name.upper(), help=field.description)]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    schema = model.model_json_schema()["properties"][name]
    if name == "columns":
        option: Any = typer.Option(option_name(name), metavar="OURS=THEIRS,...", help=field.description)
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, option]
        )
    allowed = allowed_values(schema)
    # values are written as they must be typed: `lora`, never `Lora`
    limits = "" if allowed == "text" else f" A{allowed[1:]}." if allowed.startswith("a ") else f" It is {allowed}."
    default = "" if field.default in (None, "") else f" [default: {field.default}]"
    option = typer.Option(
        option_name(name),
        metavar="TEXT" if allowed == "text" else "VALUE",
        help=f"{field.description}{limits}{default}",
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, option]
    )


def _once(name: str, value: Any) -> Any:
    """The one value of an option. Two would leave one of them ignored; columns alone may come in several."""
    if name in ARGUMENTS or name == "columns":
        return value
    if len(value) > 1:
        raise UsageFault(
            "BAD_OPTION", f"{option_name(name)} is given {len(value)} times.", field=name, hint="Give it once."
        )
    return value[0]


def read_run(values: dict[str, Any]) -> tuple[FinetuneRequest, TrainingSettings]:
    """Typed request and settings from what the user gave. Raises UsageFault."""
    texts = {name: value for name, value in values.items() if name in TrainingSettings.model_fields}
    rest = {name: value for name, value in values.items() if name not in texts}
    if "columns" in rest:
        rest["columns"] = read_columns(rest["columns"])
    request = read_request(rest)
    refuse_contradictions_of(request, texts)
    return request, read_settings(texts)
