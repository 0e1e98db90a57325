"""An adapter that was trained elsewhere becomes a version: matched with its base, served, refused where it must be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.server.conftest import URL, form_of
from tests.server.test_console import browser
from tests.server.test_explorer_api import refusal
from tests.server.test_model_pages import EVIL, send
from tests.server.test_version_pages import user
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.jobs.served_model import find_served
from tunesmith.jobs.state import State
from tunesmith.server.service import Service

__all__ = ["browser", "user"]
pytestmark = [
    pytest.mark.slow,  # each starts the inspect worker
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


@pytest.fixture(scope="module")
def peft_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As PEFT writes it after a training; its base is named by a path of that other machine."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.15)
    folder = tmp_path_factory.mktemp("elsewhere") / "adapter"
    tuned.save_pretrained(str(folder))
    return folder


def changed(source: Path, target: Path, change: Change) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    config = json.loads((target / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, target / "adapter_model.safetensors", metadata=config.pop("metadata", {"format": "pt"}))
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


def register(client: TestClient, path: Path | str, **body: Any) -> Any:
    return client.post("/api/versions", json={"path": str(path), "version_set": "bot", "base": MODEL_NAME, **body})


def test_it_becomes_an_active_version_that_answers(
    client: TestClient, state: State, peft_adapter: Path, tmp_path: Path
) -> None:
    metrics = {"epochs": [{"epoch": 1, "training": SCORES, "validation": SCORES}], "best_epoch": 1}
    answer = register(client, peft_adapter, name="From the cluster", tags={"a": "b"}, metrics=metrics)
    assert answer.status_code == 201, answer.text
    detail = answer.json()
    version, lineage = detail["version"], detail["lineage"]
    assert (version["model_version"], version["state"], version["job_id"]) == ("bot:1", "ACTIVE", None)
    assert version["best"] == SCORES and detail["metrics"] == {**detail["metrics"], **metrics}
    assert lineage["registration"] == {
        "source": str(peft_adapter), "base_named": lineage["registration"]["base_named"], "matched_by": "shapes",
    }  # fmt: skip
    assert (lineage["settings"]["lora_rank"], lineage["settings"]["lora_alpha"]) == (4, 6.0)
    assert lineage["settings"]["render"] == "chat"
    assert {each["path"] for each in detail["files"]} == {
        "adapter_config.json", "adapter_model.safetensors", "job.json",
    }  # fmt: skip
    served = find_served("bot:1", state=state, environment={}, project="default")
    assert served.adapter is not None and served.render == "chat" and served.base.path == str(MODEL_FOLDER)
    assert client.get("/api/versions/bot:1/export").status_code == 200
    assert register(client, peft_adapter, render="plain").json()["version"]["model_version"] == "bot:2"
    assert client.get("/api/audit").json()["audit"][0]["action"] == "version.register"
    plain = find_served("bot:2", state=state, environment={}, project="default")
    assert plain.render == "plain"


SCORES = {"loss": 1.5, "token_accuracy": 0.5, "completion_accuracy": 0.25}


def test_its_answers_are_those_that_peft_gives(client: TestClient, service: Service, peft_adapter: Path) -> None:
    register(client, peft_adapter)
    messages = [{"role": "user", "content": "Summarize this dialog:\nAmanda: I baked cookies.\n---\nSummary:\n"}]
    body = {"model": "bot:1", "messages": messages, "temperature": 0, "max_tokens": 12}
    try:
        answer = client.post("/v1/chat/completions", json=body)
    finally:
        service.serving.stop()
    assert answer.status_code == 200, answer.text
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    def said(model: Any) -> str:
        made = model.generate(**tokens, do_sample=False, max_new_tokens=12)[0][tokens["input_ids"].shape[1] :]
        return tokenizer.decode(made, skip_special_tokens=True)

    base = said(model)  # before PEFT changes it in place
    expected = said(PeftModel.from_pretrained(model, str(peft_adapter)))
    assert answer.json()["choices"][0]["message"]["content"] == expected != base


def test_the_base_is_found_by_its_name_and_held_against_the_digest(
    client: TestClient, peft_adapter: Path, tmp_path: Path
) -> None:
    digest = client.get(f"/api/explorer/model/{MODEL_NAME}").json()["facts"]["digest"]

    def ours(named: str, digest: str) -> Change:
        def change(_: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
            config |= {"base_model_name_or_path": named, "metadata": {"tunesmith_base_digest": digest}}

        return change

    right = changed(peft_adapter, tmp_path / "right", ours(MODEL_NAME, digest))
    answer = register(client, right, base=None)
    assert answer.status_code == 201, answer.text
    assert answer.json()["lineage"]["registration"]["matched_by"] == "hash"
    wrong = changed(peft_adapter, tmp_path / "wrong", ours(MODEL_NAME, "0" * 64))
    assert refusal(register(client, wrong), 422)["code"] == "ADAPTER_OF_ANOTHER_BASE"
    unknown = changed(peft_adapter, tmp_path / "unknown", ours("nobody/knows", digest))
    assert refusal(register(client, unknown, base=None), 422)["code"] == "BASE_NOT_NAMED"
    assert refusal(register(client, right, base="nobody/knows"), 404)["code"] == "UNKNOWN_MODEL"


def narrower(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    name = next(name for name in tensors if "down_proj.lora_A" in name)
    tensors[name] = tensors[name][:, :-1].contiguous()


def renamed(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    for name in [name for name in tensors if "layers.3" in name]:
        tensors[name.replace("layers.3", "layers.40")] = tensors.pop(name)


def broken(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def dead(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name].mul_(-0.0)


def halves(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
    for name in tensors:
        tensors[name] = tensors[name].to(torch.float64)


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (narrower, "ADAPTER_OF_ANOTHER_BASE", "down_proj"),
        (renamed, "ADAPTER_OF_ANOTHER_BASE", "layers.40"),
        (broken, "BROKEN_ADAPTER", "finite"),
        (dead, "ADAPTER_WITHOUT_EFFECT", "zero"),
        (halves, "BROKEN_ADAPTER", "F64"),
        (lambda _, config: config.update(use_dora=True), "NOT_BUILT", "use_dora"),
        (lambda _, config: config.update(r=9), "BROKEN_ADAPTER", "r is 9"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    client: TestClient, state: State, peft_adapter: Path, tmp_path: Path, change: Change, code: str, word: str
) -> None:
    answer = register(client, changed(peft_adapter, tmp_path / "changed", change))
    assert answer.status_code >= 400, answer.text
    error = form_of(answer.json())
    assert error["code"] == code and word in error["message"]
    assert client.get("/api/versions").json()["versions"] == [] and not list(state.home.uploads.iterdir())
    assert not (state.home.results / "bot").exists()


def test_pickles_and_absent_files_are_refused(client: TestClient, peft_adapter: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(peft_adapter / "adapter_config.json", pickled)
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert refusal(register(client, pickled), 422)["code"] == "PICKLE_ONLY"
    (pickled / "adapter_model.bin").unlink()
    assert refusal(register(client, pickled), 422)["code"] == "ADAPTER_NOT_FOUND"
    assert refusal(register(client, tmp_path / "absent"), 422)["code"] == "ADAPTER_NOT_FOUND"


def test_the_page_registers_it_and_tells_where_it_came_from(user: TestClient, peft_adapter: Path) -> None:
    assert "Register an adapter" in user.get("/versions").text
    fields = {
        "path": str(peft_adapter),
        "version_set": "bot",
        "base": MODEL_NAME,
        "tags": "a=b",
        "training_loss": "1,5",
    }
    refused = send(user, "/versions/register", **fields, name=EVIL)
    assert refused.status_code == 422 and EVIL not in refused.text
    assert "lack token accuracy and completion accuracy" in refused.text
    scores = {"training_token_accuracy": "0.5", "training_completion_accuracy": "0.25"}
    made = send(user, "/versions/register", **fields, **scores, name=EVIL)
    assert made.headers["location"] == "/versions/bot:1", made.text
    text = user.get("/versions/bot:1").text
    assert "elsewhere; taken from" in text and "every matrix fits" in text and EVIL not in text
    assert "1.5000" in text and "learning rate" not in text, "what is not known is not shown"
    pickled = send(user, "/versions/register", path="/nowhere", version_set="bot", base=MODEL_NAME)
    assert pickled.status_code == 422 and "ADAPTER_NOT_FOUND" in pickled.text


def test_from_a_location_into_a_location_once_for_one_key(
    client: TestClient, peft_adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(peft_adapter, tmp_path / "shelf" / "in")
    body = {"name": "shelf", "uri": (tmp_path / "shelf").as_uri()}
    assert client.post("/api/locations", json=body).status_code == 201
    wanted = {"path": "shelf:in", "version_set": "bot", "base": MODEL_NAME, "results": "shelf:out/1"}
    first = client.post("/api/versions", json=wanted, headers={"Idempotency-Key": "k"})
    assert first.status_code == 201, first.text
    assert (tmp_path / "shelf" / "out" / "1" / "manifest.json").exists()
    again = client.post("/api/versions", json=wanted, headers={"Idempotency-Key": "k"})
    assert again.status_code == 200 and again.json()["version"]["model_version"] == "bot:1"
    taken = client.post("/api/versions", json=wanted)
    assert refusal(taken, 422)["code"] == "RESULTS_NOT_EMPTY"


def test_a_path_is_for_the_local_administrator_alone(app: ASGIApp, token: str, peft_adapter: Path) -> None:
    with TestClient(app, base_url=URL, client=("10.0.0.7", 50000)) as remote:
        remote.headers["Authorization"] = f"Bearer {token}"
        assert refusal(register(remote, peft_adapter), 403)["code"] == "PATH_NOT_PERMITTED"
