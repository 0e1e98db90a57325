"""Labels say what they mean, and why."""

from __future__ import annotations

import pytest

from tunesmith.spec import explorer
from tunesmith.spec.explorer import Label, QuantisedSize, labels_of, missing_part, quantised_size
from tunesmith.spec.families import FAMILIES
from tunesmith.spec.models import LinearModule, ModelSizes


def labels(model_type: str = "llama", **state: object) -> dict[Label, str]:
    given = {"has_experts": False, "is_here": True, "versions": 0} | state
    found = labels_of(model_type, "LlamaForCausalLM", **given)  # type: ignore[arg-type]  # of mixed kinds
    return {each.label: each.reason for each in found}


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_trained_family_is_ready_to_fine_tune(model_type: str) -> None:
    assert Label.READY_TO_FINE_TUNE in labels(model_type) and Label.NOT_YET not in labels(model_type)


def test_what_is_not_trained_names_the_missing_part() -> None:
    assert "mixture-of-experts layers" in labels("mixtral", has_experts=True)[Label.NOT_YET]
    assert "image layers" in labels("gemma3")[Label.NOT_YET]
    assert "the architecture rwkv" in labels("rwkv")[Label.NOT_YET]
    assert missing_part("llama", has_experts=True) is not None, "experts count, whatever the architecture is called"


def test_where_the_weights_are_decides_on_deploying_and_registering() -> None:
    assert set(labels()) == {Label.READY_TO_FINE_TUNE, Label.READY_TO_DEPLOY}
    elsewhere = labels(is_here=False)
    assert set(elsewhere) == {Label.READY_TO_FINE_TUNE, Label.READY_TO_REGISTER}
    assert "not here yet" in elsewhere[Label.READY_TO_FINE_TUNE]
    assert set(labels("mixtral", has_experts=True, is_here=False)) == {Label.NOT_YET, Label.READY_TO_REGISTER}


def test_fine_tuned_versions_are_counted_in_words() -> None:
    assert labels(versions=1)[Label.FINE_TUNED] == "1 fine-tuned version of it is here."
    assert labels(versions=3)[Label.FINE_TUNED] == "3 fine-tuned versions of it are here."


def sizes(*, inputs: int = 4096, outputs: int = 4096, parameters: int = 20_000_000) -> ModelSizes:
    module = LinearModule(name="model.layers.0.self_attn.q_proj", in_features=inputs, out_features=outputs)
    return ModelSizes(
        parameters=parameters, context_length=2048, hidden_size=inputs, num_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=64, intermediate_size=64, vocabulary_size=100, tied_embeddings=True,
        linear_modules=[module],
    )  # fmt: skip


def test_what_four_bits_take_is_the_linear_modules_at_four_and_a_half_and_the_rest_as_stored() -> None:
    found = quantised_size(sizes(), 40_000_000)
    assert found is not None
    linear = 4096 * 4096
    assert found.quantised_bytes == 2 * (20_000_000 - linear) + linear * 9 // 16


def test_shapes_that_are_no_whole_blocks_or_save_nothing_cannot_be_quantised() -> None:
    assert quantised_size(sizes(inputs=4096 + 32), 40_000_000) is None
    assert quantised_size(sizes(), 10_000_000) is None, "they are kept in 4 bits already"
    assert quantised_size(sizes().model_copy(update={"linear_modules": []}), 40_000_000) is None


def test_quantisation_tells_what_it_saves_and_whether_this_release_trains_so(monkeypatch: pytest.MonkeyPatch) -> None:
    size = QuantisedSize(weight_bytes=16_060_000_000, quantised_bytes=5_700_000_000, modules=224)
    assert Label.SUPPORTS_QUANTISATION not in labels()
    assert Label.SUPPORTS_QUANTISATION not in labels("gemma3", quantised=size)
    reason = labels(quantised=size)[Label.SUPPORTS_QUANTISATION]
    assert "5.7 GB in place of 16.1 GB" in reason and "its 224 linear modules" in reason
    assert reason.endswith("not offered yet.")
    monkeypatch.setattr(explorer, "QUANTISED_PRECISIONS", ("nf4",))
    assert labels(quantised=size)[Label.SUPPORTS_QUANTISATION].endswith(
        "--base-precision nf4 trains over a base that is kept so."
    )
