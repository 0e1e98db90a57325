"""From a model to a fine-tuned one by four clicks, and the other ways through the form, with the real trainer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, violations
from tunesmith import server
from tunesmith.bundled import TRAINING_ROWS

ROWS: list[dict[str, Any]] = [json.loads(line) for line in TRAINING_ROWS.read_text().splitlines()[:40]]
TRAINED_MILLISECONDS = 240_000


@pytest.fixture(scope="module")
def dataset(served: Served) -> str:
    return served.upload(ROWS, name="forty dialogues")


def open_form(page: Page, served: Served, query: str = "") -> None:
    page.goto(f"{served.url}/fine-tune{query}")


def started(page: Page, served: Served) -> tuple[str, str]:
    """The model version whose page the form led to, and its job."""
    page.wait_for_url("**/versions/*:*")
    version = page.url.rpartition("/")[2]
    return version, served.ask("GET", f"/api/versions/{version}")["version"]["job_id"]


def planned(page: Page) -> None:
    expect(page.locator("#plan")).to_contain_text("an epoch")


def test_the_example_is_planned_as_it_is_taken_and_a_busy_server_asked_again(page: Page, served: Served) -> None:
    """The module's first test: the button is offered where there is no dataset yet."""
    template = (Path(server.__file__).parent / "templates" / "fine_tune" / "plan.html").read_text()
    again = re.search(r'<p class="hint" hx-post=.*?</p>', template)
    assert again is not None
    busy = f'<section class="card" id="plan" data-field="">BUSY {again.group()}</section>'
    page.route("**/fine-tune/plan", lambda route: route.fulfill(body=busy, content_type="text/html"), times=1)
    open_form(page, served, "?model=tunesmith/demo")
    page.get_by_role("button", name="Take the example dialogues").click()
    expect(page.locator("#plan")).to_contain_text("It is asked for again by itself.")
    planned(page)
    expect(page.locator("#plan")).not_to_contain_text("BUSY")


def test_four_clicks_from_a_model_to_a_fine_tuned_one(page: Page, served: Served, dataset: str) -> None:
    page.goto(served.url)
    page.get_by_role("link", name="Fine Tune", exact=True).click()  # 1
    page.get_by_role("radio", name="forty dialogues").click()  # 2
    planned(page)
    understood = page.locator("#understood")  # 3: look
    expect(understood.locator("mark.learned").first).to_be_visible()
    expect(understood).to_contain_text("36")
    expect(page.locator("#why-global_batch_size")).to_contain_text("rows a step")
    page.get_by_role("button", name="Start").click()  # 4
    version, job_id = started(page, served)
    page.evaluate("window.sameDocument = true")
    expect(page.locator(".heading .badge").first).to_have_text("In progress")
    page.locator("[data-live=step]").wait_for(timeout=TRAINED_MILLISECONDS)
    lines = page.locator("#metrics .epochs tbody tr")
    expect(lines.nth(1)).to_be_visible(timeout=TRAINED_MILLISECONDS)  # the base and the first epoch
    assert page.evaluate("window.sameDocument") is True  # live, not reloaded
    assert violations(page) == []
    page.get_by_role("link", name="Job", exact=True).click()
    expect(page.locator("[data-series=loss] canvas")).to_be_visible(timeout=TRAINED_MILLISECONDS)
    page.get_by_role("link", name="Model version", exact=True).click()
    expect(page.locator(".heading .badge").first).to_have_text("Active", timeout=TRAINED_MILLISECONDS)  # by itself
    expect(lines).to_have_count(4)
    expect(page.get_by_role("heading", name="Verdict")).to_be_visible()
    assert violations(page) == []
    assert served.ask("GET", f"/api/jobs/{job_id}")["state"] == "SUCCEEDED"
    assert served.ask("GET", f"/api/versions/{version}")["version"]["state"] == "ACTIVE"


def test_a_double_click_on_start_makes_one_job(page: Page, served: Served, dataset: str) -> None:
    before = len(served.ask("GET", "/api/jobs")["jobs"])
    open_form(page, served, f"?dataset={dataset}")
    planned(page)
    page.get_by_label("Name", exact=True).fill("pressed twice")
    page.get_by_label("Epochs").fill("1000")  # it ends by its cancelling alone
    page.get_by_role("button", name="Start").dblclick()
    started(page, served)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("main .badge", has_text="Canceled").first).to_be_visible()
    assert len(served.ask("GET", "/api/jobs")["jobs"]) == before + 1


def test_going_back_and_changing_the_form_asks_before_another_job(page: Page, served: Served, dataset: str) -> None:
    open_form(page, served, f"?dataset={dataset}")
    key = page.locator("[name=key]").get_attribute("value")
    csrf = page.locator("#fine-tune [name=csrf]").get_attribute("value")
    assert key and csrf
    form = {"csrf": csrf, "key": key, "model": "tunesmith/demo", "dataset": dataset, "epochs": "1000"}
    origin = {"Origin": served.url}
    made = page.request.post(f"{served.url}/fine-tune", form=form, headers=origin, max_redirects=0)
    again = page.request.post(f"{served.url}/fine-tune", form=form, headers=origin, max_redirects=0)
    assert made.status == again.status == 303 and made.headers["location"] == again.headers["location"]
    form["epochs"] = "999"
    changed = page.request.post(f"{served.url}/fine-tune", form=form, headers=origin, max_redirects=0)
    assert changed.status == 422 and "Press Start to start another one" in changed.text()
    assert key not in changed.text()
    version = served.ask("GET", f"/api{made.headers['location']}")["version"]
    served.ask("POST", f"/api/jobs/{version['job_id']}/cancel")


def test_the_plan_follows_the_form(page: Page, served: Served, dataset: str) -> None:
    open_form(page, served, f"?dataset={dataset}")
    planned(page)
    inspections = len(list((served.home / "cache" / "inspections").glob("*.json")))
    steps = page.locator("#plan .tile", has_text="Steps").locator(".value")
    before = steps.inner_text()
    page.get_by_label("Epochs").fill("9")
    expect(steps).not_to_have_text(before)
    page.get_by_label("Learning rate", exact=True).fill("0.5")
    page.wait_for_timeout(1500)
    assert len(list((served.home / "cache" / "inspections").glob("*.json"))) == inspections  # nothing was asked anew
    page.get_by_label("Epochs").fill("2.5")
    plan = page.locator("#plan")
    expect(plan).to_contain_text("it must be a whole number from 1 to 1000")
    expect(plan).not_to_contain_text("--epochs")
    assert page.get_by_label("Epochs").get_attribute("aria-invalid") == "true"


def test_what_is_not_built_is_refused_by_name(page: Page, served: Served, dataset: str) -> None:
    open_form(page, served, f"?dataset={dataset}")
    planned(page)
    network = page.locator("[name=network]")
    expect(network).not_to_be_visible()
    page.get_by_label("Replicas").fill("2")
    expect(network).to_be_visible()
    expect(page.locator("#plan")).to_contain_text("Replicas 2 is not built yet")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_text("Replicas 2 is not built yet").first).to_be_visible()
    expect(page.get_by_label("Replicas")).to_have_value("2")  # as it was sent
    page.faults.clear()  # type: ignore[attr-defined]  # the refusal's status 422


def test_an_upload_is_checked_and_chosen(page: Page, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "fresh <b>rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    open_form(page, served)
    page.get_by_role("tab", name="Upload").click()
    page.locator("[data-upload]").set_input_files(file)
    chosen = page.get_by_role("radio", name="fresh <b>rows")
    expect(chosen).to_be_checked()
    planned(page)


def test_a_faulty_upload_is_refused_with_its_lines(page: Page, served: Served, tmp_path: Path) -> None:
    file = tmp_path / "faulty.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n{"prompt": "<script>", "completion": 3}\n')
    open_form(page, served)
    page.get_by_role("tab", name="Upload").click()
    page.locator("[data-upload]").set_input_files(file)
    findings = page.locator("[data-upload-findings] .where")
    expect(findings).to_have_text(["line 2, column 1", "line 3, column 38"])
    page.faults.clear()  # type: ignore[attr-defined]  # the refusal's status 422
    assert violations(page) == []


def test_a_folder_that_the_administrator_allows_is_browsed_and_pinned(
    page: Page, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "notebooks" / "week 3").mkdir(parents=True)
    file = tmp_path / "notebooks" / "week 3" / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:16]))
    uri = (tmp_path / "notebooks").as_uri()
    served.ask("POST", "/api/locations", json={"name": "notebooks", "uri": uri})
    open_form(page, served)
    page.get_by_role("tab", name="Bucket or folder").click()
    page.get_by_role("button", name="notebooks").click()
    page.get_by_role("button", name="week 3").click()
    page.get_by_role("button", name="rows.jsonl").click()
    expect(page.get_by_role("radio", name="rows.jsonl")).to_be_checked()
    planned(page)
    listed = served.ask("GET", "/api/datasets", params={"search": "rows.jsonl"})["datasets"]
    assert listed[0]["location"] == "notebooks" and listed[0]["source_uri"].endswith("week%203/rows.jsonl")
    page.get_by_label("Results location").select_option("notebooks")
    expect(page.locator("#results-check")).to_contain_text("keeps versions")
    expect(page.get_by_label("Folder in it")).to_be_visible()


def test_rows_full_of_script_are_text(page: Page, served: Served) -> None:
    evil = "<script>window.intruder = true</script><img src=x onerror='window.intruder = true'>\u202e"
    rows = [{"prompt": f"{number} {evil}", "completion": f"{evil} {number}"} for number in range(12)]
    identity = served.upload(rows, name=f"evil {evil[:-1]}")
    open_form(page, served, f"?dataset={identity}")
    planned(page)
    expect(page.locator("#understood pre").first).to_contain_text("<script>window.intruder")
    expect(page.locator("#understood pre").first).to_contain_text("\\u202e")
    assert page.evaluate("window.intruder ?? false") is False
    assert page.locator("#understood script, #understood img, #datasets img").count() == 0


def test_every_setting_of_the_spec_has_its_field_and_changes_the_job(page: Page, served: Served, dataset: str) -> None:
    open_form(page, served, f"?dataset={dataset}")
    planned(page)
    page.get_by_text("Advanced: adapter").click()
    page.get_by_label("LoRA rank").fill("4")
    page.get_by_label("Kind of adapter").select_option("rslora")
    page.get_by_label("Target modules").fill("q_proj,v_proj")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Rows for validation").fill("25")
    page.get_by_label("Epochs").fill("1000")  # it ends by its cancelling alone
    expect(page.locator("#plan code").last).to_contain_text("--lora-rank 4")
    page.get_by_role("button", name="Start").click()
    _, job_id = started(page, served)
    expect(page.locator("[data-live=loss]")).to_be_visible(timeout=TRAINED_MILLISECONDS)
    page.get_by_role("link", name="Settings and plan").click()
    for name, value in (("lora_rank", "4"), ("adapter", "rslora"), ("seed", "7"), ("validation_fraction", "0.25")):
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=name, exact=True))
        expect(row.get_by_role("cell").nth(1)).to_have_text(value)
    assert violations(page) == []
    served.ask("POST", f"/api/jobs/{job_id}/cancel")


def test_a_job_is_cloned_into_the_form(page: Page, served: Served, dataset: str) -> None:
    made = served.ask(
        "POST",
        "/api/jobs",
        json={"model": "tunesmith/demo", "dataset": dataset, "epochs": 5, "description": "as before"},
    )
    served.ask("POST", f"/api/jobs/{made['job_id']}/cancel")
    page.goto(f"{served.url}/jobs/{made['job_id']}")
    page.get_by_role("link", name="Clone").click()
    expect(page.get_by_label("Epochs")).to_have_value("5")
    expect(page.get_by_label("Description")).to_have_value("as before")
    expect(page.get_by_role("radio", name="forty dialogues")).to_be_checked()


def test_axe_finds_nothing_in_the_form(page: Page, served: Served, dataset: str) -> None:
    open_form(page, served, f"?dataset={dataset}")
    planned(page)
    page.get_by_text("Advanced: adapter").click()
    assert violations(page) == []
