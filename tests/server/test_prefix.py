"""Behind a proxy: links below its path, and what comes over the state folder's socket, which no browser reaches."""

from __future__ import annotations

import asyncio
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from tests.server.conftest import URL, add_job, app_over
from tests.server.test_console import csrf_of, sign_in
from tunesmith.catalog.tokens import revoke_token
from tunesmith.jobs.home import open_home
from tunesmith.jobs.state import State
from tunesmith.server.prefix import relative, with_prefix
from tunesmith.server.run import OwnUser, listening_to_own_user
from tunesmith.server.service import Service
from tunesmith.server.sessions import own_user_secret
from tunesmith.server.static_files import FOLDER

PREFIX = "/user/ada/tunesmith"
BELOW = {"X-Forwarded-Prefix": PREFIX}
HUB = "https://hub.example.org"


@pytest.fixture
def browser(service: Service) -> Iterator[TestClient]:
    with TestClient(app_over(service, with_console=True), base_url=URL, follow_redirects=False) as client:
        client.headers["Accept"] = "text/html"
        yield client


@pytest.fixture
def proxy(service: Service, token: str) -> Iterator[TestClient]:
    """What comes over the socket: from a proxy that many reach under a name of its own."""
    app = OwnUser(app_over(service, with_console=True), secret=own_user_secret(token))
    with TestClient(app, base_url=HUB, follow_redirects=False, headers=BELOW) as client:
        yield client


def test_every_link_of_a_page_is_below_the_prefix(browser: TestClient, token: str, state: State) -> None:
    sign_in(browser, token)
    job = add_job(state, name='x" href="/intruder')
    for path in ("/", "/jobs", f"/jobs/{job.job_id}", "/models", "/versions", "/fine-tune", "/datasets"):
        answer = browser.get(path, headers=BELOW)
        assert answer.status_code == 200, path
        plain = browser.get(path).text
        assert 'href="/' in plain and 'href="/' not in answer.text.replace(f'href="{PREFIX}/', "")
        for name in ("src", "action", "hx-get", "hx-post"):
            assert f'{name}="/' not in answer.text.replace(f'{name}="{PREFIX}/', ""), (path, name)
        if path in ("/jobs", "/models", "/versions"):  # nothing else differs; others tell what is free, or a new key
            assert answer.text.replace(f'="{PREFIX}/', '="/').replace(f' data-prefix="{PREFIX}"', "") == plain
    assert "&#34; href=&#34;/intruder" in browser.get("/jobs", headers=BELOW).text


def test_a_user_s_words_are_not_taken_for_links() -> None:
    told = '<a href="/jobs" title="a href=&#34;/x">b href=&#34;/y</a><a href="//cdn">c</a><input value="/srv/rows">'
    assert with_prefix(told, "/p") == told.replace('href="/jobs"', 'href="/p/jobs"')


@pytest.mark.parametrize(
    ("target", "path", "found"),
    [
        ("/jobs", b"/sign-in", "./jobs"), ("/", b"/sign-in", "./"), ("/jobs/a?b=/c", b"/jobs/x/y", "../../jobs/a?b=/c"),
        ("https://elsewhere", b"/a/b", "https://elsewhere"),
    ],
)  # fmt: skip
def test_a_redirect_is_relative_so_that_no_proxy_adds_its_path_twice(target: str, path: bytes, found: str) -> None:
    assert relative(target, path) == found


def test_redirects_and_cookies_stay_below_the_prefix(browser: TestClient, token: str) -> None:
    away = browser.get("/jobs?search=x", headers=BELOW)
    assert away.headers["location"] == "./sign-in?next=/jobs%3Fsearch%3Dx"
    part = browser.get("/jobs", headers={**BELOW, "HX-Request": "true"})
    assert part.headers["hx-redirect"] == f"{PREFIX}/sign-in"
    signed_in = browser.post("/sign-in", data={"token": token, "next": "/jobs"}, headers={**BELOW, "Origin": URL})
    assert signed_in.headers["location"] == "./jobs"
    assert f"path={PREFIX}/;" in signed_in.headers["set-cookie"].lower() + ";"


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/a/../b", "/a//b", "javascript:x", "/a b", '/a"b', "/" + 600 * "a"]
)
def test_a_prefix_that_is_no_path_is_refused(browser: TestClient, prefix: str) -> None:
    refused = browser.get("/sign-in", headers={"X-Forwarded-Prefix": prefix})
    assert refused.status_code == 400 and "X-Forwarded-Prefix" in refused.text


def test_over_the_socket_the_state_folder_s_user_needs_no_signing_in(proxy: TestClient, service: Service) -> None:
    page = proxy.get("/jobs")
    assert page.status_code == 200 and "Sign out" not in page.text
    csrf = csrf_of(page.text)
    for headers, status in (
        ({}, 403),
        ({"Origin": HUB}, 403),
        ({"X-CSRF-Token": csrf}, 403),
        ({"Origin": "https://evil.example", "X-CSRF-Token": csrf}, 403),
        ({"Origin": URL, "X-CSRF-Token": csrf}, 403),
        ({"Origin": HUB, "Sec-Fetch-Site": "cross-site", "X-CSRF-Token": csrf}, 403),
        ({"Origin": HUB, "X-CSRF-Token": csrf}, 201),
    ):
        answer = proxy.post("/api/logs", json={"name": "l"}, headers=headers)
        assert answer.status_code == status, (headers, answer.text)
    path = {"path": "/nowhere", "name": "m"}
    local = proxy.post("/api/models", json=path, headers={"Origin": HUB, "X-CSRF-Token": csrf})
    assert local.json()["error"]["code"] != "PATH_NOT_PERMITTED"  # the local administrator


def test_a_proxy_s_own_authorization_is_not_ours(proxy: TestClient) -> None:
    assert proxy.get("/api/jobs", headers={"Authorization": "token of-jupyter"}).status_code == 200


def test_the_socket_s_session_ends_with_the_home_s_token(proxy: TestClient, state: State, service: Service) -> None:
    with state.database.write() as connection:
        revoke_token(connection, "home", actor="t")
    service.sessions.forget()
    assert proxy.get("/api/jobs").json()["error"]["code"] == "SESSION_OVER"


def test_what_the_socket_is_trusted_with_nobody_else_is(proxy: TestClient, browser: TestClient, token: str) -> None:
    """The scope's key is set by the listener: no header and no cookie makes a request from the network one of them."""
    assert proxy.get("/api/jobs").status_code == 200  # remembered for a second
    cookie = {"Cookie": f"tunesmith_session_8440={own_user_secret(token)}"}
    assert browser.get("/sign-in").status_code == 200
    assert browser.get("/api/jobs", headers=cookie).json()["error"]["code"] == "SESSION_OVER"
    for headers in ({"tunesmith.own_user": "x"}, {"X-Forwarded-For": "127.0.0.1"}, BELOW):
        assert browser.get("/api/jobs", headers=headers).status_code == 401
    assert browser.get("/sign-in", headers={"Host": "hub.example.org"}).status_code == 421


def test_only_its_user_connects_and_a_killed_server_s_socket_is_replaced(tmp_path: Path) -> None:
    home = open_home({"TUNESMITH_HOME": str(tmp_path / "home")})
    for _ in range(2):
        with listening_to_own_user(home) as listener:
            assert listener is not None
            assert stat.S_IMODE(home.own_socket.stat().st_mode) == 0o600
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(home.own_socket))
        assert not home.own_socket.exists()
        with socket.socket(socket.AF_UNIX) as left:  # as a killed one leaves it
            left.bind(str(home.own_socket))


def test_a_state_folder_too_deep_for_a_socket_is_served_without(tmp_path: Path) -> None:
    home = open_home({"TUNESMITH_HOME": str(tmp_path / ("d" * 120))})
    with listening_to_own_user(home) as listener:
        assert listener is None


def test_a_refusal_over_the_socket_waits_for_the_body_that_a_proxy_sends_first() -> None:
    order: list[str] = []

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    async def receive() -> Message:
        order.append("body")
        return {"type": "http.request", "body": b"x", "more_body": order.count("body") < 3}

    async def send(message: Message) -> None:
        order.append(message["type"])

    asyncio.run(OwnUser(refusing, secret="s")({"type": "http"}, receive, send))
    assert order == ["body", "body", "body", "http.response.start", "http.response.body"]


def test_scripts_ask_below_the_prefix() -> None:
    """A path in a script stands in `at(...)`, or is given to `stream`, which does so."""
    for path in sorted((FOLDER / "js").glob("*.js")):
        for line in path.read_text().splitlines():
            code = line.partition("//")[0] if line.lstrip().startswith("//") else line
            for found in re.finditer(r"""(.{0,12})["'`]/(api|v1|[a-z-]+/)""", code):
                before = found[1]
                assert before.endswith(("at(", "stream(", "hx-post$=", "? [", ": [")), (path.name, line)
