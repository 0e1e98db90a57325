"""A job's page while its job runs: live curves, a killed server in between, cancel, pause, long runs, hostile text."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import WAIT_MILLISECONDS, Served, sign_in, violations
from tests.waiting import until
from tunesmith.bundled import TRAINING_ROWS

ROWS: list[dict[str, Any]] = [json.loads(line) for line in TRAINING_ROWS.read_text().splitlines()[:240]]
LONG = {"epochs": 1000}  # minutes on any machine: a job ends by its cancelling alone
STARTED_MILLISECONDS = 240_000
STEPS = 100_000
POINTS = 1200  # that the page asks for
EVIL = "<script>window.intruder = true</script><img src=x onerror='window.intruder = true'>"


@pytest.fixture(scope="module")
def dataset(served: Served) -> str:
    return served.upload(ROWS, name="dialogues")


def submitted(served: Served, dataset: str, **asked: Any) -> str:
    body = {"model": "tunesmith/demo", "dataset": dataset, **LONG, **asked}
    return served.ask("POST", "/api/jobs", json=body)["job_id"]


def step_of(page: Page) -> int:
    return int(page.locator("[data-live=step]").inner_text().replace(",", ""))


def moving(page: Page) -> int:
    """Waits until the step on the page grows, without a reload; returns the step then."""
    page.locator("[data-live=step]").wait_for(timeout=STARTED_MILLISECONDS)
    before = step_of(page)
    page.wait_for_function(
        "before => Number(document.querySelector('[data-live=step]').textContent.replace(/\\D/g, '')) > before",
        arg=before, timeout=STARTED_MILLISECONDS,
    )  # fmt: skip
    return step_of(page)


def test_a_page_follows_its_job_through_a_killed_server_and_pause_and_cancel(
    page: Page, served: Served, dataset: str
) -> None:
    job_id = submitted(served, dataset, name=f"dialogues {EVIL}")
    page.goto(f"{served.url}/jobs/{job_id}")
    moving(page)
    expect(page.locator("[data-series=loss] canvas")).to_be_visible()
    expect(page.locator("#metrics svg.chart").first).to_be_visible(timeout=STARTED_MILLISECONDS)  # came unasked
    seen = step_of(page)
    served.stop(signal.SIGKILL)
    page.wait_for_timeout(4000)
    served.start()
    assert moving(page) > seen  # the worker ran on, and the page found it again
    page.faults.clear()  # type: ignore[attr-defined]  # the browser tells of each connection that was refused
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=WAIT_MILLISECONDS)
    expect(page.locator("#job-head")).to_contain_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=WAIT_MILLISECONDS)
    expect(page.locator("#job-side")).to_contain_text("Attempt 2 started", timeout=STARTED_MILLISECONDS)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#job-head .badge").first).to_have_text("Canceled", timeout=WAIT_MILLISECONDS)
    assert page.get_by_role("heading", level=1).inner_text() == f"dialogues {EVIL}"
    assert page.evaluate("window.intruder ?? false") is False
    assert violations(page) == []


def last_of_all(curves: dict[str, Any]) -> int:
    """The last step of a curve that has no gap; a long one is thinned on its way."""
    steps, count = curves["step"], curves["steps_in_range"]
    assert (steps[0], steps[-1]) == (1, count)
    assert steps == list(range(1, count + 1)) if count <= POINTS else len(steps) <= POINTS
    return count


class Line:
    """The network between a browser and a server, which a test may cut, or let die without a word."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._dead: set[socket.socket] = set()
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        self._end()

    def mend(self) -> None:
        self._is_cut = False

    def go_dead(self) -> None:
        """What is connected now stays so, and nothing passes any more: a sleeping machine's router forgot it."""
        self._dead |= {end for pair in self._pairs for end in pair}

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in `accept`
        self._listener.close()
        self._end()

    def _end(self) -> None:
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs = []

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self._pairs.append((near, far))
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._dead:
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()  # the target is the source of the other way's pump


@pytest.fixture
def line(served: Served) -> Iterator[Line]:
    opened = Line(served.port)
    yield opened
    opened.close()


def test_a_closed_tab_an_absent_network_and_a_slept_machine_miss_nothing(
    new_page: Callable[..., Page], served: Served, dataset: str, line: Line
) -> None:
    page = new_page()
    page.goto(line.url + "/sign-in")
    page.get_by_label("Token").fill(served.token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(line.url + "/")
    job_id = submitted(served, dataset)
    address = f"{line.url}/jobs/{job_id}"
    page.goto(address)
    seen = moving(page)
    context = page.context
    page.close()
    until(lambda: len(served.ask("GET", f"/api/jobs/{job_id}/curves")["step"]) > seen + 3, "it trains on")
    page = context.new_page()  # the tab is opened again: what passed meanwhile is there, and it moves on
    with page.expect_response(lambda answer: "/curves" in answer.url) as curves:
        page.goto(address)
    assert step_of(page) > seen
    assert last_of_all(curves.value.json()) > seen
    expect(page.locator("[data-series=loss] canvas")).to_be_visible()

    moving(page)
    context.set_offline(True)
    line.cut()
    expect(page.locator("#toasts")).to_contain_text(page.locator("#job-live").get_attribute("data-asleep") or "?")
    page.wait_for_timeout(1000)  # for what was on its way into the page
    stopped = step_of(page)
    page.wait_for_timeout(3000)
    assert step_of(page) == stopped
    line.mend()
    with page.expect_response(lambda answer: "/curves" in answer.url and answer.ok) as curves:
        context.set_offline(False)
    assert last_of_all(curves.value.json()) > stopped
    assert moving(page) > stopped

    line.go_dead()
    page.wait_for_timeout(3000)  # nothing tells the page that its events come no more
    with (  # it wakes up: its clock has jumped
        page.expect_request(lambda asked: "/events?" in asked.url) as again,
        page.expect_response(lambda answer: "/curves" in answer.url and answer.ok) as curves,
    ):
        page.evaluate("(now => { Date.now = () => now() + 60_000; })(Date.now)")
    assert int(again.value.url.rpartition("after=")[2]) > 0  # it goes on where it was
    last = last_of_all(curves.value.json())
    page.wait_for_function(
        "last => Number(document.querySelector('[data-live=step]').textContent.replace(/\\D/g, '')) > last",
        arg=last + 3,
    )
    served.ask("POST", f"/api/jobs/{job_id}/cancel")


def test_the_log_is_searched_and_its_lines_are_text(page: Page, served: Served, dataset: str) -> None:
    job_id = submitted(served, dataset)
    served.ask("POST", f"/api/jobs/{job_id}/cancel")
    folder = served.home / "jobs" / job_id / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "worker.log").write_text(f"first line\n{EVIL}\nan escape \x1b[31m and a turn \u202e\n")
    page.goto(f"{served.url}/jobs/{job_id}/log")
    lines = page.locator("#log-lines p")
    expect(lines).to_have_text(["first line", EVIL, "an escape \\x1b[31m and a turn \\u202e"])
    page.get_by_role("searchbox", name="Search the log").fill("escape")
    expect(page.locator("#log-lines p")).to_have_count(1)
    assert page.evaluate("window.intruder ?? false") is False
    assert violations(page) == []


def test_the_list_is_filtered_paged_and_clean(page: Page, served: Served, dataset: str) -> None:
    for number in range(3):
        job_id = submitted(served, dataset, name=f"listed-{number}x")
        served.ask("POST", f"/api/jobs/{job_id}/cancel")
    page.goto(f"{served.url}/jobs")
    page.get_by_label("Name, id or version").fill("listed-1x")
    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    page.wait_for_url("**search=listed-1x*")  # to be sent to somebody
    page.reload()
    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    page.get_by_label("Name, id or version").fill("nothing of the kind")
    expect(page.get_by_text("No job fits")).to_be_visible()
    page.goto(f"{served.url}/jobs")
    assert violations(page) == []


def with_steps(served: Served, job_id: str, steps: int) -> None:
    """A run that made so many steps, as its worker would have told it."""
    with closing(sqlite3.connect(served.home / "state.db")) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")  # the server still tells of the job's end meanwhile
        first = connection.execute("SELECT num_events FROM jobs WHERE job_id = ?", (job_id,)).fetchone()[0]
        rows = (
            (job_id, first + step, "step", json.dumps({
                "time": "2026-01-01T00:00:00Z", "kind": "step", "step": step, "steps": steps, "epoch": 1,
                "loss": 0.0001 if step == 77_777 else 2.0 + 1000 / (step + 100), "learning_rate": 1e-4,
                "gradient_norm": 1.0, "tokens": 100, "learned_tokens": 50, "tokens_per_second": 1000.0,
                "memory_bytes": 10**9, "eta_seconds": 1.0,
            }))
            for step in range(1, steps + 1)
        )  # fmt: skip
        connection.executemany("INSERT INTO events (job_id, number, kind, body) VALUES (?, ?, ?, ?)", rows)
        connection.execute("UPDATE jobs SET num_events = ? WHERE job_id = ?", (first + steps, job_id))


def test_a_run_of_100_000_steps_is_thinned_and_exact_when_zoomed(page: Page, served: Served, dataset: str) -> None:
    job_id = submitted(served, dataset)
    served.ask("POST", f"/api/jobs/{job_id}/cancel")
    until(lambda: served.ask("GET", f"/api/jobs/{job_id}")["state"] == "CANCELED", "the job's end")
    with_steps(served, job_id, STEPS)
    with page.expect_response(lambda answer: "/curves" in answer.url) as asked:
        page.goto(f"{served.url}/jobs/{job_id}")
    whole = asked.value.json()
    chart = page.locator("[data-series=loss] .u-over")
    chart.wait_for()
    expect(page.locator("[data-thinned]")).to_be_visible()
    assert whole["steps_in_range"] == STEPS and len(whole["step"]) <= POINTS
    assert 0.0001 in whole["loss"]  # the one low step of 100,000 is not lost
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    steps: list[int] = []
    for _ in range(5):  # a few pixels of a narrow chart are more steps than are sent: then once more, into that part
        with page.expect_response(lambda answer: "first=" in answer.url) as asked:
            page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
            page.mouse.down()
            page.mouse.move(box["x"] + 0.5 * box["width"] + 6, box["y"] + 50, steps=4)
            page.mouse.up()
        part = asked.value.json()
        steps = part["step"]
        if part["steps_in_range"] <= POINTS:
            break
    assert steps == list(range(steps[0], steps[-1] + 1)) and len(steps) <= POINTS  # every step of the part
    expect(page.locator("[data-thinned]")).not_to_be_visible()
    page.get_by_role("button", name="Whole run").click()
    expect(page.locator("[data-thinned]")).to_be_visible()


def test_a_signed_out_page_says_so(new_page: Callable[..., Page], served: Served, dataset: str) -> None:
    page = sign_in(new_page(), served)
    job_id = submitted(served, dataset)
    page.goto(f"{served.url}/jobs/{job_id}")
    page.locator("#job-head").wait_for()
    served.stop()
    page.context.clear_cookies()  # with no server there: else the page may ask it while it stops
    served.start()
    page.wait_for_url("**/sign-in", timeout=WAIT_MILLISECONDS)
    page.faults.clear()  # type: ignore[attr-defined]  # the 401s
    served.ask("POST", f"/api/jobs/{job_id}/cancel")
