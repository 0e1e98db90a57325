"""The model explorer over REST: cards, one model's page, the template at work, registering from a location."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from tests.server.conftest import URL, form_of
from tunesmith.bundled import MODEL_FOLDER, MODEL_NAME
from tunesmith.catalog.explorer import find_card


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return form_of(answer.json())


def test_cards_are_filtered_and_paged(client: TestClient) -> None:
    page = get(client, "/api/explorer", family="Qwen3", sort="smallest", limit=2)
    assert [card["name"] for card in page["cards"]] == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"]
    after = get(client, "/api/explorer", family="Qwen3", sort="smallest", limit=2, after=page["next"])
    assert after["cards"][0]["name"].startswith("Qwen/Qwen3-4B")
    assert refusal(client.get("/api/explorer?label=Pretty"), 422)["field"] == "label"
    assert refusal(client.get("/api/explorer?sort=random()"), 422)["field"] == "sort"


def test_a_known_model_tells_its_sources_and_what_it_would_need(client: TestClient) -> None:
    page = get(client, "/api/explorer/model/Qwen/Qwen3-32B")
    assert page["facts"] is None and page["card"]["is_size_measured"] is False
    assert {each["facts"] for each in page["sources"]} == {"sizes", "revision", "licence"}
    assert {fit["sequence_length"] for fit in page["memory"]} == {512, 2048, 8192, 32768}
    mixture = get(client, "/api/explorer/model/openai/gpt-oss-20b")
    assert mixture["memory"] == [] and "mixture-of-experts" in mixture["memory_note"]


def test_the_bundled_model_has_its_facts_without_an_inspection(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.server.api.explorer._inspected", None)
    page = get(client, f"/api/explorer/model/{MODEL_NAME}")
    assert page["facts"]["parameters"] == page["card"]["parameters"] == 3_541_248
    assert page["memory"] and page["card"]["quantised_bytes"] < page["card"]["weight_bytes"]


@pytest.mark.slow  # starts the inspect worker
def test_a_conversation_is_shown_as_the_bundled_model_reads_it(client: TestClient) -> None:
    preview = get(client, f"/api/explorer/template/{MODEL_NAME}")
    learned = "".join(piece["text"] for piece in preview["pieces"] if piece["learned"])
    read = "".join(piece["text"] for piece in preview["pieces"] if not piece["learned"])
    assert preview["has_template"] and "ten o'clock" in learned and "Sundays" in read and "Sundays" not in learned


def test_the_template_of_what_is_not_here_is_refused(client: TestClient) -> None:
    assert refusal(client.get("/api/explorer/template/Qwen/Qwen3-8B"), 409)["code"] == "MODEL_NOT_HERE"
    assert refusal(client.get("/api/explorer/model/nobody/knows"), 404)["code"] == "UNKNOWN_MODEL"


@pytest.mark.slow  # starts the inspect worker
def test_a_model_of_a_location_is_registered_edited_and_forgotten(client: TestClient, tmp_path: Path) -> None:
    shutil.copytree(MODEL_FOLDER, tmp_path / "store" / "llms" / "small")
    location = {"name": "llms", "uri": (tmp_path / "store").as_uri()}
    assert client.post("/api/locations", json=location).status_code == 201
    body = {"name": "team/small", "path": "llms:llms/small", "licence_note": "Approved by legal.", "tags": {"a": "b"}}
    made = client.post("/api/models", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["path"] == str(tmp_path / "store" / "llms" / "small")
    page = get(client, "/api/explorer/model/team/small")
    assert page["licence_note"] == "Approved by legal." and page["path"] is not None
    changed = client.patch("/api/models/team/small", json={"licence_note": "Not for customers."}).json()
    assert (changed["licence_note"], changed["tags"]) == ("Not for customers.", {"a": "b"})
    assert client.delete("/api/models/team/small").status_code == 204
    assert (tmp_path / "store" / "llms" / "small" / "config.json").exists()
    for path, code in (("llms:../up", "BAD_KEY"), ("nowhere:x", "UNKNOWN_LOCATION"), ("llms:absent", None)):
        answer = client.post("/api/models", json={"name": "x", "path": path})
        assert answer.status_code in (404, 422), answer.text
        assert code is None or form_of(answer.json())["code"] == code


def test_a_caller_from_elsewhere_sees_no_paths_and_may_name_locations_only(
    app: ASGIApp, token: str, service: Any, tmp_path: Path
) -> None:
    with TestClient(app, base_url=URL, client=("10.0.0.7", 50000)) as remote:
        remote.headers["Authorization"] = f"Bearer {token}"
        refused = remote.post("/api/models", json={"name": "x", "path": str(tmp_path)})
        assert refusal(refused, 403)["code"] == "PATH_NOT_PERMITTED"
        with service.state.database.read() as connection:
            assert find_card(connection, MODEL_NAME, project="default")[0].is_bundled
