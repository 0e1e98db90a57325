"""The frame around every page: signing in and out, themes, keys, the policy that the browser enforces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, sign_in, violations


def test_the_printed_link_signs_in_once(new_page: Callable[..., Page], served: Served) -> None:
    page = new_page()
    page.goto(served.sign_in_url)
    page.wait_for_url(served.url + "/")
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    other = new_page()
    other.goto(served.sign_in_url)
    expect(other.get_by_role("alert")).to_contain_text("used before")
    other.faults.clear()  # type: ignore[attr-defined]  # the refusal's status 403


def test_signing_out_ends_the_session_in_every_tab(page: Page, served: Served) -> None:
    other = page.context.new_page()
    other.goto(served.url + "/jobs")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    other.reload()
    other.wait_for_url("**/sign-in?next=/jobs")


def test_after_signing_in_one_is_where_one_wanted_to_be(new_page: Callable[..., Page], served: Served) -> None:
    page = new_page()
    page.goto(served.url + "/jobs?state=FAILED")
    page.get_by_label("Token").fill(served.token)
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs?state=FAILED")


def test_the_theme_follows_the_system_and_is_remembered(new_page: Callable[..., Page], served: Served) -> None:
    page = sign_in(new_page(color_scheme="dark"), served)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light


def test_no_script_but_our_own_runs(page: Page) -> None:
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.intruder = true";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.intruder = true'>");
            setTimeout("window.intruder = true", 0);  // evaluates
        }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.intruder ?? false") is False
    assert len(page.faults) >= 3  # type: ignore[attr-defined]
    page.faults.clear()  # type: ignore[attr-defined]  # the browser tells what it refused


def test_pages_are_read_without_a_script(new_page: Callable[..., Page], served: Served) -> None:
    page = sign_in(new_page(java_script_enabled=False), served)
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    page.get_by_label("State").select_option("FAILED")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No job fits")).to_be_visible()


def test_a_path_without_a_page_says_so_in_the_same_frame(page: Page, served: Served) -> None:
    page.goto(served.url + "/nothing/here")
    expect(page.get_by_role("heading", name="There is nothing here")).to_be_visible()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    page.faults.clear()  # type: ignore[attr-defined]  # the 404 itself


@pytest.mark.parametrize("path", ["/", "/jobs", "/sign-in"])
def test_axe_finds_nothing(page: Page, served: Served, path: str) -> None:
    page.goto(served.url + path)
    assert violations(page) == []


def test_the_navigation_opens_on_a_phone(new_page: Callable[..., Page], served: Served) -> None:
    page = sign_in(new_page(viewport={"width": 390, "height": 800}), served)
    link = page.get_by_role("link", name="Jobs", exact=True)
    expect(link).not_to_be_visible()
    page.get_by_role("button", name="Navigation").click()
    link.click()
    page.wait_for_url("**/jobs")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_one_box_searches_everything_by_keys(page: Page, served: Served) -> None:
    page.goto(served.url + "/jobs")
    page.keyboard.press("/")
    page.keyboard.type("demo")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=demo")
    box = page.get_by_label("Search everything")
    expect(box).to_have_value("demo")
    expect(page.get_by_role("link", name="tunesmith/demo")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == []
    box.fill("no such thing")  # found as one types
    expect(page.get_by_text("Nothing fits")).to_be_visible()
    expect(page).to_have_url(served.url + "/search?q=no+such+thing")
