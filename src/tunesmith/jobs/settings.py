"""From what a user wrote to typed settings, with every fault in our words and all of them at once.

In: option values as text, by field name. Out: `TrainingSettings` and `FinetuneRequest`, or one UsageFault that names
each option, the value found and what is allowed. The words come from the fields' own limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from tunesmith.errors import MachineCannot, UsageFault
from tunesmith.spec.base import Spec
from tunesmith.spec.datasets import LINES
from tunesmith.spec.explorer import QUANTISED_PRECISIONS
from tunesmith.spec.names import words_of
from tunesmith.spec.requests import LOCAL_SHAPE, FinetuneRequest
from tunesmith.spec.training import ALL_LINEAR, TrainingSettings

ARGUMENTS = ("model", "dataset")
SHOWN_CHARACTERS = 60
FRACTION_HINT = "It is a fraction, not a percentage: 0.2 is 20%."
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_PAIR = re.compile(rf'[^,="]*=\s*{_QUOTED.pattern}\s*(?=,|$)|[^,]*')

Model = TypeVar("Model", bound=Spec)


def option_name(field: str) -> str:
    """How the command line writes a field: `--lora-rank`; the two arguments are MODEL and DATASET."""
    return field.upper() if field in ARGUMENTS else "--" + field.replace("_", "-")


def read_settings(values: Mapping[str, str]) -> TrainingSettings:
    """Settings from option texts; absent ones keep their defaults. Raises UsageFault."""
    given: dict[str, Any] = dict(values)
    targets = given.get("target_modules", ALL_LINEAR)
    if targets != ALL_LINEAR:
        given["target_modules"] = tuple(name.strip() for name in targets.split(",") if name.strip())
    return _validated(TrainingSettings, given, shown=values)


def read_request(values: Mapping[str, Any]) -> FinetuneRequest:
    """The rest of what a user asks for. Raises UsageFault."""
    return _validated(FinetuneRequest, dict(values), shown=values)


def read_flat(values: Mapping[str, Any]) -> tuple[FinetuneRequest, TrainingSettings]:
    """Request and settings from one flat object, as a REST body is. Raises UsageFault, for unknown fields too."""
    asked = {name: value for name, value in values.items() if name in FinetuneRequest.model_fields}
    rest = {name: value for name, value in values.items() if name not in asked}
    return _validated(FinetuneRequest, asked, shown=values), _validated(TrainingSettings, rest, shown=values)


def read_columns(texts: list[str]) -> dict[str, str]:
    """`prompt=question,completion=answer`, in one option or several. Raises UsageFault.

    A name in double quotes is taken as it stands, with spaces around it, commas and (written twice) quotes in it.
    """
    columns: dict[str, str] = {}
    for pair in (pair for text in texts for pair in _pairs(text)):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if theirs.startswith('"'):
            if not _QUOTED.fullmatch(theirs):
                raise UsageFault(
                    "BAD_OPTION",
                    f"--columns: a quote opens the name in {_shown(pair)}, and none closes it at its end.",
                    field="columns",
                    hint='Write prompt=" a name ", and a quote that belongs to the name twice: "".',
                )
            theirs = theirs[1:-1].replace('""', '"')
        if not (ours and equals and theirs):
            raise UsageFault(
                "BAD_OPTION",
                f"--columns: {_shown(pair)} is not of the form OURS=THEIRS.",
                field="columns",
                hint="For example --columns prompt=question,completion=answer.",
            )
        if ours not in ("prompt", "completion", "messages", "tools"):
            raise UsageFault(
                "BAD_OPTION",
                f"--columns: {_shown(ours)} is none of our columns.",
                field="columns",
                hint="Ours are prompt, completion, messages and tools; the file's name stands after the equals sign.",
            )
        if ours in columns:
            raise UsageFault("BAD_OPTION", f"--columns names {ours} twice.", field="columns", hint="Name it once.")
        columns[ours] = theirs
    return columns


def _pairs(text: str) -> Iterator[str]:
    """The parts between commas; a comma inside a quoted name parts nothing."""
    at = 0
    while at <= len(text):
        found = _PAIR.match(text, at)
        assert found is not None, "its last choice matches anything"
        yield found.group()
        at = found.end() + 1


def read_lines(text: str | None) -> list[int]:
    """`3,17` as lines of a file, each once. Raises UsageFault."""
    if text is None:
        return []
    if not LINES.is_met(text):
        raise UsageFault(
            "BAD_OPTION", f"--lines is {_shown(text)}; it must be {LINES.words}.", field="lines",
            hint=f"For example --lines {LINES.example}.",
        )  # fmt: skip
    return list(dict.fromkeys(int(number) for number in text.split(",")))


def refuse_contradictions(request: FinetuneRequest, values: Mapping[str, str]) -> None:
    """Options that exclude each other. `values` are the settings that the user gave himself."""
    if request.validation_dataset is not None and "validation_fraction" in values:
        raise UsageFault(
            "OPTIONS_EXCLUDE",
            "--validation-fraction and --validation-dataset exclude each other: with an own file nothing is split off.",
            field="validation_dataset",
            hint="Leave one of them out.",
        )


def refuse_not_built(request: FinetuneRequest, settings: TrainingSettings) -> None:
    """Values that the interface knows and this release does not do; each refused by its name (MachineCannot)."""
    wishes: list[tuple[bool, str, str]] = [
        (settings.adapter == "dora", "--adapter dora", "Use lora or rslora."),
        (
            settings.base_precision in {"fp8", "int8", "nf4"} - set(QUANTISED_PRECISIONS),
            f"--base-precision {settings.base_precision}",
            "Leave it out: the base is kept as precise as the computation.",
        ),
        (
            settings.strategy not in ("auto", "single"),
            f"--strategy {settings.strategy}",
            "Leave it out: the run uses one device.",
        ),
        (request.shape != LOCAL_SHAPE, f"--shape {_shown(request.shape)}", "Leave it out: the run uses this machine."),
        (request.replicas > 1, f"--replicas {request.replicas}", "Leave it out: the run uses this machine."),
        (request.network is not None, "--network", "It serves several machines; leave it out."),
    ]
    for is_wished, option, hint in wishes:
        if is_wished:
            field = option.split()[0].removeprefix("--").replace("-", "_")
            raise MachineCannot("NOT_BUILT", f"{option} is not built yet.", field=field, hint=hint)


def _validated(model: type[Model], given: dict[str, Any], *, shown: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _translated(model, error, shown) from None


def _translated(model: type[Spec], error: ValidationError, shown: Mapping[str, Any]) -> UsageFault:
    """One fault for all faulty fields, each once however many branches of its type refused it."""
    sentences: dict[str, str] = {}
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    for fault in error.errors():
        if not fault["loc"]:  # a rule over the class: its message starts with the field
            field, _, why = fault["msg"].removeprefix("Value error, ").partition(": ")
            sentences.setdefault(field, f"{option_name(field)}: {why}.")
            continue
        field = str(fault["loc"][0])
        if field not in properties:
            sentences.setdefault(field, f"{option_name(field)} is unknown.")
        elif fault["type"] == "value_error":
            sentences[field] = f"{option_name(field)}: {fault['msg'].removeprefix('Value error, ')}."
        elif fault["type"] in ("string_too_long", "string_too_short", "too_long", "too_short"):
            limits = properties[field]
            least, most = _of(limits, "minLength") or 0, _of(limits, "maxLength")
            length = len(str(shown.get(field, "")))
            allowed = f"{least} to {most}" if most else f"at least {least}"
            sentences[field] = f"{option_name(field)} has {length} characters; {allowed} are allowed."
        else:
            sentences.setdefault(
                field,
                f"{option_name(field)} is {_shown(shown.get(field))}; it must be {allowed_values(properties[field])}.",
            )
    first = next(iter(sentences))
    hint = FRACTION_HINT if first in ("validation_fraction", "lora_dropout") else None
    return UsageFault(
        "BAD_OPTION",
        " ".join(sentences.values()),
        field=first,
        hint=hint or "`tunesmith finetune --help` lists every option with its limits.",
    )


def _of(schema: Mapping[str, Any], key: str) -> Any:
    """A keyword of a field's JSON schema, also where it stands in a branch for a value that may be absent."""
    return next((branch[key] for branch in (schema, *schema.get("anyOf", ())) if key in branch), None)


def allowed_values(schema: Mapping[str, Any]) -> str:
    """A field's limits in words, from its JSON schema: `a whole number from 1 to 1000`."""
    if "anyOf" in schema:
        return " or ".join(allowed_values(branch) for branch in schema["anyOf"] if branch.get("type") != "null")
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *others, last = [str(value) for value in schema["enum"]]
        return f"{', '.join(others)} or {last}" if others else last
    match schema.get("type"):
        case "integer" | "number":
            kind = "a whole number" if schema["type"] == "integer" else "a number"
            low = f" from {schema['minimum']:g}" if "minimum" in schema else ""
            low = f" above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else low
            high = f" to {_plain(schema['maximum'])}" if "maximum" in schema else ""
            high = f" and below {_plain(schema['exclusiveMaximum'])}" if "exclusiveMaximum" in schema else high
            return kind + low + high
        case "array":
            return "names with commas between"
        case _ if "pattern" in schema:
            return words_of(schema["pattern"])
        case _:
            return "text"


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _shown(value: Any) -> str:
    """A user's value as it may stand in a message: short, and with control characters visible."""
    text = str(value)
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
