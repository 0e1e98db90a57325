"""Whether a model fits: the plan's arithmetic on this machine's devices, with or without weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.plan.test_resolve import machine
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.catalog.known import find_known
from tunesmith.models.inspect import inspect_model
from tunesmith.plan.fit import memory_fits
from tunesmith.plan.machine import Gpu, Machine
from tunesmith.plan.memory import memory_parts
from tunesmith.spec.known_models import KnownModel
from tunesmith.spec.models import ModelSizes
from tunesmith.spec.training import TrainingSettings


def sizes(name: str = "meta-llama/Llama-3.2-1B") -> ModelSizes:
    known = find_known(name)
    found = known.sizes() if known is not None else None
    assert found is not None
    return found


def verdicts(where: Machine, name: str = "meta-llama/Llama-3.2-1B") -> dict[tuple[str, int], str]:
    return {(fit.device, fit.sequence_length): fit.verdict for fit in memory_fits(sizes(name), where)}


def test_the_estimate_is_that_of_the_plan() -> None:
    [fit] = [fit for fit in memory_fits(sizes(), machine()) if fit.sequence_length == 2048]
    settings = TrainingSettings.model_validate(
        {"sequence_length": 2048, "micro_batch_size": 1, "global_batch_size": 1, "precision": "float32"}
    )
    assert fit.parts == memory_parts(sizes(), settings, device="cpu")
    assert fit.peak_bytes == sum(part.bytes for part in fit.parts)


@pytest.mark.parametrize(("free", "verdict"), [(12 << 30, "fits"), (8 << 30, "tight")])
def test_what_is_free_now_decides_between_fits_and_tight(free: int, verdict: str) -> None:
    assert verdicts(machine(free=free))["cpu", 512] == verdict


def test_what_no_memory_of_the_machine_holds_does_not_fit() -> None:
    assert verdicts(machine(), "Qwen/Qwen3-32B")["cpu", 512] == "does not fit"
    [reason] = {fit.reason for fit in memory_fits(sizes("Qwen/Qwen3-32B"), machine()) if fit.sequence_length == 512}
    assert "GB" in reason and "34.4 GB" in reason, reason


def test_gpus_lead_in_bf16_and_one_of_a_kind_is_enough() -> None:
    gpus = tuple(
        Gpu(index=index, name="H200", total_bytes=140 << 30, free_bytes=free << 30, driver="1")
        for index, free in enumerate((10, 130))
    )
    found = memory_fits(sizes("Qwen/Qwen3-8B"), replace(machine(), gpus=gpus))
    assert [fit.device for fit in found] == ["cuda"] * 4 + ["cpu"] * 4
    assert {(fit.precision, fit.free_bytes) for fit in found if fit.device == "cuda"} == {("bf16", 130 << 30)}
    assert found[0].verdict == "fits", "the freest of them counts"


def test_a_gpu_without_a_cuda_build_of_torch_is_no_device() -> None:
    found = memory_fits(sizes(), machine(gpu_free=1 << 36, cuda=False))
    assert {fit.device for fit in found} == {"cpu"}


def test_rows_are_no_longer_than_the_context() -> None:
    assert {fit.sequence_length for fit in memory_fits(sizes("openai-community/gpt2"), machine())} == {512}
    short = sizes().model_copy(update={"context_length": 128})
    assert {fit.sequence_length for fit in memory_fits(short, machine())} == {128}


def test_sizes_from_a_configuration_are_those_of_an_inspection() -> None:
    facts = inspect_model(MODEL_FOLDER, "demo")
    config = json.loads((MODEL_FOLDER / "config.json").read_bytes())
    known = KnownModel.model_validate({
        "name": "tunesmith/demo", "title": "demo", "family": "demo", "publisher": "Tunesmith", "kind": "base",
        "model_type": config["model_type"], "architecture": config["architectures"][0], "licence": "apache-2.0",
        "is_gated": False, "revision": None, "parameters": facts.parameters, "dtype": facts.dtype,
        "context_length": config["max_position_embeddings"], "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"], "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"], "head_dim": config["head_dim"],
        "intermediate_size": config["intermediate_size"], "vocabulary_size": config["vocab_size"],
        "tied_embeddings": config["tie_word_embeddings"],
        "sources": {"sizes": "litgpt", "revision": "not-found", "licence": "model-card"},
    })  # fmt: skip
    assert known.sizes() == ModelSizes.model_validate({name: getattr(facts, name) for name in ModelSizes.model_fields})
    assert known.weight_bytes == facts.weight_bytes
