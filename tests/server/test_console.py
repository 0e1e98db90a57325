"""Sessions, forms and refusals of the pages, asked without a browser."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from tests.server.conftest import URL, add_job, app_over
from tunesmith.catalog.clock import iso
from tunesmith.jobs.state import State
from tunesmith.server.pages import words
from tunesmith.server.pages.models import SIZES
from tunesmith.server.service import Service
from tunesmith.server.static_files import FOLDER as STATIC
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import EpochEvent, NoticeEvent, SplitMetrics
from tunesmith.spec.verdict import Outcome
from tunesmith.storage.tables import AUDIT, SESSIONS, TOKENS

HTML = {"Accept": "text/html"}
OWN = {"Origin": URL}


@pytest.fixture
def browser(service: Service) -> Iterator[TestClient]:
    """Nobody yet: no token, no cookie; redirects are looked at."""
    app = app_over(service, with_console=True)
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000), follow_redirects=False) as client:
        client.headers.update(HTML)
        yield client


def sign_in(browser: TestClient, token: str) -> str:
    """The CSRF token of the new session."""
    answer = browser.post("/sign-in", data={"token": token}, headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return csrf_of(browser.get("/").text)


def csrf_of(html: str) -> str:
    found = re.search(r'<meta name="csrf" content="([0-9a-f]{64})">', html)
    assert found is not None
    return found[1]


def test_a_page_sends_who_is_not_signed_in_to_sign_in_and_back(browser: TestClient, token: str) -> None:
    answer = browser.get("/jobs?state=FAILED")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/jobs%3Fstate%3DFAILED")
    answer = browser.post("/sign-in", data={"token": token, "next": "/jobs?state=FAILED"}, headers=OWN)
    assert answer.headers["location"] == "/jobs?state=FAILED"


@pytest.mark.parametrize(
    "target", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere", "javascript:x"]
)
def test_signing_in_never_leads_elsewhere(browser: TestClient, token: str, target: str) -> None:
    answer = browser.post("/sign-in", data={"token": token, "next": target}, headers=OWN)
    assert answer.headers["location"] == "/"


def test_the_cookie_is_for_this_server_alone_and_its_secret_is_not_kept(
    browser: TestClient, token: str, state: State
) -> None:
    answer = browser.post("/sign-in", data={"token": token}, headers=OWN)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("tunesmith_session_8440=")
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and "Path=/" in cookie
    secret = browser.cookies["tunesmith_session_8440"]
    with state.database.read() as connection:
        assert secret not in str(connection.execute(sa.select(SESSIONS)).all())
    tls = browser.post("/sign-in", data={"token": token}, headers={"Origin": URL.replace("http", "https")})
    assert "Secure" in tls.headers["set-cookie"]


def test_a_wrong_token_is_refused_in_place(browser: TestClient) -> None:
    answer = browser.post("/sign-in", data={"token": "tunesmith_" + "x" * 40}, headers=OWN)
    assert answer.status_code == 403
    assert "not known here" in answer.text and "set-cookie" not in answer.headers


def test_a_sign_in_that_does_not_come_from_our_page_is_refused(browser: TestClient, token: str) -> None:
    assert browser.post("/sign-in", data={"token": token}).status_code == 403
    assert browser.post("/sign-in", data={"token": token}, headers={"Origin": "http://evil.example"}).status_code == 403


def test_signing_in_again_ends_the_session_before(browser: TestClient, token: str) -> None:
    sign_in(browser, token)
    before = browser.cookies["tunesmith_session_8440"]
    sign_in(browser, token)
    assert browser.cookies["tunesmith_session_8440"] != before
    browser.cookies.set("tunesmith_session_8440", before)
    browser.cookies.clear()
    assert browser.get("/", headers={"Cookie": f"tunesmith_session_8440={before}"}).status_code == 303


def test_signing_out_ends_it_on_the_server_and_both_are_audited(browser: TestClient, token: str, state: State) -> None:
    csrf = sign_in(browser, token)
    secret = browser.cookies["tunesmith_session_8440"]
    assert browser.post("/sign-out", data={"csrf": csrf}, headers=OWN).headers["location"] == "/sign-in"
    assert browser.get("/", headers={"Cookie": f"tunesmith_session_8440={secret}"}).status_code == 303
    with state.database.read() as connection:
        actions = [row.action for row in connection.execute(sa.select(AUDIT).order_by(AUDIT.c.sequence))]
    assert actions == ["session.start", "session.end"]


def test_a_session_ends_after_its_time_and_with_its_token(
    browser: TestClient, token: str, state: State, service: Service
) -> None:
    sign_in(browser, token)
    with state.database.write() as connection:
        connection.execute(SESSIONS.update().values(expires_at=iso(datetime.now(UTC) - timedelta(seconds=1))))
    service.sessions.forget()  # what was found is remembered for a second
    assert browser.get("/").status_code == 303
    sign_in(browser, token)
    with state.database.write() as connection:
        connection.execute(TOKENS.update().values(revoked_at=iso(datetime.now(UTC))))
    service.sessions.forget()  # what was found is remembered for a second
    assert browser.get("/").status_code == 303


def test_a_form_needs_the_sessions_own_csrf_token(browser: TestClient, token: str) -> None:
    csrf = sign_in(browser, token)
    for data in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": csrf + "0"}):
        answer = browser.post("/sign-out", data=data or {"x": "1"}, headers=OWN)
        assert answer.status_code == 403 and "CSRF_TOKEN_WRONG" in answer.text
    assert browser.post("/sign-out", data={"csrf": csrf}).status_code == 403  # without an Origin
    assert browser.get("/").status_code == 200  # still signed in


def test_the_api_takes_a_session_to_read_and_with_its_csrf_token_to_write(
    browser: TestClient, token: str, state: State
) -> None:
    job = add_job(state)
    path = f"/api/jobs/{job.job_id}"
    assert browser.get(path).status_code == 401
    csrf = sign_in(browser, token)
    assert browser.get(path).json()["job_id"] == job.job_id
    for headers in ({}, OWN, {"X-CSRF-Token": csrf}, OWN | {"X-CSRF-Token": "0" * 64}):
        assert browser.post(f"{path}/cancel", headers=headers).status_code == 403
    assert browser.get(path).json()["state"] == "ACCEPTED"
    done = browser.post(f"{path}/cancel", headers=OWN | {"X-CSRF-Token": csrf})
    assert done.json()["state"] == "CANCELED"


def test_a_link_signs_in_once_and_looking_at_it_does_not_use_it(browser: TestClient, service: Service) -> None:
    code = service.links.make()
    for _ in range(2):  # a chat program that looks at links, say
        assert browser.get(f"/sign-in?code={code}").status_code == 200
    assert browser.post("/sign-in", data={"code": code}, headers=OWN).status_code == 303
    assert browser.get("/").status_code == 200
    again = browser.post("/sign-in", data={"code": code}, headers=OWN)
    assert again.status_code == 403 and "used before" in again.text


def test_a_refusal_is_a_page_for_people_and_a_message_for_a_part(browser: TestClient, token: str) -> None:
    sign_in(browser, token)
    whole = browser.get("/nothing/here")
    assert whole.status_code == 404 and "<main" in whole.text and "UNKNOWN_ROUTE" in whole.text
    part = browser.get("/jobs?nonsense=1", headers={"HX-Request": "true"})
    assert part.status_code == 422 and part.headers["HX-Retarget"] == "#toasts"
    assert "<main" not in part.text and "nonsense" in part.text
    for path in ("/api/nothing", "/v1/nothing"):
        assert browser.get(path).json()["error"]["code"] == "UNKNOWN_ROUTE"
    assert browser.get("/nothing", headers={"Accept": "*/*"}).json()["error"]["code"] == "UNKNOWN_ROUTE"


def test_every_page_has_the_policy_and_may_not_be_framed(browser: TestClient, token: str) -> None:
    sign_in(browser, token)
    for path in ("/", "/jobs", "/sign-in", "/nothing"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


def test_names_of_users_are_text_in_pages(browser: TestClient, token: str, state: State) -> None:
    add_job(state, name="<script>alert(1)</script>\u202egpj")
    sign_in(browser, token)
    for path in ("/", "/jobs"):
        text = browser.get(path).text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202egpj" in text
        assert "<script>alert" not in text and "\u202e" not in text


def test_a_page_has_a_permission_and_nothing_inline(browser: TestClient, token: str) -> None:
    sign_in(browser, token)
    for path in ("/", "/jobs"):
        text = browser.get(path).text
        assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", text)
        assert not re.search(r"<script(?![^>]*\ssrc=)", text)


def test_a_jobs_page_tells_its_events_metrics_and_settings(browser: TestClient, token: str, state: State) -> None:
    job = add_job(state, name="summaries", description="<b>the first</b>")
    lease, _ = state.jobs.acquire(job.job_id, owner="test/1/None")
    good = SplitMetrics(loss=0.5, token_accuracy=0.75, completion_accuracy=0.25)
    worse, better = good.model_copy(update={"loss": 0.9}), good.model_copy(update={"loss": 0.4})
    state.jobs.move(job.job_id, JobState.IN_PROGRESS, lease=lease)
    state.jobs.say(
        lease,
        EpochEvent(time="2026-01-01T00:00:00Z", epoch=0, training=worse, validation=worse),
        EpochEvent(time="2026-01-01T00:00:01Z", epoch=1, training=good, validation=good),
        EpochEvent(time="2026-01-01T00:00:02Z", epoch=2, training=better, validation=worse),
        NoticeEvent(time="2026-01-01T00:00:03Z", code="SLOW", message="<i>slow</i>", hint=None),
    )
    sign_in(browser, token)
    text = browser.get(f"/jobs/{job.job_id}").text
    assert "Overfitting from epoch 2 on" in text and "best: epoch 1" in text
    assert "75.0%" in text and "0.9000" in text
    assert "&lt;i&gt;slow&lt;/i&gt;" in text and "&lt;b&gt;the first&lt;/b&gt;" in text
    parts = browser.get(f"/jobs/{job.job_id}/parts", headers={"HX-Request": "true"}).text
    assert 'id="metrics"' in parts and "hx-swap-oob" in parts and "<main" not in parts
    settings = browser.get(f"/jobs/{job.job_id}/settings").text
    assert "tunesmith job submit tunesmith/demo /data/rows.jsonl --name summaries" in settings.replace(
        "</span> <span>", " "
    )
    assert "--epochs" not in settings  # as the default is
    assert "Nothing was written yet" in browser.get(f"/jobs/{job.job_id}/log").text
    assert browser.get("/jobs/job-000000000000").status_code == 404


def test_a_job_is_deleted_from_its_page_after_what_goes_was_told(browser: TestClient, token: str, state: State) -> None:
    job = add_job(state)
    csrf = sign_in(browser, token)
    address = f"/jobs/{job.job_id}"
    assert f'href="{address}/delete"' not in browser.get(address).text
    assert browser.get(f"{address}/delete").status_code == 409
    state.jobs.move(job.job_id, JobState.CANCELED, lease=None)
    assert f'href="{address}/delete"' in browser.get(address).text
    page = browser.get(f"{address}/delete").text
    assert "What goes" in page and "What stays" in page and f"the model version {job.model_version}" in page
    answer = browser.post(f"{address}/delete", data={"csrf": csrf}, headers=OWN)
    assert answer.headers["location"] == "/jobs" and state.jobs.records() == []
    assert browser.get(address).status_code == 404
    version = browser.get(f"/versions/{job.model_version}").text
    assert address not in version.partition("<main")[2], "no tab leads to a job that is gone"


def test_a_job_is_cancelled_and_paused_from_its_page(browser: TestClient, token: str, state: State) -> None:
    job = add_job(state)
    csrf = sign_in(browser, token)
    for word in ("pause", "resume", "cancel"):
        done = browser.post(f"/jobs/{job.job_id}/{word}", data={"csrf": csrf}, headers=OWN)
        assert (done.status_code, done.headers["location"]) == (303, f"/jobs/{job.job_id}")
        assert state.jobs.read(job.job_id).is_paused == (word == "pause")
    assert state.jobs.read(job.job_id).state is JobState.CANCELED
    again = browser.post(f"/jobs/{job.job_id}/pause", data={"csrf": csrf}, headers=OWN)
    assert again.status_code == 409 and "JOB_FINISHED" in again.text


def test_the_console_s_words_stand_in_its_templates_and_in_one_file() -> None:
    """To translate it, these are what one translates."""
    pages = Path(words.__file__).parent
    own = {str(outcome) for outcome in Outcome} | set(SIZES)  # values of the interface, which are words themselves
    for path in sorted(pages.glob("*.py")):
        if path.name != "words.py":
            found = [text for text in _shown_texts(ast.parse(path.read_text())) if text not in own]
            assert found == [], (path.name, found)
    for path in sorted((STATIC / "js").glob("*.js")):
        code = re.sub(r"(?m)^\s*//.*$|\s//\s.*$", "", path.read_text())
        assert re.findall(r"""["'`][A-Z][a-z]+ [a-z]+[^"'`]*""", code) == [], path.name


def _shown_texts(tree: ast.Module) -> list[str]:
    """Literals of two words and more that are no documentation, no refusal, no command and no code."""
    told_elsewhere: set[int] = set()
    refusals = {"UsageFault", "NotPermitted", "Conflict", "Field"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            told_elsewhere.add(id(node.body[0].value))  # type: ignore[attr-defined]  # an expression: the docstring
        is_refusal = isinstance(node, ast.Call) and ast.unparse(node.func) in refusals
        if is_refusal or isinstance(node, ast.Assert) or (isinstance(node, ast.keyword) and node.arg == "summary"):
            told_elsewhere |= {id(each) for each in ast.walk(node)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told_elsewhere
    ]
    wordy = [text for text in texts if re.search(r"[A-Za-z]{2,} [a-z]{2,}", text)]
    return [text for text in wordy if not text.startswith(("<", "tunesmith ", "from openai")) and "api_key" not in text]
