"""Model folders, good and hostile, and the worker around them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.models.conftest import END_TOKEN, EVERY_ARCHITECTURE, MakeModel, byte_tokenizer
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.catalog.known import bundled_facts
from tunesmith.errors import InputRefused, MachineCannot, TunesmithError
from tunesmith.models import folder as folder_module
from tunesmith.models.base import load_base
from tunesmith.models.inspect import answer, inspect_model
from tunesmith.models.lora import linear_modules
from tunesmith.spec.datasets import InspectRequest, InspectResponse
from tunesmith.spec.training import TrainingSettings

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path) -> Path:
    """A copy of a good folder, to be damaged."""
    return Path(shutil.copytree(make_model("llama"), tmp_path / "model"))


@pytest.fixture
def sharded(make_model: MakeModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_model("mistral", max_shard_size="60KB"), tmp_path / "model"))


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Set keys of a JSON document; None removes one."""
    path = folder / name
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def refusal_of(folder: Path) -> TunesmithError:
    with pytest.raises(TunesmithError) as refusal:
        inspect_model(folder, "test/model")
    assert type(refusal.value) is not TunesmithError, "a refusal belongs to a family"
    return refusal.value


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_facts_equal_the_loaded_model(name: str, load: Any) -> None:
    model, facts = load(name)
    sizes = {}
    for key, module in linear_modules(model).items():
        first, second = module.weight.shape
        sizes[key] = (first, second) if name == "gpt2" else (second, first)
    assert {m.name: (m.in_features, m.out_features) for m in facts.linear_modules} == sizes
    assert [m.name for m in facts.linear_modules if ".1." in m.name], "both layers"
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.weight_bytes == 4 * facts.parameters and facts.dtype == "float32"
    assert facts.tied_embeddings == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert facts.vocabulary_size == model.get_input_embeddings().weight.shape[0]
    assert (facts.num_layers, facts.hidden_size, facts.num_attention_heads) == (2, 48, 4)
    assert (facts.context_length, facts.end_token, facts.end_token_id) == (128, END_TOKEN, 256)
    assert facts.architecture == type(model).__name__
    assert facts.tokenizer_size == len(AutoTokenizer.from_pretrained(facts.path))
    attention = next(module for key, module in model.named_modules() if key.endswith(("self_attn", "attn")))
    assert facts.head_dim == attention.head_dim


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_shards(dtype: torch.dtype, make_model: MakeModel) -> None:
    whole = inspect_model(make_model("mistral", dtype=dtype), "m")
    shards = make_model("mistral", dtype=dtype, max_shard_size="30KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    facts = inspect_model(shards, "m")
    assert facts.dtype == str(dtype).removeprefix("torch.")
    assert facts.weight_bytes == 2 * facts.parameters == whole.weight_bytes
    assert facts.linear_modules == whole.linear_modules and facts.digest != whole.digest
    loaded = load_base(facts, dtype=torch.float32, device=torch.device("cpu"))
    assert all(parameter.dtype == torch.float32 and not parameter.requires_grad for parameter in loaded.parameters())


def test_digest_follows_every_loaded_file_and_no_other(model: Path) -> None:
    first = inspect_model(model, "a").digest
    (model / "notes.txt").write_text("not loaded")
    assert inspect_model(model, "another name").digest == first
    change(model, "tokenizer_config.json", model_max_length=64)
    second = inspect_model(model, "a").digest
    tensors = load_file(model / WEIGHTS)
    save_file({name: value + 1 for name, value in tensors.items()}, model / WEIGHTS, metadata={"format": "pt"})
    assert len({first, second, inspect_model(model, "a").digest}) == 3


def test_hashes_of_large_files_are_kept_until_the_file_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_HASH_CACHED_FROM_BYTES", 10_000)
    hashed: list[str] = []
    original = folder_module._hash
    monkeypatch.setattr(folder_module, "_hash", lambda path: hashed.append(path.name) or original(path))
    cache = tmp_path / "cache"
    first = inspect_model(model, "a", cache_folder=cache).digest
    assert WEIGHTS in hashed
    hashed.clear()
    assert inspect_model(model, "a", cache_folder=cache).digest == first and WEIGHTS not in hashed
    os.utime(model / WEIGHTS, ns=(1, 1))
    assert inspect_model(model, "a", cache_folder=cache).digest == first and WEIGHTS in hashed
    (cache / "file-hashes.json").write_text("broken")
    assert inspect_model(model, "a", cache_folder=cache).digest == first


def test_a_file_that_changes_meanwhile_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = folder_module._hash

    def hash_and_touch(path: Path) -> str:
        value = original(path)
        os.utime(path, ns=(5, 5))
        return value

    monkeypatch.setattr(folder_module, "_hash", hash_and_touch)
    assert refusal_of(model).code == "SOURCE_CHANGED"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b"\xff\xfe{\0}\0", "byte-order mark"),
        (b"[" * 50_000, "not JSON"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', "larger than"),
        (b"\x80\x04\x95", "not JSON"),
    ],
    ids=["empty", "cut", "array", "bom", "utf16", "deep", "huge", "pickle"],
)
def test_a_config_that_is_no_object_is_refused(content: bytes, expected: str, model: Path) -> None:
    (model / "config.json").write_bytes(content)
    error = refusal_of(model)
    assert error.code == "BROKEN_CONFIG" and expected in error.message


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        ("config.json", {"_attn_implementation_internal": "kernels/evil"}),
        ("config.json", {"attn_implementation": "someone/kernel"}),
        ("config.json", {"model_file": "model.py"}),
        ("config.json", {"custom_code": True}),
        ("config.json", {"trust_remote_code": True}),
        ("config.json", {"nested": {"deep": [{"auto_map": {"x": "y.Z"}}]}}),
        ("config.json", {"transformers_weights": "other.safetensors"}),
        ("generation_config.json", {"custom_generate": "someone/repo"}),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"tokenizer_file": "../../secret.json"}),
        ("tokenizer_config.json", {"spm_path": "~/secret"}),
        ("special_tokens_map.json", {"merges_file": "http://host/merges.txt"}),
    ],
    ids=str,
)
def test_configs_that_reach_for_code_or_other_files_are_refused(file: str, values: Any, model: Path) -> None:
    if not (model / file).exists():
        (model / file).write_text("{}")
    change(model, file, **values)
    error = refusal_of(model)
    assert isinstance(error, InputRefused) and error.code == "UNSAFE_CONFIG" and file in error.message


def test_traces_of_the_saving_machine_are_harmless(model: Path) -> None:
    change(model, _name_or_path="/home/somebody/model", _attn_implementation_autoset=True, trust_remote_code=False)
    assert inspect_model(model, "a").num_layers == 2


@pytest.mark.parametrize(
    ("values", "family", "expected"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, InputRefused, "encoder-decoder"),
        ({"model_type": "mixtral", "num_local_experts": 8}, MachineCannot, "mixture of experts"),
        ({"model_type": "gemma3", "vision_config": {}}, MachineCannot, "more than text"),
        ({"model_type": "rwkv9", "architectures": ["Rwkv9"]}, InputRefused, "rwkv9"),
        ({"model_type": "falcon", "architectures": ["FalconForCausalLM"]}, MachineCannot, "falcon"),
        ({"architectures": ["LlamaForSequenceClassification"]}, InputRefused, "LlamaForSequenceClassification"),
        ({"model_type": ["llama"]}, InputRefused, "no causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, MachineCannot, "gptq"),
        ({"num_hidden_layers": 0}, InputRefused, "num_hidden_layers"),
        ({"num_hidden_layers": 10**15}, InputRefused, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, InputRefused, "lack"),
        ({"num_hidden_layers": 3}, InputRefused, "model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, InputRefused, "layer 1"),
        ({"hidden_size": "48"}, InputRefused, "hidden_size"),
        ({"hidden_size": 64}, InputRefused, "embed_tokens"),
        ({"vocab_size": 321}, InputRefused, "embed_tokens"),
        ({"tie_word_embeddings": False}, InputRefused, "lm_head.weight"),
        ({"max_position_embeddings": True}, InputRefused, "max_position_embeddings"),
        ({"num_attention_heads": 7, "head_dim": None}, InputRefused, "48 is no multiple of num_attention_heads 7"),
        ({"pad_token_id": 320}, InputRefused, "pad_token_id is '320'"),
        ({"pad_token_id": "x"}, InputRefused, "pad_token_id is 'x'"),
        ({"num_key_value_heads": 3}, InputRefused, "no multiple of num_key_value_heads 3"),
        (
            {"num_key_value_heads": 1},
            InputRefused,
            "k_proj has 48 inputs and 24 outputs; config.json asks for 48 and 12",
        ),
        ({"head_dim": 8}, InputRefused, "q_proj has 48 inputs and 48 outputs; config.json asks for 48 and 32"),
        ({"intermediate_size": 3}, InputRefused, "gate_proj has 48 inputs and"),
    ],
    ids=str,
)
def test_models_that_do_not_fit_are_refused_with_the_reason(
    values: Any, family: type, expected: str, model: Path
) -> None:
    change(model, **values)
    error = refusal_of(model)
    assert isinstance(error, family) and expected in error.message
    assert error.field and error.hint


def test_missing_layers_and_tensors_are_named(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    error = refusal_of(model)
    assert error.code == "MISSING_TENSORS" and "model.layers.1.mlp.up_proj.weight" in error.message


def test_quantised_tensors_are_refused_by_name(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    assert "I8" in refusal_of(model).message


def test_extra_tensors_are_said(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    save_file({**tensors, "value_head.weight": torch.ones(2, 2)}, model / WEIGHTS, metadata={"format": "pt"})
    assert any("value_head.weight" in notice for notice in inspect_model(model, "a").notices)


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _replace_by_fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _link(name: str, target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


def _pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _many_files(folder: Path) -> None:
    for number in range(50):
        (folder / f"file-{number}").touch()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_unlink("config.json"), "CONFIG_MISSING"),
        (_unlink(WEIGHTS), "NO_WEIGHTS"),
        (_unlink("tokenizer.json"), "TOKENIZER_MISSING"),
        (_pickle_only, "PICKLE_ONLY"),
        (_replace_by_fifo, "NOT_A_FILE"),
        (_link("config.json", "config.json"), "UNSAFE_LINK"),
        (_link("config.json", "/etc/hostname"), "UNSAFE_LINK"),
        (_link(WEIGHTS, "tokenizer.json"), "UNSAFE_LINK"),
        (_link("tokenizer.json", "/nowhere"), "UNSAFE_LINK"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "ADAPTER_NOT_BASE"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]), "BROKEN_SAFETENSORS"),
        (lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs"), "LFS_POINTER"),
        (lambda folder: (folder / "tokenizer.json").write_text("version https://git-lfs"), "LFS_POINTER"),
        (lambda folder: change(folder, "tokenizer_config.json", eos_token=None), "NO_END_TOKEN"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "TOKENIZER_UNREADABLE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders_with_something_wrong_are_refused(damage: Callable[[Path], Any], code: str, model: Path) -> None:
    damage(model)
    error = refusal_of(model)
    assert error.code == code, error.message
    assert error.field and error.hint


def test_paths_that_are_no_folders(tmp_path: Path, model: Path) -> None:
    assert refusal_of(tmp_path / "nowhere").code == "MODEL_NOT_FOUND"
    assert refusal_of(model / WEIGHTS).code == "MODEL_NOT_A_FOLDER"
    assert refusal_of(Path("/dev/null")).code == "MODEL_NOT_A_FOLDER"


def test_a_folder_of_countless_files_is_not_walked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAXIMUM_ENTRIES", 40)
    _many_files(model)
    assert refusal_of(model).code == "TOO_MANY_FILES"


def test_a_hub_cache_repository_may_link_to_its_own_blobs(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--somebody--model"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert inspect_model(snapshot, "a").digest == inspect_model(model, "a").digest
    (tmp_path / "outside").write_bytes((model / "config.json").read_bytes())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "outside")
    assert refusal_of(snapshot).code == "UNSAFE_LINK"


def test_an_embedding_smaller_than_the_tokenizer_is_refused(model: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(100)])
    tokenizer.save(str(model / "tokenizer.json"))
    error = refusal_of(model)
    assert error.code == "TOKENIZER_TOO_LARGE" and "356" in error.message and "320" in error.message


def _index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text())


def test_broken_indexes_are_refused(sharded: Path) -> None:
    index = _index(sharded)
    names = sorted(index["weight_map"])
    shards = sorted(set(index["weight_map"].values()))
    first, last = shards[0], shards[-1]
    in_first = next(name for name in names if index["weight_map"][name] == first)

    def with_map(**changes: str | None) -> dict[str, Any]:
        changed = index["weight_map"] | changes
        return index | {"weight_map": {key: value for key, value in changed.items() if value is not None}}

    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "BROKEN_INDEX"),
        (index | {"weight_map": []}, "BROKEN_INDEX"),
        (with_map(**{in_first: "../model.safetensors"}), "UNSAFE_CONFIG"),
        (with_map(**{in_first: "/etc/passwd"}), "UNSAFE_CONFIG"),
        (with_map(**{in_first: "pytorch_model.bin"}), "UNSAFE_CONFIG"),
        (with_map(**{in_first: "absent.safetensors"}), "SHARD_MISSING"),
        (with_map(**{in_first: last}), "BROKEN_INDEX"),
        (with_map(**{in_first: None}), "BROKEN_INDEX"),
        (index | {"metadata": {"total_size": 1}}, "BROKEN_INDEX"),
    ]
    for document, code in cases:
        (sharded / INDEX).write_text(json.dumps(document))
        error = refusal_of(sharded)
        assert error.code == code, error.message
    (sharded / INDEX).write_text(json.dumps(index))
    shutil.copy(sharded / first, sharded / "model-99999-of-99999.safetensors")
    assert any("model-99999" in notice for notice in inspect_model(sharded, "a").notices)
    tensors = load_file(sharded / last)
    save_file({**tensors, in_first: torch.ones(2)}, sharded / last)
    assert refusal_of(sharded).code == "DUPLICATE_TENSOR"
    (sharded / first).unlink()
    assert refusal_of(sharded).code == "SHARD_MISSING"


def test_an_index_that_is_not_used_may_not_lead_out_of_the_folder_either(model: Path) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}))
    assert any(INDEX in notice for notice in inspect_model(model, "a").notices)
    (model / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "../../secret.safetensors"}}))
    assert refusal_of(model).code == "UNSAFE_CONFIG"


def test_a_rope_scaling_that_nothing_knows_is_refused(model: Path) -> None:
    change(model, rope_scaling={"rope_type": "stretched", "factor": 2.0}, rope_parameters=None)
    error = refusal_of(model)
    assert error.code == "BROKEN_CONFIG" and "'stretched'" in error.message and "yarn" in error.message


def test_contexts_whose_factors_change_with_the_batch_are_cut_and_said(model: Path) -> None:
    change(model, rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 32, "rope_theta": 1e4})
    facts = inspect_model(model, "a")
    assert facts.context_length == 32 and any("rotary" in notice for notice in facts.notices)


def test_licence_comes_from_the_model_card(model: Path) -> None:
    assert inspect_model(model, "a").licence is None
    (model / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: other\n")
    assert inspect_model(model, "a").licence == "apache-2.0"


def test_targets_and_rank_are_checked_against_the_facts(model: Path) -> None:
    def ask(**settings: Any) -> InspectResponse:
        chosen = TrainingSettings.model_validate({"lora_rank": 4, **settings})
        return answer(InspectRequest(model_name="a", model_path=str(model), settings=chosen))

    assert ask().facts is not None
    with pytest.raises(InputRefused, match="q_proj"):
        ask(target_modules=("q_prj",))
    with pytest.raises(InputRefused, match="k_proj"):
        ask(lora_rank=32)


def run_worker(request: str, tmp_path: Path) -> tuple[int, str, str]:
    (tmp_path / "request.json").write_text(request)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tunesmith.models.inspect", str(tmp_path / "request.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_worker_answers_on_its_last_line(model: Path, tmp_path: Path) -> None:
    request = InspectRequest(model_name="m", model_path=str(model)).model_dump_json()
    code, output, errors = run_worker(request, tmp_path)
    response = InspectResponse.model_validate_json(output.splitlines()[-1])
    assert code == 0 and response.facts == inspect_model(model, "m") and response.error is None
    assert not errors


def test_the_worker_reports_refusals_and_faults_as_errors(tmp_path: Path) -> None:
    request = InspectRequest(model_name="m", model_path=str(tmp_path / "no")).model_dump_json()
    code, output, _ = run_worker(request, tmp_path)
    response = InspectResponse.model_validate_json(output.splitlines()[-1])
    assert code == 0 and response.family == "InputRefused"
    assert response.error is not None and response.error["code"] == "MODEL_NOT_FOUND"
    code, output, _ = run_worker("{}", tmp_path)
    response = InspectResponse.model_validate_json(output.splitlines()[-1])
    assert code == 0 and response.family == "TunesmithError"
    assert response.error is not None and response.error["code"] == "INTERNAL"


def test_inspection_imports_neither_torch_nor_transformers(model: Path) -> None:
    program = (
        "import sys; from tunesmith.models.inspect import inspect_model; inspect_model(sys.argv[1], 'm'); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_matrix_unlike_its_twin_in_the_first_layer_is_refused_before_the_rank(model: Path) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, file)
    error = refusal_of(model)
    assert isinstance(error, InputRefused) and error.code == "SHAPE_MISMATCH"
    assert "model.layers.1.mlp.up_proj.weight is [3, 3]" in error.message and "[80, 48]" in error.message


def test_the_facts_that_are_shipped_of_the_bundled_model_are_those_of_an_inspection() -> None:
    assert bundled_facts() == inspect_model(MODEL_FOLDER, MODEL_NAME)
