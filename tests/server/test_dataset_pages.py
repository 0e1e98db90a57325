"""Pages of datasets, without a browser: the list, a report, rows, registering, editing, deleting."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import URL
from tests.server.test_console import browser
from tests.server.test_version_pages import EVIL, press, user
from tunesmith.bundled import MODEL_NAME

__all__ = ["browser", "user"]
ROWS = [
    {"prompt": "2 + 2 =", "completion": "4"},
    {"prompt": EVIL, "completion": f"{EVIL}" * 2},
    {"prompt": "2 + 2 =", "completion": "4"},
    *({"prompt": f"Number {number}?", "completion": str(number)} for number in range(12)),
]


@pytest.fixture
def dataset(user: TestClient) -> str:
    """Fifteen rows under a name that would be markup; line 3 repeats line 1."""
    body = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    headers = {"Content-Type": "application/octet-stream", "Origin": URL}
    return user.post("/api/datasets", params={"name": EVIL}, content=body, headers=headers).json()["dataset_id"]


def test_an_empty_list_teaches_and_a_filtered_one_says_so(user: TestClient) -> None:
    assert "No datasets yet" in user.get("/datasets").text
    assert "No dataset fits" in user.get("/datasets?search=x").text


def test_a_dataset_shows_its_report_with_lines_and_rows_as_text(user: TestClient, dataset: str) -> None:
    listed = user.get("/datasets").text
    page = user.get(f"/datasets/{dataset}").text
    for text in (listed, page):
        assert EVIL not in text and html.escape(EVIL) in text
    report = page[page.index('id="report"') : page.index('id="seen"')]
    assert "line 3" in report and "1 warning" in page
    row = page[page.index('aria-label="Line 3"') : page.index('aria-label="Line 4"')]
    assert "1 warning" in row and "2 + 2 =" in row
    assert f"/fine-tune?dataset={dataset}" in page
    assert MODEL_NAME in page[page.index('id="seen"') :]


def test_rows_page_on_behind_a_line(user: TestClient, dataset: str) -> None:
    first = user.get(f"/datasets/{dataset}/rows").text
    assert "<html" in first and 'aria-label="Line 10"' in first and 'aria-label="Line 11"' not in first
    part = user.get(f"/datasets/{dataset}/rows?after=10", headers={"HX-Request": "true"}).text
    assert "<html" not in part and 'aria-label="Line 11"' in part and "Next rows" not in part


def test_a_dataset_is_renamed_and_deleted_after_its_page_said_what_goes(user: TestClient, dataset: str) -> None:
    press(user, f"/datasets/{dataset}/edit", name="sums", description="Small ones")
    assert user.get(f"/api/datasets/{dataset}").json()["name"] == "sums"
    assert "15 rows) goes for ever" in user.get(f"/datasets/{dataset}/delete").text
    assert press(user, f"/datasets/{dataset}/delete").headers["Location"] == "/datasets"
    assert user.get(f"/datasets/{dataset}").status_code == 404


def test_a_preview_that_cannot_be_made_is_a_notice_in_its_place(user: TestClient, dataset: str) -> None:
    answer = user.get(f"/datasets/{dataset}/preview?model=nobody/knows", headers={"HX-Request": "true"})
    assert answer.status_code == 200 and 'id="preview"' in answer.text and "UNKNOWN_MODEL" in answer.text
    answer = user.get(f"/datasets/{dataset}/preview?model={MODEL_NAME}&lines=2,x", headers={"HX-Request": "true"})
    assert answer.status_code == 200 and "<html" not in answer.text and "lines" in answer.text


def test_a_file_of_a_location_is_registered_and_its_rows_come_afterwards(user: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n')
    assert "No place is declared yet" in user.get("/datasets/add").text
    place = {"name": "shelf", "uri": folder.as_uri()}
    user.post("/api/locations", json=place, headers={"Origin": URL}).raise_for_status()

    def register(path: str, **fields: str) -> tuple[int, str, str]:
        wanted = {"location": "shelf", "path": path, **fields}
        answer = user.post("/datasets/add", data=wanted, headers={"Origin": URL})
        return answer.status_code, answer.headers.get("Location", ""), answer.text

    status, _, text = register("bad.jsonl", name=EVIL)
    assert status == 422 and "line 1" in text and 'value="bad.jsonl"' in text and EVIL not in text
    assert register("rows.jsonl", columns="nonsense")[0] == 422
    status, address, _ = register("rows.jsonl", name="kept")
    assert status == 303 and address.startswith("/datasets/ds-")
    page = user.get(address).text
    assert f'hx-get="{address}/rows"' in page and "Line 1" not in page
    assert "Line 1" in user.get(f"{address}/rows").text
    (folder / "rows.jsonl").unlink()
    gone = user.get(f"{address}/rows", headers={"HX-Request": "true"})
    assert gone.status_code == 200
    assert "stays where it lies" in user.get(f"{address}/delete").text
