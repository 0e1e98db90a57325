"""Datasets in a browser: uploaded, refused with its lines, read with rows full of markup, previewed, deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, sign_in, violations
from tests.server.browser.test_versions import TOO_WIDE

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
ROWS = [
    {"prompt": "Summarize: Anna says hello.", "completion": "Anna says hello."},
    {"prompt": EVIL, "completion": f"{EVIL} is text"},
    {"prompt": "Summarize: Anna says hello.", "completion": "Anna says hello."},
    *({"prompt": f"Number {number}?", "completion": f"It is {number}."} for number in range(12)),
]


def test_a_file_is_uploaded_looked_at_and_deleted(page: Page, served: Served, tmp_path: Path) -> None:
    file, faulty = tmp_path / "numbers.jsonl", tmp_path / "faulty.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    faulty.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    page.goto(served.url + "/datasets")
    page.get_by_role("link", name="Upload the first one").click()
    page.wait_for_url("**/datasets/add")
    assert violations(page) == []
    page.locator("[data-upload]").set_input_files(faulty)
    expect(page.get_by_role("alert")).to_contain_text("line 2")
    page.faults.clear()  # type: ignore[attr-defined]  # the browser tells the refusal's status as an error
    page.locator("[data-upload]").set_input_files(file)
    page.wait_for_url("**/datasets/ds-*")
    report = page.get_by_role("region", name="Report")
    expect(report).to_contain_text("line 3")
    expect(page.get_by_role("article", name="Line 2")).to_contain_text(EVIL)
    assert page.locator("main img").count() == 0
    page.get_by_role("link", name="Next rows").click()
    expect(page.get_by_role("article", name="Line 15")).to_be_visible()
    page.get_by_role("button", name="Show tokens").click()
    expect(page.locator("#preview mark.learned").nth(1)).to_be_visible(timeout=60_000)
    expect(page.get_by_role("img", name="Histogram of row lengths")).to_be_visible()
    page.get_by_label("Lines").fill("5, 7")
    page.get_by_role("button", name="Show tokens").click()
    expect(page.locator("#preview summary")).to_have_count(2)
    expect(page.locator("#preview summary").first).to_contain_text("line 5")
    assert violations(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate(TOO_WIDE) == []
    page.get_by_role("link", name="Delete…").click()
    page.wait_for_url("**/delete")
    assert violations(page) == []
    page.get_by_role("button", name="Delete numbers").click()
    page.wait_for_url(served.url + "/datasets")
    expect(page.get_by_text("No datasets yet")).to_be_visible()


@pytest.mark.parametrize("path", ["/datasets", "/datasets/add"])
def test_pages_are_accessible_with_rows_and_read_without_a_script(
    new_page: Callable[..., Page], served: Served, path: str
) -> None:
    dataset = served.upload(ROWS, name="numbers")
    page = sign_in(new_page(), served)
    page.goto(served.url + path)
    assert violations(page) == []
    plain = sign_in(new_page(java_script_enabled=False), served)
    plain.goto(f"{served.url}/datasets/{dataset}")
    expect(plain.get_by_role("article", name="Line 2")).to_contain_text(EVIL)
    plain.get_by_role("link", name="Next rows").click()
    expect(plain.get_by_role("article", name="Line 15")).to_be_visible()
