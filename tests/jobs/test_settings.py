from __future__ import annotations

import pytest

from tunesmith.errors import MachineCannot, UsageFault
from tunesmith.jobs.settings import (
    read_columns,
    read_request,
    read_settings,
    refuse_contradictions,
    refuse_not_built,
)
from tunesmith.spec.training import TrainingSettings

FAULTS = [
    ("learning_rate", "0", "from 1e-12 to 1"),
    ("learning_rate", "-1", "from 1e-12 to 1"),
    ("learning_rate", "inf", "a number"),
    ("learning_rate", "nan", "a number"),
    ("learning_rate", "1e-320", "from 1e-12 to 1"),
    ("learning_rate", "1.5", "to 1"),
    ("epochs", "0", "a whole number from 1 to 1000"),
    ("epochs", "-3", "a whole number from 1 to 1000"),
    ("epochs", "0.5", "a whole number from 1 to 1000"),
    ("epochs", "1e9", "a whole number from 1 to 1000"),
    ("epochs", "1000000000", "a whole number from 1 to 1000"),
    ("lora_rank", "0", "a whole number from 1 to"),
    ("lora_rank", "1.5", "a whole number"),
    ("lora_alpha", "0", "a number above 0"),
    ("lora_dropout", "1", "from 0 and below 1"),
    ("lora_dropout", "-0.1", "from 0 and below 1"),
    ("validation_fraction", "20%", "from 0 and below 1"),
    ("validation_fraction", "20", "from 0 and below 1"),
    ("validation_fraction", "-0.1", "from 0 and below 1"),
    ("global_batch_size", "0", "auto or a whole number from 1"),
    ("micro_batch_size", "-4", "auto or a whole number from 1"),
    ("sequence_length", "1", "auto or a whole number from 2"),
    ("seed", "4294967296", "from 0 to 4294967295"),
    ("seed", "-1", "from 0"),
    ("early_stopping", "0", "off or a whole number from 1"),
    ("too_long", "shorten", "refuse, drop or cut"),
    ("adapter", "qlora", "lora, rslora or dora"),
    ("precision", "fp16", "auto, float32 or bf16"),
    ("strategy", "magic", "auto, single"),
    ("max_gradient_norm", "0", "above 0"),
    ("weight_decay", "-1", "from 0 to 1"),
    ("learning_rate_schedule", "flat", "cosine or linear"),
    ("target_modules", "", "at least one"),
    ("target_modules", "q_proj,q_proj", "twice"),
]


@pytest.mark.parametrize(("field", "value", "words"), FAULTS)
def test_a_faulty_value_is_answered_with_its_option_itself_and_its_limit(field: str, value: str, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        read_settings({field: value})
    error = caught.value
    assert error.field == field
    assert "--" + field.replace("_", "-") in error.message
    assert words in error.message
    assert field == "target_modules" or repr(value) in error.message


def test_all_faulty_values_are_named_at_once() -> None:
    with pytest.raises(UsageFault) as caught:
        read_settings({"epochs": "0", "learning_rate": "nan", "seed": "x"})
    assert all(option in caught.value.message for option in ("--epochs", "--learning-rate", "--seed"))


def test_a_message_stays_short_and_shows_control_characters() -> None:
    with pytest.raises(UsageFault) as caught:
        read_settings({"epochs": "\x1b[31m" + "9" * 10_000})
    assert len(caught.value.message) < 300 and "\x1b" not in caught.value.message


def test_good_values_arrive_typed() -> None:
    settings = read_settings(
        {"epochs": "2", "learning_rate": "1e-3", "target_modules": "q_proj, v_proj", "early_stopping": "2"}
    )
    assert (settings.epochs, settings.learning_rate, settings.early_stopping) == (2, 1e-3, 2)
    assert settings.target_modules == ("q_proj", "v_proj")


def test_every_setting_has_words_for_its_limits() -> None:
    from tunesmith.jobs.settings import allowed_values

    for name, schema in TrainingSettings.model_json_schema()["properties"].items():
        assert allowed_values(schema) != "text", f"{name} would be refused without its limits"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a" * 129),
        ("name", "bell\x07"),
        ("name", "two\nlines"),
        ("description", "x" * 4001),
        ("description", "nul\0"),
        ("version_set", "../up"),
        ("version_set", "-dash"),
        ("replicas", "0"),
        ("model", ""),
    ],
)
def test_names_and_descriptions_have_limits(field: str, value: str) -> None:
    with pytest.raises(UsageFault) as caught:
        read_request({"model": "m", "dataset": "d", field: value})
    assert caught.value.field == field and len(caught.value.message) < 300


def test_columns_come_in_one_option_or_several() -> None:
    assert read_columns(["prompt=q,completion=a"]) == {"prompt": "q", "completion": "a"}
    assert read_columns(["prompt=q", "completion=a b"]) == {"prompt": "q", "completion": "a b"}
    assert read_columns(['prompt=" q ", completion = a']) == {"prompt": " q ", "completion": "a"}


def test_a_column_in_quotes_is_named_as_it_stands() -> None:
    found = read_columns(['prompt="q, in English" , completion="say ""a"""'])
    assert found == {"prompt": "q, in English", "completion": 'say "a"'}
    assert read_columns(['completion=" ,= "', 'prompt=6" pipe']) == {"completion": " ,= ", "prompt": '6" pipe'}


@pytest.mark.parametrize(
    "text",
    [
        "prompt",
        "prompt=",
        "=x",
        "answer=x",
        "prompt=a,prompt=b",
        ",",
        'prompt="a',
        'prompt=""',
        'prompt="a"b',
    ],
)
def test_faulty_columns_are_refused(text: str) -> None:
    with pytest.raises(UsageFault) as caught:
        read_columns([text])
    assert caught.value.field == "columns"


def test_a_split_and_an_own_validation_file_exclude_each_other() -> None:
    request = read_request({"model": "m", "dataset": "d", "validation_dataset": "v"})
    with pytest.raises(UsageFault) as caught:
        refuse_contradictions(request, {"validation_fraction": "0.1"})
    assert "--validation-fraction" in caught.value.message and "--validation-dataset" in caught.value.message
    refuse_contradictions(request, {})


def test_a_precision_that_the_label_promises_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.jobs.settings.QUANTISED_PRECISIONS", ("nf4",))
    request = read_request({"model": "m", "dataset": "d"})
    refuse_not_built(request, read_settings({"base_precision": "nf4"}))
    with pytest.raises(MachineCannot):
        refuse_not_built(request, read_settings({"base_precision": "fp8"}))


@pytest.mark.parametrize(
    "wish",
    [
        {"adapter": "dora"},
        {"base_precision": "fp8"},
        {"base_precision": "int8"},
        {"base_precision": "nf4"},
        *({"strategy": strategy} for strategy in ("ddp", "fsdp2", "zero2", "zero3")),
        {"shape": "big"},
        {"replicas": "2"},
        {"network": "n"},
    ],
)
def test_what_is_not_built_is_refused_by_name(wish: dict[str, str]) -> None:
    settings = read_settings({name: value for name, value in wish.items() if name in TrainingSettings.model_fields})
    rest = {name: value for name, value in wish.items() if name not in TrainingSettings.model_fields}
    with pytest.raises(MachineCannot) as caught:
        refuse_not_built(read_request({"model": "m", "dataset": "d", **rest}), settings)
    (name, value) = next(iter(wish.items()))
    assert caught.value.code == "NOT_BUILT" and caught.value.field == name
    assert "--" + name.replace("_", "-") in caught.value.message
    assert name == "network" or value in caught.value.message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", "", "--name has 0 characters; 1 to 128 are allowed"),
        ("name", "x" * 129, "--name has 129 characters; 1 to 128 are allowed"),
        ("shape", "", "--shape has 0 characters; 1 to 64 are allowed"),
        ("model", "", "MODEL has 0 characters; at least 1"),
        ("dataset", "", "DATASET has 0 characters; at least 1"),
    ],
)
def test_a_text_of_the_wrong_length_is_told_its_limits(field: str, value: str, words: str) -> None:
    with pytest.raises(UsageFault) as caught:
        read_request({"model": "m", "dataset": "d", field: value})
    assert caught.value.field == field and words in caught.value.message
