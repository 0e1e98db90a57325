"""The explorer's pages, asked without a browser: cards, a model's page, the hub, downloads, registering."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from tests.server.conftest import URL, app_over
from tests.server.test_console import HTML, sign_in
from tests.server.test_downloads import SMALL, WEIGHTS, environment, fake, worker
from tests.server.test_version_pages import press
from tests.servers.hub import FakeHub
from tests.waiting import PATIENCE_SECONDS, until
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.catalog import models
from tunesmith.catalog.models import register_model
from tunesmith.errors import UsageFault
from tunesmith.jobs.downloads import DownloadService
from tunesmith.jobs.slots import Devices
from tunesmith.jobs.state import State
from tunesmith.server.pages.models import model_name, read_tags, tags_text
from tunesmith.server.pages.shown import short
from tunesmith.server.service import make_service
from tunesmith.spec.catalog import NewBaseModel
from tunesmith.spec.families import FAMILIES
from tunesmith.spec.models import ModelFacts, ModelSizes

__all__ = ["environment", "fake", "worker"]
EVIL = "<script>alert(1)</script>"
PART = {"HX-Request": "true"}


@pytest.fixture
def user(state: State, token: str, environment: dict[str, str], worker: DownloadService) -> Iterator[TestClient]:
    """Somebody who has signed in to a service that knows the stand-in of the hub."""
    app = app_over(make_service(state, environment, queue=None, downloads=worker), with_console=True)
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000), follow_redirects=False) as client:
        client.headers.update(HTML)
        client.headers["X-CSRF-Token"] = sign_in(client, token)
        yield client


def send(user: TestClient, address: str, **fields: str) -> httpx2.Response:
    """A form that has a field `path`, which `press` calls its address."""
    return user.post(address, data=fields, headers={"Origin": URL})


def facts(**changed: object) -> ModelFacts:
    sizes = ModelSizes(
        parameters=1_000_000, context_length=4096, hidden_size=64, num_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=128, vocabulary_size=500, tied_embeddings=True,
        linear_modules=[],
    )  # fmt: skip
    own = {
        "name": "x", "path": "/x", "digest": "d" * 64, "architecture": FAMILIES["llama"].architecture,
        "model_type": "llama", "weight_bytes": 2_000_000, "dtype": "bfloat16", "tokenizer_size": 500,
        "has_chat_template": False, "end_token": "</s>", "end_token_id": 2, "bos_token_id": None,
        "pad_token_id": None, "licence": "mit",
    }  # fmt: skip
    return ModelFacts.model_validate({**sizes.as_json(), **own, **changed})


def registered(state: State, name: str, **fields: object) -> None:
    new = NewBaseModel.model_validate({"path": "/x", "name": name, **fields})
    with state.database.write() as connection:
        register_model(connection, new, facts=facts(), actor="t")


def test_cards_lead_to_fine_tune_or_to_a_download(user: TestClient) -> None:
    text = user.get("/models").text
    assert text.index("tunesmith/demo") < text.index("OLMo 2 1B"), "what is here leads"
    assert "/fine-tune?model=tunesmith/demo" in text and "/model-look?hub_id=allenai/OLMo-2-0425-1B" in text
    assert 'aria-current="page"' in text and "style=" not in text
    labels = re.findall(r'label=([A-Za-z%0-9]+)"', text)
    assert labels[0] == "Ready%20to%20Fine%20Tune"


def test_filters_sort_and_pages_are_links_and_forms(user: TestClient) -> None:
    found = user.get("/models?family=Qwen3&sort=smallest&source=elsewhere&size=up+to+1B").text
    assert "Qwen/Qwen3-0.6B" in found and "Qwen/Qwen3-8B" not in found and "1 model" in found
    first = user.get("/models?sort=name").text
    after = html.unescape(re.findall(r'href="(/models\?[^"]*after=[^"]+)"', first)[0])
    second = user.get(after).text
    assert "sort=name" in after and set(_names(first)).isdisjoint(_names(second))
    not_yet = user.get("/models?label=Not+yet").text
    assert "mixture-of-experts" in not_yet and "tunesmith/demo" not in not_yet
    part = user.get("/models?search=nothing+fits", headers=PART).text
    assert "No model fits" in part and "<html" not in part and "search=nothing%20fits" in part
    for query in ("size=huge", "label=Pretty", "sort=random", "source=there"):
        assert user.get(f"/models?{query}").status_code == 422, query


def _names(text: str) -> list[str]:
    return re.findall(r'<h2><a href="/models/([^"]+)"', text)


def test_a_known_model_s_page_tells_memory_sources_and_the_way_to_it(user: TestClient) -> None:
    text = user.get("/models/Qwen/Qwen3-8B").text
    for words in ("8,190,735,360", "apache-2.0", "Qwen3ForCausalLM", "Row length", "32,768", "Where these facts"):
        assert words in text
    assert "/model-look?hub_id=Qwen/Qwen3-8B" in text and "/fine-tune?model=" not in text
    mixture = user.get("/models/openai/gpt-oss-20b").text
    assert "mixture-of-experts" in mixture and "Row length" not in mixture
    assert user.get("/models/nobody/knows").status_code == 404


def test_memory_is_told_per_device_with_its_verdict(user: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Devices({}).machine()
    small = replace(machine, gpus=(), free_memory_bytes=1 << 20, total_memory_bytes=1 << 21)
    monkeypatch.setattr(Devices, "machine", lambda _: small)
    text = user.get("/models/Qwen/Qwen3-0.6B").text
    assert "Does not fit" in text and "does not fit</span>" in text and "1.05 MB free of 2.1 MB" in text
    large = replace(small, free_memory_bytes=1 << 20, total_memory_bytes=1 << 45)
    monkeypatch.setattr(Devices, "machine", lambda _: large)
    assert ">tight</span>" in user.get("/models/Qwen/Qwen3-0.6B").text


def test_a_registered_model_is_edited_and_forgotten_and_its_words_are_text(user: TestClient, state: State) -> None:
    registered(state, "team/base", description=EVIL, tags={"team": "support"}, licence_note=EVIL)
    for path in ("/models", "/models/team/base"):
        text = user.get(path).text
        assert EVIL not in text and "&lt;script&gt;" in text, path
    assert "team/base" in user.get("/models?tag=team%3Dsupport").text
    answer = press(user, "/models/team/base/edit", description="Ours", tags="team=sales, approved", licence_note="")
    assert answer.headers["location"] == "/models/team/base"
    with state.database.read() as connection:
        model = models.find_model(connection, "team/base")
    assert (model.description, model.tags, model.licence_note) == ("Ours", {"team": "sales", "approved": ""}, "")
    twice = press(user, "/models/team/base/edit", tags="a=1, a=2")
    assert twice.status_code == 422 and "stands twice" in twice.text
    assert press(user, f"/models/{MODEL_NAME}/delete").status_code == 409
    assert press(user, "/models/team/base/delete").headers["location"] == "/models"
    assert user.get("/models/team/base").status_code == 404


def test_names_that_are_words_of_addresses_are_models_like_others(user: TestClient, state: State) -> None:
    for name in ("edit", "x/delete", "register"):
        registered(state, name)
        assert user.get(f"/models/{name}").status_code == 200, name
    press(user, "/models/x/delete/edit", description="kept")
    assert "kept" in user.get("/models/x/delete").text


@pytest.mark.slow  # starts the inspect worker
def test_a_folder_of_a_location_is_browsed_and_registered(user: TestClient, tmp_path: Path) -> None:
    shutil.copytree(MODEL_FOLDER, tmp_path / "store" / "llms" / "our base")
    location = {"name": "llms", "uri": (tmp_path / "store").as_uri()}
    own = {"Origin": URL}
    assert user.post("/api/locations", json=location, headers=own).status_code == 201
    assert "/model-browse?location=llms" in user.get("/model-register").text
    part = user.get("/model-browse?location=llms&path=llms/our base", headers=PART).text
    assert "Take this folder" in part and "path=llms%3Allms/our%20base" in part and "name=our-base" in part
    assert "<html" in user.get("/model-browse?location=llms").text, "and without a script"
    refused = send(user, "/model-register", name="bad name!", path="llms:llms/our base", description=EVIL)
    assert refused.status_code == 422 and 'aria-invalid="true"' in refused.text and EVIL not in refused.text
    absent = send(user, "/model-register", name="x", path="llms:absent")
    assert absent.status_code == 422
    made = send(user, "/model-register", name="our-base", path="llms:llms/our base", tags="a=b", key="k-1")
    assert made.headers["location"] == "/models/our-base", made.text
    again = send(user, "/model-register", name="our-base", path="llms:llms/our base", tags="a=b", key="k-1")
    assert again.headers["location"] == "/models/our-base", "pressed twice"
    text = user.get("/models/our-base").text
    assert "3,541,248" in text and "Fine Tune" in text and "a=b" in text
    preview = user.get("/model-template/our-base", headers=PART).text
    assert re.search(r'<mark class="learned">At ten o&#39;clock', preview) and "<html" not in preview


def test_the_models_of_a_location_are_found(
    user: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    store = tmp_path / "a store"
    shutil.copytree(MODEL_FOLDER, store / "deep" / "er" / "ours")
    shutil.copytree(MODEL_FOLDER, store / "known")
    for name, config in (("mixture", b'{"model_type": "mixtral"}'), ("odd", b"[]"), ("evil", EVIL.encode())):
        (store / name).mkdir()
        (store / name / "config.json").write_bytes(config)
        (store / name / "model.safetensors").write_bytes(b"x" * 10)
    (store / "rows").mkdir()
    (store / "rows" / "config.json").write_bytes(b"{}")
    own = {"Origin": URL}
    assert user.post("/api/locations", json={"name": "llms", "uri": store.as_uri()}, headers=own).status_code == 201
    registered(state, "known", path=str(store / "known"))
    found = user.get("/api/locations/llms/models").json()
    told = {each["path"]: (each["registered_as"], each["model_type"]) for each in found["models"]}
    assert told == {
        "deep/er/ours": (None, "llama"), "known": ("known", "llama"), "mixture": (None, "mixtral"),
        "odd": (None, None), "evil": (None, None),
    }  # fmt: skip
    assert found["is_cut"] is False and found["models"][0]["bytes"] == (MODEL_FOLDER / WEIGHTS).stat().st_size
    text = user.get("/model-scan?location=llms").text
    assert "/model-register?name=ours&amp;path=llms%3Adeep/er/ours" in text and 'href="/models/known"' in text
    assert "Not yet" in text and EVIL not in text
    top = {"name": "one", "uri": (store / "deep" / "er" / "ours").as_uri()}
    assert user.post("/api/locations", json=top, headers=own).status_code == 201
    assert "/model-register?name=one&amp;path=file%3A///" in user.get("/model-scan?location=one").text
    for limit, value in (("FOLDERS", 2), ("DEPTH", 1), ("SECONDS", 0.0)):
        with monkeypatch.context() as patch:
            patch.setattr(f"tunesmith.jobs.scan.MAXIMUM_{limit}", value)
            assert user.get("/api/locations/llms/models").json()["is_cut"] is True, limit


def test_the_hub_is_asked_on_purpose_and_its_faults_are_told_in_place(user: TestClient, fake: FakeHub) -> None:
    assert "Ask the hub" in user.get("/model-hub").text and fake.requests == []
    found = user.get("/model-hub?asked=yes&search=small&licence=apache-2.0", headers=PART).text
    assert f"/model-look?hub_id={SMALL}" in found and "<html" not in found
    assert "The hub has none" in user.get("/model-hub?asked=yes&author=nobody").text
    fake.status = 500
    broken = user.get("/model-hub?asked=yes")
    assert broken.status_code == 200 and "HUB_UNREACHABLE" in broken.text


def test_a_look_tells_what_would_come_and_what_stands_in_the_way(user: TestClient, fake: FakeHub) -> None:
    text = user.get(f"/model-look?hub_id={SMALL}").text
    assert "Download 7." in text and "c" * 40 in text and "pytorch_model.bin" in text and "UNSAFE_FILES" in text
    other = user.get(f"/model-look?hub_id={SMALL}&exclude=README.md&name=mine").text
    assert "excluded by a pattern" in other and 'value="mine"' in other
    refused = user.get("/model-look?hub_id=team/pickles").text
    assert "HUB_NO_SAFETENSORS" in refused and '/model-downloads" class' not in refused
    assert "INVALID_FIELD" in user.get("/model-look?hub_id=https://elsewhere").text


@pytest.mark.slow  # downloads, and inspects a model
def test_a_download_is_followed_cancelled_and_resumed(user: TestClient, fake: FakeHub) -> None:
    fake.hold_after = 1_000_000
    body = {"hub_id": SMALL, "revision": "c" * 40, "exclude": "README.md", "tags": "from=hub", "key": "k"}
    address = press(user, "/model-downloads", **body).headers["location"]
    assert press(user, "/model-downloads", **body).headers["location"] == address, "pressed twice"
    assert fake.is_holding.wait(PATIENCE_SECONDS)
    part = user.get(address, headers=PART).text
    assert "Running" in part and 'hx-trigger="every 1s"' in part and "<html" not in part
    assert 'hx-trigger="every 2s"' in user.get("/model-downloads").text
    press(user, f"{address}/cancel")
    fake.released.set()
    _until(user, address, "Canceled")
    assert press(user, f"{address}/resume").headers["location"] == address
    done = _until(user, address, "Succeeded")
    assert f"/fine-tune?model={SMALL}" in done and "every 1s" not in done
    assert "from=hub" in user.get(f"/models/{SMALL}").text
    refused = press(user, "/model-downloads", hub_id=SMALL)
    assert refused.status_code == 422 and "MODEL_NAME_TAKEN" in refused.text
    assert WEIGHTS in user.get(f"/model-look?hub_id={SMALL}&name=again").text


def _until(user: TestClient, address: str, word: str) -> str:
    def look() -> str:
        return user.get(address).text

    return until(lambda: text if f"{word}</span>" in (text := look()) else "", word, told=look)


def test_tags_are_read_as_they_are_shown() -> None:
    assert read_tags(" team = support,approved\n x=1=2,, ") == {"team": "support", "approved": "", "x": "1=2"}
    assert read_tags(tags_text({"a": "b", "c": ""})) == {"a": "b", "c": ""}
    with pytest.raises(UsageFault, match="stands twice"):
        read_tags("a, a=1")
    assert model_name("Our base (v2)/x") == "Our-base-v2-x"
    assert (short(999_900_000), short(1e9), short(12_345), short(999)) == ("1B", "1B", "12.3k", "999")
