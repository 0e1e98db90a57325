"""The shipped file of well-known models: whole, strict, and honest about what it does not know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.bundled import KNOWN_MODELS
from tunesmith.catalog.known import find_known, known_models
from tunesmith.spec.families import FAMILIES
from tunesmith.spec.known_models import KnownModels


def document() -> dict[str, Any]:
    return json.loads(KNOWN_MODELS.read_bytes())


def test_it_holds_the_families_that_were_promised() -> None:
    models = known_models().models
    assert len(models) >= 40
    wanted = {"Llama 2", "Llama 3", "Llama 3.1", "Llama 3.2", "Llama 3.3", "Mistral", "Mixtral", "Qwen2.5", "Qwen3"}
    wanted |= {"Gemma 2", "Gemma 3", "Phi-3", "Phi-4", "Granite 3.3", "SmolLM2", "SmolLM3", "OLMo 2", "gpt-oss"}
    assert wanted <= {model.family for model in models}
    assert any(model.experts for model in models), "some are mixtures of experts"


def test_every_fact_has_a_source_and_every_source_a_fact() -> None:
    file = known_models()
    used = {key for model in file.models for key in model.sources.as_json().values()}
    assert used == set(file.sources)


def test_what_was_found_in_no_source_is_null_and_said() -> None:
    unknown = [model for model in known_models().models if model.revision is None]
    assert unknown and all(model.sources.revision == "not-found" for model in unknown)


def test_a_trained_family_has_the_sizes_of_every_linear_module() -> None:
    for model in known_models().models:
        sizes = model.sizes()
        if model.model_type in FAMILIES:
            assert sizes is not None
            assert len(sizes.linear_modules) == model.num_layers * len(FAMILIES[model.model_type].linear)
            linear = sum(module.in_features * module.out_features for module in sizes.linear_modules)
            assert linear < model.parameters, model.name
        else:
            assert sizes is None, "no estimate of what is not trained"


def test_derived_bytes_follow_parameters_and_dtype() -> None:
    bytes_of = {model.name: model.weight_bytes for model in known_models().models}
    assert bytes_of["meta-llama/Llama-2-7b-hf"] == 2 * 6_738_415_616
    assert bytes_of["openai-community/gpt2"] == 4 * 124_439_808
    # mxfp4: the experts in 4.25 bits a value; OpenAI's file of the smaller one has 13.8 GB
    assert round(bytes_of["openai/gpt-oss-20b"] / 1e9, 1) == 13.8


def test_names_are_found_whatever_their_case() -> None:
    known = find_known("qwen/qwen3-8b")
    assert known is not None and known.name == "Qwen/Qwen3-8B"
    assert find_known("qwen/none") is None and find_known(None) is None


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("revision", "main", "pattern"),
        ("name", "no-slash", "not the id of a model on the hub"),
        ("parameters", 0, "greater"),
        ("colour", "red", "Extra inputs"),
        ("architecture", "MistralForCausalLM", "is LlamaForCausalLM, not MistralForCausalLM"),
        ("num_key_value_heads", 7, "heads share"),
        ("revision", None, "a revision and its source go together"),
        ("dtype", "mxfp4", "dtype of experts"),
        ("sources", {"sizes": "hearsay", "revision": "snapshot-paths", "licence": "model-card"}, "'hearsay'"),
    ],
)
def test_a_fault_in_the_file_is_refused(field: str, value: object, fault: str) -> None:
    broken = document()
    broken["models"][0][field] = value
    with pytest.raises(ValidationError, match=fault):
        KnownModels.model_validate(broken)


def test_a_model_that_stands_twice_is_refused() -> None:
    broken = document()
    broken["models"].append(broken["models"][0])
    with pytest.raises(ValidationError, match="twice"):
        KnownModels.model_validate(broken)
