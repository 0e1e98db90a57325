"""The model explorer in a browser: found, looked at, downloaded from a stand-in of the hub, led into the form."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, sign_in, violations
from tests.server.browser.test_versions import TOO_WIDE
from tests.servers.hub import FakeHub
from tests.waiting import PATIENCE_SECONDS
from tunesmith.bundled import MODEL_FOLDER

EVIL = "<img src=x onerror=alert(1)>"
SMALL = "team/small"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add(SMALL, MODEL_FOLDER, extra={"pytorch_model.bin": b"\x80\x04" * 1_000_000, f"{EVIL}.txt": b"x"})
        yield fake


@pytest.fixture(scope="module")
def served(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that knows the stand-in of the hub, with a location of folders and a model whose words are markup."""
    server = Served(home=tmp_path_factory.mktemp("home"), environment={"HF_ENDPOINT": hub.url})
    server.start()
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(MODEL_FOLDER, store / "ours")
    server.ask("POST", "/api/locations", json={"name": "shelf", "uri": store.as_uri()})
    body = {"name": "evil", "path": "shelf:ours", "description": EVIL, "tags": {"x": EVIL}, "licence_note": EVIL}
    try:
        server.ask("POST", "/api/models", json=body)
        yield server
    finally:
        server.stop()


def test_cards_are_filtered_as_one_types(page: Page, served: Served) -> None:
    page.goto(served.url)
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Models", exact=True).click()
    expect(page.get_by_role("link", name="OLMo 2 1B", exact=True)).to_be_visible()
    page.get_by_label("Name, publisher, licence or tag").fill("qwen3")
    expect(page.get_by_role("link", name="OLMo 2 1B", exact=True)).to_have_count(0)
    page.get_by_label("Order").select_option("Smallest first")
    expect(page.locator(".model h2").first).to_have_text("Qwen3 0.6B")
    page.wait_for_url("**search=qwen3**sort=smallest**")
    page.reload()
    expect(page.locator(".model h2").first).to_have_text("Qwen3 0.6B")
    page.get_by_role("link", name="Not yet").click()
    expect(page.get_by_text("mixture-of-experts").first).to_be_visible()


def test_a_model_s_page_leads_into_the_form_with_the_model_chosen(page: Page, served: Served) -> None:
    page.goto(served.url + "/models/tunesmith/demo")
    expect(page.locator("mark.learned").nth(1)).to_contain_text("ten o'clock")
    expect(page.get_by_role("heading", name="Fine-tuning on this machine")).to_be_visible()
    page.goto(served.url + "/models/evil")
    page.locator("main").get_by_role("link", name="Fine Tune", exact=True).click()
    expect(page.get_by_label("Base model")).to_have_value("evil")


def test_a_model_of_the_hub_is_looked_at_downloaded_cancelled_and_resumed(
    page: Page, served: Served, hub: FakeHub
) -> None:
    hub.hold_after = 2_000_000
    page.goto(served.url + "/model-hub")
    page.get_by_label("Words of a model's name").fill("small")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name=SMALL, exact=True).click()
    expect(page.get_by_text(f"{EVIL}.txt")).to_be_visible()
    expect(page.get_by_text("pytorch_model.bin").first).to_be_visible()
    page.get_by_role("button", name="Download 7.28 MB").click()
    page.wait_for_url("**/model-downloads/dl-*")
    expect(page.get_by_role("progressbar", name="Downloaded")).to_have_js_property("value", 0)
    assert hub.is_holding.wait(PATIENCE_SECONDS)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    hub.released.set()
    expect(page.locator("#download .badge")).to_have_text("Canceled")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#download .badge")).to_have_text("Succeeded")
    page.get_by_role("link", name="Open the model").click()
    expect(page.get_by_text("cccccccccccc", exact=True)).to_be_visible()


def test_a_folder_is_chosen_in_a_location_and_registered(page: Page, served: Served) -> None:
    page.goto(served.url + "/model-register")
    page.get_by_role("link", name="shelf file:").click()
    page.locator("#browser").get_by_role("link", name="ours").click()
    page.get_by_role("link", name="Take this folder").click()
    expect(page.get_by_label("Where it lies")).to_have_value("shelf:ours")
    page.get_by_label("Tags").fill("team=support")
    page.get_by_role("button", name="Inspect and register").click()
    page.wait_for_url("**/models/ours")
    page.get_by_text("Take it out of the catalog").click()
    page.get_by_role("button", name="Forget ours").click()
    page.wait_for_url("**/models")
    expect(page.get_by_role("link", name="ours", exact=True)).to_have_count(0)


def test_the_models_of_a_location_are_found_and_led_into_the_form(page: Page, served: Served) -> None:
    shutil.copytree(MODEL_FOLDER, served.home / "shelf" / "deep" / "new")
    served.ask("POST", "/api/locations", json={"name": "other", "uri": (served.home / "shelf").as_uri()})
    page.goto(served.url + "/model-register")
    page.get_by_role("link", name="Find models in other").click()
    page.get_by_role("link", name="Register deep/new").click()
    expect(page.get_by_label("Where it lies")).to_have_value("other:deep/new")
    expect(page.get_by_label("Name", exact=True)).to_have_value("new")


def test_it_is_read_and_used_without_a_script(new_page: Callable[..., Page], served: Served) -> None:
    page = sign_in(new_page(java_script_enabled=False), served)
    page.goto(served.url + "/models")
    page.get_by_label("Family").select_option("Qwen3")
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name="Qwen3 0.6B", exact=True).click()
    expect(page.get_by_role("heading", name="Fine-tuning on this machine")).to_be_visible()
    page.goto(served.url + "/models/evil")
    page.get_by_role("link", name="Show a short conversation as the model reads it").click()
    expect(page.locator("mark.learned")).to_contain_text("ten o'clock")


PAGES = [
    "/models", "/models?search=nothing+at+all", "/models/evil", "/models/Qwen/Qwen3-8B", "/models/openai/gpt-oss-20b",
    "/model-hub", "/model-hub?asked=yes", f"/model-look?hub_id={SMALL}&name=other", "/model-register",
    "/model-browse?location=shelf&path=ours", "/model-downloads", "/model-template/evil", "/versions/register",
    "/model-scan?location=shelf",
]  # fmt: skip


def test_pages_are_accessible_and_words_of_users_stay_text(
    new_page: Callable[..., Page], page: Page, served: Served
) -> None:
    phone = sign_in(new_page(viewport={"width": 390, "height": 844}), served)
    for path in PAGES:
        page.goto(served.url + path)
        assert violations(page) == [], path
        assert page.locator("main img").count() == 0, path
        phone.goto(served.url + path)
        assert phone.evaluate(TOO_WIDE) == [], path
    page.goto(served.url + "/models/evil")
    expect(page.get_by_text(EVIL).first).to_be_visible()
