"""Admin in a browser: a token made and revoked, a location declared, checked and browsed, the health that keeps up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, sign_in, violations
from tests.server.browser.test_versions import TOO_WIDE
from tunesmith.server.pages import ADMIN

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PATHS = ["/admin", *(section.path for section in ADMIN), "/admin/location-add"]


@pytest.fixture(scope="module")
def furnished(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A location, a log, a network and tokens, with texts that would be markup."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "week 3").mkdir()
    (folder / "week 3" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for path, body in (
        ("locations", {"name": "notebooks", "uri": folder.as_uri()}),
        ("logs", {"name": "support"}),
        ("networks", {"name": "fabric", "cidr": "10.0.0.0/24", "interface": "eth0"}),
    ):
        served.ask("POST", f"/api/{path}", json=body | {"description": EVIL})
    served.ask("POST", "/api/tokens", json={"name": EVIL, "days": 3})
    served.ask("PATCH", "/api/quotas/local", json={"datasets": 5})
    return served


def test_the_menu_leads_to_every_section(page: Page, furnished: Served) -> None:
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Admin").click()
    page.wait_for_url("**/admin")
    for section in ADMIN:
        page.get_by_role("navigation", name="Admin").get_by_role("link", name=section.label, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(section.label)
    assert page.locator("main img").count() == 0


def test_a_token_is_made_copied_used_and_revoked(page: Page, furnished: Served, new_page: Callable[..., Page]) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(furnished.url + "/admin/tokens")
    page.get_by_label("For whom or what").fill("nightly training")
    page.get_by_label("Good for").select_option("30 days")
    page.get_by_role("button", name="Make the token").click()
    shown = page.get_by_role("status").filter(has_text="shown this once")
    shown.get_by_role("button", name="Copy").first.click()
    secret = page.evaluate("navigator.clipboard.readText()")
    assert secret.startswith("tunesmith_")
    assert violations(page) == []
    other = new_page()
    other.goto(furnished.url + "/sign-in")
    other.get_by_label("Token").fill(secret)
    other.get_by_role("button", name="Sign in").click()
    other.wait_for_url(furnished.url + "/")
    page.goto(furnished.url + "/admin/tokens")
    assert secret not in page.content()
    row = page.get_by_role("row").filter(has_text="nightly training")
    page.on("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("Revoked")
    other.goto(furnished.url + "/jobs")
    expect(other.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_location_is_declared_checks_itself_and_is_browsed(page: Page, furnished: Served, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page.goto(furnished.url + "/admin/locations")
    page.get_by_role("link", name="Declare a location").click()
    page.get_by_label("Name").fill("results")
    page.get_by_label("Place").fill("results/here")
    page.get_by_role("button", name="Declare it").click()
    expect(page.get_by_role("alert")).to_contain_text("relative")
    page.faults.clear()  # type: ignore[attr-defined]  # the refusal's status
    assert violations(page) == []
    page.get_by_label("Place").fill(tmp_path.as_uri())
    page.get_by_role("button", name="Declare it").click()
    expect(page.get_by_text("It keeps versions")).to_be_visible()  # unasked
    page.get_by_role("list", name="Entries").get_by_role("link", name="results").click()
    expect(page.get_by_text("Nothing lies here yet")).to_be_visible()
    tmp_path.joinpath("results").rmdir()
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_text("It keeps versions")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("link", name="Delete…").click()
    assert violations(page) == []
    page.get_by_role("button", name="Delete results").click()
    page.wait_for_url("**/admin/locations")
    expect(page.get_by_role("link", name="results")).to_have_count(0)


def test_the_first_page_keeps_up_without_a_reload(page: Page, furnished: Served) -> None:
    page.goto(furnished.url + "/admin")
    expect(page.get_by_text("expires on")).to_have_count(1)
    page.evaluate("window.sameDocument = true")
    disk = page.locator("#health progress").first
    before = disk.element_handle()
    made = served_token(furnished, "soon over")
    expect(page.get_by_text("The token soon over expires on")).to_be_visible(timeout=15_000)
    assert before is not None and before.evaluate("element => element.isConnected")  # morphed: it was not replaced
    assert page.evaluate("window.sameDocument") is True
    furnished.ask("DELETE", f"/api/tokens/{made}")


def served_token(served: Served, name: str) -> str:
    return served.ask("POST", "/api/tokens", json={"name": name, "days": 2})["token_id"]


def test_the_audit_is_filtered_as_one_types(page: Page, furnished: Served) -> None:
    page.goto(furnished.url + "/admin/audit")
    page.get_by_label("What", exact=True).select_option("declared a location")
    expect(page.locator("#audit tbody tr").first).to_contain_text("declared a location")
    page.get_by_label("Object").fill("notebooks")
    page.wait_for_url("**object=notebooks*")
    expect(page.locator(".htmx-request, .htmx-swapping, .htmx-settling")).to_have_count(0)  # or the link is replaced
    expect(page.locator("#audit tbody tr")).to_have_count(1)
    # as long as a finger stays down: leaving the field asks for nothing that would replace the link under it
    page.get_by_role("link", name="notebooks").click(delay=500)
    expect(page.get_by_role("heading", level=1)).to_have_text("notebooks")


@pytest.mark.parametrize(
    "path", [*PATHS, "/admin/locations/notebooks", "/admin/logs/support", "/admin/networks/fabric"]
)
def test_axe_finds_nothing_and_a_phone_needs_no_scrolling_sideways(page: Page, furnished: Served, path: str) -> None:
    page.goto(furnished.url + path)
    page.evaluate("document.querySelectorAll('main details').forEach((each) => { each.open = true; })")
    if path == "/admin/locations/notebooks":
        page.get_by_text("week 3").wait_for()
    assert violations(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate(TOO_WIDE) == []


def test_without_a_script_pages_are_read_and_forms_work(new_page: Callable[..., Page], furnished: Served) -> None:
    page = sign_in(new_page(java_script_enabled=False), furnished)
    for path in PATHS:
        page.goto(furnished.url + path)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.goto(furnished.url + "/admin/locations/notebooks")
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_text("It keeps versions")).to_be_visible()
    page.goto(furnished.url + "/admin/locations/notebooks/browse")
    page.get_by_role("link", name="week 3").click()
    expect(page.get_by_text("rows.jsonl")).to_be_visible()
    page.goto(furnished.url + "/admin/quotas")
    page.get_by_text("Change", exact=True).last.click()
    page.locator("[name=datasets]").last.fill("7")
    page.get_by_role("button", name="Save").last.click()
    expect(page.get_by_text("0 of 7")).to_be_visible()
    page.goto(furnished.url + "/admin/audit?action=quota")
    expect(page.locator("#audit").get_by_text("changed quotas").first).to_be_visible()


def test_a_project_is_made_somebody_let_in_and_gone_to_without_a_script(
    new_page: Callable[..., Page], furnished: Served
) -> None:
    page = sign_in(new_page(java_script_enabled=False), furnished)
    page.goto(furnished.url + "/admin/projects")
    assert page.get_by_role("button", name="Go to that project").count() == 0, "there is one project alone"
    expect(page.get_by_text("One project for all so far")).to_be_visible()
    page.locator("input[name=name]").fill("help-desk")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("help-desk")
    expect(page.get_by_text("administrators alone see it")).to_be_visible()
    page.get_by_role("link", name="Let somebody in").click()
    page.locator("input[name=name]").fill("helpers")
    page.locator("textarea[name=who]").fill("ada\nnightly, training")
    page.locator("textarea[name=may]").fill("use\nquota.*")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_text("NOT_GRANTABLE")).to_be_visible()
    page.faults.clear()  # type: ignore[attr-defined]  # the browser tells of the status, too
    assert "nightly, training" in page.locator("textarea[name=who]").input_value(), "the form as it was sent"
    page.locator("textarea[name=may]").fill("use\nlocation.add")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_text("No token is called 'ada' now", exact=False)).to_be_visible()
    expect(page.get_by_text("location.add", exact=True).last).to_be_visible()
    page.goto(furnished.url + "/admin/permissions?who=ada&project=help-desk")
    expect(page.get_by_role("link", name="helpers").first).to_be_visible()
    page.goto(furnished.url + "/jobs")
    page.locator("header .switch select").select_option("help-desk")
    page.locator("header .switch button").click()
    page.wait_for_url(furnished.url + "/jobs")
    expect(page.locator("header .switch select")).to_have_value("help-desk")
    page.goto(furnished.url + "/search?q=help")
    expect(page.get_by_role("main").get_by_role("link", name="help-desk")).to_be_visible()


def test_a_page_of_the_project_that_was_left_does_not_act_in_the_other(page: Page, furnished: Served) -> None:
    existing = {each["name"] for each in furnished.ask("GET", "/api/projects")["projects"]}
    if "help-desk" not in existing:
        furnished.ask("POST", "/api/projects", json={"name": "help-desk"})
    page.goto(furnished.url + "/fine-tune")
    other = page.context.new_page()
    other.goto(furnished.url + "/")
    other.locator("header .switch select").select_option("help-desk")
    other.locator("header .switch button").click()
    expect(other.locator("header .switch select")).to_have_value("help-desk")
    page.faults.clear()  # type: ignore[attr-defined]  # the browser tells the refusal, too
    token = page.locator('meta[name="csrf"]').get_attribute("content")
    status = page.evaluate(
        """async token => (await fetch("/api/datasets?filename=r.jsonl", {method: "POST", body: "{}",
        headers: {"X-CSRF-Token": token, "Content-Type": "application/octet-stream"}})).json()""",
        token,
    )
    assert status["error"]["code"] == "PROJECT_CHANGED"
    page.faults.clear()  # type: ignore[attr-defined]
