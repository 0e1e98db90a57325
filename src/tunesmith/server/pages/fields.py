"""The fields of the Fine Tune form, made from the spec: one definition feeds form, command line and REST.

In: `TrainingSettings` and `FinetuneRequest` with their limits and descriptions. Out: `FormField`s for a template, and
from a posted form the `JobSubmission` that REST would get. Words that the spec lacks (labels, units) stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.errors import TunesmithError, UsageFault
from tunesmith.jobs.settings import allowed_values, option_name, read_columns, read_request, read_settings
from tunesmith.server.pages import words
from tunesmith.spec.api import JobSubmission
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

PERCENT = "validation_percent"  # the form's own unit of `validation_fraction`
MAIN = ("epochs", "learning_rate")
QUEUE = ("priority", "run_limit_seconds")
# Groups of the advanced options, in the order in which people ask for them; what is named nowhere comes last.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("adapter", ("lora_rank", "lora_alpha", "lora_dropout", "adapter", "target_modules")),
    ("rows", ("sequence_length", "too_long", "duplicates", "render")),
    (
        "optimiser",
        (
            "global_batch_size", "micro_batch_size", "learning_rate_schedule", "weight_decay", "max_gradient_norm",
            "early_stopping", "seed",
        ),
    ),
    (
        "machine",
        ("precision", "base_precision", "strategy", "path", "compile_layers", "checkpointed_layers"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """kind: `choice` (of `choices`), `number` (between `low` and `high`), or `text` (numbers that may be `auto`)."""

    name: str
    label: str
    kind: str
    value: str
    default: str
    why: str
    limits: str
    choices: tuple[str, ...] = ()
    low: str = ""
    high: str = ""
    is_whole: bool = False


def label_of(name: str) -> str:
    return words.FIELDS.get(name) or name.replace("_", " ").capitalize()


@cache
def _schemas() -> dict[str, Any]:
    return TrainingSettings.model_json_schema()["properties"]  # 3 ms, for each of twenty fields


def setting_field(name: str, values: Mapping[str, str]) -> FormField:
    """values: what the form holds; absent ones have their default."""
    info = TrainingSettings.model_fields[name]
    schema: dict[str, Any] = _schemas()[name]
    default = _text(info.default)
    kind, choices = "text", tuple[str, ...]()
    if "enum" in schema:
        kind, choices = "choice", tuple(schema["enum"])
    elif schema.get("type") in ("number", "integer"):
        kind = "number"
    return FormField(
        name=name, label=label_of(name), kind=kind, choices=choices, value=values.get(name, default), default=default,
        why=info.description or "", limits=allowed_values(schema), is_whole=schema.get("type") == "integer",
        low=_number(schema.get("minimum")), high=_number(schema.get("maximum")),
    )  # fmt: skip


def advanced_fields(values: Mapping[str, str]) -> list[tuple[str, list[FormField]]]:
    """Every setting that has no place of its own in the form, by group."""
    grouped = [(words.FIELD_GROUPS[title], [setting_field(name, values) for name in names]) for title, names in GROUPS]
    named = {*MAIN, "validation_fraction", *(name for _, names in GROUPS for name in names)}
    rest = [setting_field(name, values) for name in TrainingSettings.model_fields if name not in named]
    return [*grouped, ("More", rest)] if rest else grouped


def values_of(request: FinetuneRequest, settings: TrainingSettings) -> dict[str, str]:
    """What a form holds for a job that was submitted before: the fields that differ from their defaults."""
    values: dict[str, str] = {}
    for model in (request, settings):
        for name, info in type(model).model_fields.items():
            value: Any = getattr(model, name)
            if value != info.get_default(call_default_factory=True):
                values[name] = _text(value)
    fraction = values.pop("validation_fraction", None)
    if fraction is not None:
        values[PERCENT] = f"{100 * float(fraction):g}"
    return values


def submission_of(values: Mapping[str, str]) -> JobSubmission:
    """Raises UsageFault that names the fields as the form does."""
    given = dict(values)
    percent = given.pop(PERCENT, None)
    if percent is not None and "validation_dataset" not in given:
        given["validation_fraction"] = str(_fraction(percent))
    columns = given.pop("columns", None)
    queue = {name: _whole(name, given.pop(name)) for name in QUEUE if name in given}
    try:
        for name in given:
            if name not in FinetuneRequest.model_fields and name not in TrainingSettings.model_fields:
                raise UsageFault("UNKNOWN_FIELD", f"{name[:60]!r} is no field of this form.", field=name[:60])
        settings = read_settings({name: text for name, text in given.items() if name in TrainingSettings.model_fields})
        asked: dict[str, Any] = {name: text for name, text in given.items() if name in FinetuneRequest.model_fields}
        if columns is not None:
            asked["columns"] = read_columns([columns])
        request = read_request(asked)
    except UsageFault as error:
        raise in_form_words(error) from error
    return JobSubmission.model_validate(
        request.model_dump(exclude_unset=True) | settings.model_dump(exclude_unset=True) | queue
    )


def in_form_words(error: TunesmithError) -> TunesmithError:
    """The same refusal with the form's labels in place of the command line's options."""
    message, hint = error.message, error.hint
    for name in sorted((*FinetuneRequest.model_fields, *TrainingSettings.model_fields), key=len, reverse=True):
        message = message.replace(option_name(name), label_of(name))
    if hint is not None and "--help" in hint:
        hint = None
    return type(error)(error.code, message, field=error.field, hint=hint)


def _whole(name: str, text: str) -> int:
    low, high = {"priority": (-100, 100), "run_limit_seconds": (1, 31_536_000)}[name]
    if not text.removeprefix("-").isdecimal() or not low <= int(text[:12]) <= high:
        raise UsageFault(
            "BAD_OPTION", f"{label_of(name)} is {text[:60]!r}; it must be a whole number from {low} to {high:,}.",
            field=name,
        )  # fmt: skip
    return int(text)


def _fraction(percent: str) -> float:
    try:
        value = float(percent.replace(",", "."))
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise UsageFault(
            "BAD_OPTION", f"Rows for validation is {percent[:60]!r}; it must be a percentage from 0 and below 100.",
            field=PERCENT, hint="10 holds out every tenth row; 0 holds out none.",
        )  # fmt: skip
    return round(value / 100, 9)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, dict):
        return ",".join(f"{ours}={theirs}" for ours, theirs in value.items())  # pyright: ignore[reportUnknownVariableType]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
