"""Model versions in a browser: comparing, promoting, talking side by side, downloading. A small training makes them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable

import pytest
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, sign_in, violations
from tests.waiting import until
from tunesmith.bundled import TRAINING_ROWS

EVIL = "<img src=x onerror=alert(1)>"
TRAINED_SECONDS = 400
ANSWERED_MILLISECONDS = 120_000  # a worker starts first
TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll("main *")]
    .filter((each) => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".table td, .scroll svg"))
    .map((each) => each.outerHTML.slice(0, 90))"""


@pytest.fixture(scope="module")
def trained(served: Served) -> Served:
    """The set `bot` with two chat versions, one with a name that would be markup, and the plain `writer:1`."""
    rows = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:48])
    headers = {"Content-Type": "application/octet-stream"}
    dataset = served.ask("POST", "/api/datasets", params={"name": "rows"}, content=rows, headers=headers)["dataset_id"]
    wanted = [
        {"version_set": "bot", "epochs": 1, "name": EVIL},
        {"version_set": "bot", "epochs": 2, "learning_rate": 1e-3},
        {"version_set": "writer", "epochs": 1, "render": "plain"},
    ]
    for each in wanted:
        served.ask("POST", "/api/jobs", json={"model": "tunesmith/demo", "dataset": dataset, **each})

    def are_trained() -> bool:
        states = [job["state"] for job in served.ask("GET", "/api/jobs")["jobs"]]
        assert not {"FAILED", "CANCELED"} & set(states), served.told()
        return states == ["SUCCEEDED"] * len(wanted)

    until(are_trained, "the trainings end", seconds=TRAINED_SECONDS, told=served.told)
    return served


def test_a_version_is_shown_whole_and_its_name_is_text(trained: Served, page: Page) -> None:
    page.goto(trained.url + "/versions")
    page.get_by_role("link", name="bot:1", exact=True).click()
    expect(page.get_by_text(EVIL)).to_be_visible()
    assert page.locator("img").count() == 0
    expect(page.get_by_role("img", name="Loss of bot:1 by epoch")).to_be_visible()
    dataset = page.get_by_role("group", name="Lineage of bot:1").get_by_role("link", name="rows")
    expect(dataset).to_have_attribute("href", re.compile("^/datasets/ds-"))


def test_it_is_read_without_a_script(new_page: Callable[..., Page], trained: Served) -> None:
    page = sign_in(new_page(java_script_enabled=False), trained)
    page.goto(trained.url + "/versions/compare?left=bot:1&right=bot:2")
    expect(page.get_by_role("img", name="Running loss of bot:1 and bot:2")).to_be_visible()
    page.goto(trained.url + "/version-sets/bot")
    page.get_by_label("Alias", exact=True).fill("quiet")
    page.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("@quiet").first).to_be_visible()


def test_two_versions_are_compared_and_answer_the_same_prompts(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/version-sets/bot")
    page.get_by_role("button", name="Compare A and B").click()
    expect(page.get_by_role("rowheader", name="learning rate")).to_be_visible()
    page.get_by_label("Tokens at most").fill("8")
    prompts = page.locator("[data-answers] textarea")
    asked = f"{EVIL}\nSummarize this dialog:\nAnna: Hello!\nBert: Hello!\n---\nSummary:\n"
    for number in range(prompts.count()):
        prompts.nth(number).fill("" if number else asked)
    page.get_by_role("button", name="Ask 3 models").click()
    answers = page.locator("table.answers")
    expect(answers.locator("caption")).to_contain_text(EVIL)
    for number in range(3):
        expect(answers.locator("td").nth(number)).not_to_be_empty(timeout=ANSWERED_MILLISECONDS)
    expect(answers.locator("td.pending")).to_have_count(0)
    texts = answers.locator("td").all_inner_texts()
    assert len(texts) == 3 and all(texts), texts
    page.get_by_label("The base, too").uncheck()
    page.get_by_role("button", name="Ask 3 models").click()
    expect(page.locator("table.answers td")).to_have_count(2)


def test_an_alias_is_promoted_and_moves(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/versions/bot:1")
    page.get_by_label("Alias", exact=True).fill("prod")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator(".heading")).to_contain_text("@prod")
    page.goto(trained.url + "/versions/bot:2")
    page.get_by_label("Alias", exact=True).fill("Not A Name")
    page.get_by_label("Alias", exact=True).evaluate("element => element.removeAttribute('pattern')")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator("#toasts")).to_contain_text("is not an alias")
    page.faults.clear()  # type: ignore[attr-defined]  # the refusal's status
    page.get_by_label("Alias", exact=True).fill("prod")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator(".heading")).to_contain_text("@prod")
    assert trained.ask("GET", "/api/versions/bot@prod")["version"]["number"] == 2


def test_base_and_tuned_answer_side_by_side_as_they_write(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/versions/bot:2")
    page.get_by_role("link", name="Try it").click()
    words = page.get_by_label("Your words")
    words.fill(EVIL)
    words.press("Enter")
    for side in ("Left: tunesmith/demo", "Right: bot:2"):
        pane = page.get_by_role("region", name=side)
        expect(pane.locator(".bubble.user")).to_have_text(EVIL)
        expect(pane.locator(".bubble.assistant:not(.pending)")).not_to_be_empty(timeout=ANSWERED_MILLISECONDS)
    assert page.locator("main img").count() == 0
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    words.fill("And a second turn?")
    words.press("Enter")
    expect(page.locator(".bubble.assistant:not(.pending)")).to_have_count(4)
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".bubble")).to_have_count(0)


def test_a_long_answer_is_stopped(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/versions/bot:1/try")
    page.get_by_text("Options").click()
    page.get_by_label("Temperature").fill("2")
    page.get_by_label("Tokens at most").fill("1500")
    stop = page.get_by_role("button", name="Stop")
    for attempt in range(10):  # at this temperature a model may end at once
        page.get_by_label("Your words").fill("Tell me everything.")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("[data-pane]").first.locator(".bubble.assistant").nth(attempt)).not_to_be_empty(
            timeout=ANSWERED_MILLISECONDS
        )
        try:
            stop.click(timeout=5_000, force=True)  # it never rests while the answer grows
            break
        except BrowserError:  # the answer ended before
            expect(stop).not_to_be_visible()
    expect(page.locator(".bubble.pending")).to_have_count(0)
    expect(page.get_by_text("Stopped.").first).to_be_visible()


def test_a_plain_version_says_why_it_does_not_chat_and_goes_on_with_a_text(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/versions/writer:1/try")
    expect(page.get_by_text("trained on plain text")).to_be_visible()
    page.get_by_text("Options").click()
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_label("Your words").fill("Summary:")
    page.get_by_role("button", name="Complete").click()
    expect(page.locator(".bubble.assistant:not(.pending)")).to_have_count(2, timeout=ANSWERED_MILLISECONDS)
    assert page.locator(".bubble.error").count() == 0
    # beside a chat version it refuses, and offers to go on with the text
    page.goto(trained.url + "/versions/bot:1/try?beside=writer:1")
    page.get_by_text("Options").click()
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_label("Your words").fill("Summary:")
    page.get_by_role("button", name="Send").click()
    refused = page.locator(".bubble.error")
    expect(refused).to_contain_text("cannot chat")
    page.faults.clear()  # type: ignore[attr-defined]  # the refusal's status
    refused.get_by_role("button").click()
    expect(page.get_by_role("region", name="Left: writer:1").locator(".bubble.assistant:not(.pending)")).to_have_count(
        1
    )


def test_a_version_is_downloaded(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/versions/bot:1")
    with page.expect_download() as caught:
        page.get_by_role("link", name="Download").click()
    assert caught.value.suggested_filename == "bot-1.zip"
    with zipfile.ZipFile(caught.value.path()) as archive:
        assert archive.testzip() is None and "adapter_model.safetensors" in archive.namelist()


def test_deleting_asks_first(page: Page, trained: Served) -> None:
    page.goto(trained.url + "/versions/writer:1")
    page.get_by_role("link", name="Delete…").click()
    expect(page.get_by_text("stay, unless you say otherwise")).to_be_visible()
    page.get_by_role("link", name="Keep it").click()
    page.wait_for_url("**/versions/writer:1")


@pytest.mark.parametrize(
    "path",
    [
        "/versions", "/versions/bot:2", "/versions/bot:2/try", "/versions/compare?left=bot:1&right=bot:2",
        "/versions/compare", "/version-sets", "/version-sets/bot", "/versions/bot:1/delete",
    ],
)  # fmt: skip
def test_axe_finds_nothing(page: Page, trained: Served, path: str) -> None:
    page.goto(trained.url + path)
    assert violations(page) == []


def test_a_phone_shows_it_without_scrolling_sideways(new_page: Callable[..., Page], trained: Served) -> None:
    page = sign_in(new_page(viewport={"width": 390, "height": 800}), trained)
    for path in ("/versions", "/versions/bot:2", "/version-sets/bot", "/versions/compare?left=bot:1&right=bot:2"):
        page.goto(trained.url + path)
        assert page.evaluate(TOO_WIDE) == [], path
