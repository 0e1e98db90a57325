"""Uploads: checked while they arrive, kept once, refused whole; and the datasets that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import ROWS, UPLOAD, form_of
from tunesmith.jobs.state import State
from tunesmith.server import uploads

JSON_BODY = {"model": "tunesmith/demo"}


def upload(client: TestClient, content: Any = ROWS, query: str = "name=numbers", **headers: str) -> Any:
    return client.post(f"/api/datasets?{query}", content=content, headers={**UPLOAD, **headers})


def left_behind(state: State) -> list[Path]:
    return [*state.home.uploads.iterdir(), *state.home.datasets.iterdir()]


def test_an_upload_is_kept_with_its_hashes_and_counts(client: TestClient, state: State) -> None:
    answer = upload(client)
    assert answer.status_code == 201
    dataset = answer.json()
    assert (dataset["name"], dataset["rows"], dataset["bytes"]) == ("numbers", 20, len(ROWS))
    kept = state.home.datasets / dataset["dataset_id"] / "rows.jsonl"
    assert kept.read_bytes() == ROWS
    assert not list(state.home.uploads.iterdir())
    assert client.get(f"/api/datasets/{dataset['dataset_id']}").json() == dataset
    assert client.get(f"/api/datasets/{dataset['dataset_id']}/report").json()["num_errors"] == 0


def test_a_faulty_upload_is_refused_with_all_errors_and_leaves_nothing(client: TestClient, state: State) -> None:
    bad = ROWS + b'{"prompt": 1}\n' + ROWS + b"{\n"
    answer = upload(client, bad, "filename=bad.jsonl")
    form = form_of(answer.json())
    assert answer.status_code == 422
    assert "bad.jsonl: line 21" in form["message"] and "line 42" in form["message"]
    assert form["field"] == "line 21"
    assert left_behind(state) == []
    assert client.get("/api/datasets").json()["datasets"] == []


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x1f\x8b" + b"\0" * 100, b"prompt,completion\n1,2\n"])
def test_what_is_no_jsonl_is_refused(client: TestClient, state: State, content: bytes) -> None:
    answer = upload(client, content)
    assert answer.status_code == 422
    form_of(answer.json())
    assert left_behind(state) == []


def test_an_upload_that_is_no_text_is_refused(client: TestClient, state: State) -> None:
    def large() -> Iterator[bytes]:
        for _ in range(40):
            yield b"\x1f\x8b" + b"\0" * uploads.BLOCK_BYTES

    answer = upload(client, large())
    assert (answer.status_code, form_of(answer.json())["code"]) == (422, "NOT_TEXT")
    assert left_behind(state) == []


def test_an_upload_over_the_limit_is_refused(client: TestClient, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "FREE_RESERVE_BYTES", 1 << 60)
    answer = upload(client)
    assert (answer.status_code, form_of(answer.json())["code"]) == (503, "DISK_FULL")
    assert (
        client.post(
            "/api/datasets", content=b"x", headers={**UPLOAD, "Content-Length": str(uploads.MAXIMUM_BYTES + 1)}
        ).status_code
        == 413
    )
    assert left_behind(state) == []


def test_an_upload_over_the_quota_is_refused_before_and_while_it_comes(client: TestClient, state: State) -> None:
    assert client.patch("/api/quotas/local", json={"uploaded_bytes": len(ROWS) - 1}).status_code == 200
    for content in (ROWS, iter([ROWS])):  # told by its length, and without one
        answer = upload(client, content)
        form = form_of(answer.json())
        assert (answer.status_code, form["code"], form["field"]) == (409, "QUOTA_EXCEEDED", "uploaded_bytes")
        assert left_behind(state) == []
    assert client.delete("/api/quotas/local").status_code == 204
    made = upload(client).json()["dataset_id"]
    used = client.get("/api/quotas/local").json()["used"]
    assert (used["datasets"], used["uploaded_bytes"]) == (1, len(ROWS))
    assert client.delete(f"/api/datasets/{made}").status_code == 204
    assert client.get("/api/quotas/local").json()["used"]["uploaded_bytes"] == 0
    assert client.patch("/api/quotas/*", json={"datasets": 0}).json()["own"] == ["datasets"]
    assert form_of(upload(client).json())["field"] == "datasets"


def test_the_kind_goes_by_the_ending_and_the_name_stays_the_servers(client: TestClient, state: State) -> None:
    csv = b"prompt,completion\n1,2\n3,4\n"
    dataset = upload(client, csv, "filename=../../evil%00.csv").json()
    assert dataset["error"]["code"] == "INVALID_FIELD"
    dataset = upload(client, csv, "filename=../../evil.csv").json()
    assert (dataset["name"], dataset["file_name"], dataset["rows"]) == ("evil", "rows.csv", 2)
    assert [path.name for path in state.home.root.parent.iterdir()] == ["home"]


def test_columns_are_mapped(client: TestClient) -> None:
    rows = b'{"q": "1", "a": "2"}\n'
    assert upload(client, rows).status_code == 422
    assert upload(client, rows, "columns=prompt=q,completion=a").json()["columns"] == {"prompt": "q", "completion": "a"}
    assert upload(client, rows, "columns=surprise=q").status_code == 422


def test_equal_bytes_are_kept_once_and_deleted_one_by_one(client: TestClient, state: State) -> None:
    first, second = upload(client).json(), upload(client, query="name=again").json()
    assert first["dataset_id"] != second["dataset_id"]
    kept = [state.home.datasets / each["dataset_id"] / "rows.jsonl" for each in (first, second)]
    assert kept[0].stat().st_ino == kept[1].stat().st_ino
    assert client.delete(f"/api/datasets/{first['dataset_id']}").status_code == 204
    assert kept[1].read_bytes() == ROWS and not kept[0].exists()


def test_a_repeated_upload_with_its_key_gives_the_first_dataset(client: TestClient, state: State) -> None:
    first, again = (upload(client, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert len(list(state.home.datasets.iterdir())) == 1
    other = upload(client, ROWS + ROWS[:0] + b'{"prompt": "x", "completion": "y"}\n', **{"Idempotency-Key": "k"})
    assert (other.status_code, form_of(other.json())["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert len(list(state.home.datasets.iterdir())) == 1


def test_a_dataset_is_changed_and_not_deleted_while_a_job_needs_it(client: TestClient) -> None:
    dataset_id = upload(client).json()["dataset_id"]
    changed = client.patch(f"/api/datasets/{dataset_id}", json={"tags": {"team": "a"}, "name": "new"}).json()
    assert (changed["name"], changed["tags"]) == ("new", {"team": "a"})
    assert len(client.get("/api/datasets?tag=team=a").json()["datasets"]) == 1
    job = client.post("/api/jobs", json={**JSON_BODY, "dataset": dataset_id}).json()
    answer = client.delete(f"/api/datasets/{dataset_id}")
    assert (answer.status_code, form_of(answer.json())["code"]) == (409, "DATASET_IN_USE")
    client.post(f"/api/jobs/{job['job_id']}/cancel")
    assert client.delete(f"/api/datasets/{dataset_id}").status_code == 204


@pytest.fixture
def shelf(client: TestClient, tmp_path: Path) -> Path:
    """A declared location with a dataset in it."""
    folder = tmp_path / "shelf"
    (folder / "support").mkdir(parents=True)
    (folder / "support" / "rows.jsonl").write_bytes(ROWS)
    made = client.post("/api/locations", json={"name": "shelf", "uri": folder.as_uri()})
    assert made.status_code == 201, made.text
    return folder


def test_a_location_is_an_absolute_place_and_kept_as_its_uri(client: TestClient, tmp_path: Path) -> None:
    answer = client.post("/api/locations", json={"name": "here", "uri": "some/folder"})
    assert (answer.status_code, form_of(answer.json())["code"]) == (422, "BAD_LOCATION")
    made = client.post("/api/locations", json={"name": "here", "uri": str(tmp_path / "gone")}).json()
    assert made["uri"] == (tmp_path / "gone").as_uri()
    answer = client.post("/api/locations/here/check")
    assert (answer.status_code, form_of(answer.json())["code"]) == (409, "LOCATION_UNREACHABLE")


def test_a_location_is_browsed_and_its_datasets_registered(client: TestClient, shelf: Path) -> None:
    top = client.get("/api/locations/shelf/browse").json()["entries"]
    assert [(each["path"], each["kind"]) for each in top] == [("support", "folder")]
    below = client.get("/api/locations/shelf/browse?path=support").json()["entries"]
    assert [(each["path"], each["size"]) for each in below] == [("support/rows.jsonl", len(ROWS))]
    for path in ("..", "support/../..", "/etc", "support//x"):
        answer = client.get("/api/locations/shelf/browse", params={"path": path})
        assert answer.status_code == 422 or answer.json()["entries"] == [], path
    made = client.post("/api/datasets", json={"location": "shelf", "path": "support/rows.jsonl"})
    assert made.status_code == 201, made.text
    assert (made.json()["location"], made.json()["rows"]) == ("shelf", 20)
    for path in ("../home/token", "support/../../home/token", "nothing.jsonl"):
        answer = client.post("/api/datasets", json={"location": "shelf", "path": path})
        assert answer.status_code in (404, 422), answer.text
        form_of(answer.json())


def test_a_dataset_named_in_a_submission_is_pinned(client: TestClient, shelf: Path) -> None:
    job = {**JSON_BODY, "dataset": "shelf:support/rows.jsonl"}
    first, second = (client.post("/api/jobs", json=job) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201), first.text
    datasets = client.get("/api/datasets").json()["datasets"]
    assert [each["source_uri"] for each in datasets] == [(shelf / "support" / "rows.jsonl").as_uri()]


def test_a_submission_of_faulty_rows_in_a_location_is_refused(client: TestClient, shelf: Path) -> None:
    (shelf / "support" / "rows.jsonl").write_bytes(ROWS + b"{\n")
    answer = client.post("/api/jobs", json={**JSON_BODY, "dataset": "shelf:support/rows.jsonl"})
    assert answer.status_code == 422
    assert "line 21" in form_of(answer.json())["message"]
    assert client.get("/api/jobs").json()["jobs"] == []


@pytest.mark.parametrize("lines", ["0", "1,", "a", "-3", "1;2", "9" * 10, ",".join(["1"] * 21)])
def test_lines_of_a_preview_are_numbers_with_commas(client: TestClient, lines: str) -> None:
    dataset_id = upload(client).json()["dataset_id"]
    query = {"model": "tunesmith/demo", "lines": lines}
    refused = client.get(f"/api/datasets/{dataset_id}/preview", params=query)
    assert refused.status_code == 422 and form_of(refused.json())["field"] == "lines"


def test_rows_page_by_line_with_what_the_check_found(client: TestClient) -> None:
    rows = [b'{"prompt": "", "completion": "one"}', b"", b'{"prompt": "<b>two</b>", "completion": "2"}']
    rows.append(b'{"prompt": "three", "completion": "%s"}' % (b"3" * 5000))
    dataset_id = client.post("/api/datasets?name=x", content=b"\n".join(rows), headers=UPLOAD).json()["dataset_id"]
    page = client.get(f"/api/datasets/{dataset_id}/rows?limit=2").json()
    assert [row["line"] for row in page["rows"]] == [1, 3]
    assert [warning["code"] for warning in page["rows"][0]["warnings"]] == ["EMPTY_PROMPT"]
    assert page["rows"][1]["texts"][0] == {"role": "prompt", "text": "<b>two</b>", "characters": 10}
    last = client.get(f"/api/datasets/{dataset_id}/rows", params={"after": page["next"]}).json()
    assert last["next"] is None
    completion = last["rows"][0]["texts"][1]
    assert (len(completion["text"]), completion["characters"]) == (4000, 5000)
    assert client.get("/api/datasets/ds-0123456789abcdef/rows").status_code == 404


def test_turns_of_a_conversation_are_told_by_role(client: TestClient) -> None:
    turns = [{"role": "system", "content": "Be kind."}, *_many_turns(60)]
    body = json.dumps({"messages": turns}).encode()
    dataset_id = client.post("/api/datasets?name=x", content=body, headers=UPLOAD).json()["dataset_id"]
    [row] = client.get(f"/api/datasets/{dataset_id}/rows").json()["rows"]
    assert [each["role"] for each in row["texts"][:3]] == ["system", "user", "assistant"]
    assert row["texts"][-1]["text"] == "11 more turns"


def _many_turns(number: int) -> list[dict[str, str]]:
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": str(place)} for place in range(number)]


def test_the_uses_of_a_dataset_are_its_versions_and_siblings(client: TestClient) -> None:
    first, second = (
        client.post("/api/datasets?name=same", content=ROWS, headers=UPLOAD).json()["dataset_id"] for _ in range(2)
    )
    uses = client.get(f"/api/datasets/{first}/uses").json()
    assert uses["versions"] == [] and [each["dataset_id"] for each in uses["siblings"]] == [second]
    assert client.get("/api/datasets/ds-0123456789abcdef/uses").status_code == 404
