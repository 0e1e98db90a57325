"""Pages of Admin, without a browser: what each shows and does, and that who may not is refused and has no way there."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from tests.server.conftest import URL, add_job
from tests.server.test_console import browser, sign_in
from tests.server.test_version_pages import EVIL, press, user
from tunesmith.catalog.clock import now
from tunesmith.jobs.state import State
from tunesmith.plan import machine
from tunesmith.server import auth, policies, sessions
from tunesmith.server.pages import ADMIN, words
from tunesmith.server.service import Service
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import PhaseEvent

__all__ = ["browser", "user"]
PATHS = ["/admin", *(section.path for section in ADMIN), "/admin/location-add"]
PART = {"HX-Request": "true", "Origin": URL}


@pytest.fixture
def place(user: TestClient, tmp_path: Path) -> str:
    """The declared folder `team`."""
    (tmp_path / "team" / "week <b>3").mkdir(parents=True)
    (tmp_path / "team" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    uri = (tmp_path / "team").as_uri()
    press(user, "/admin/location-add", name="team", uri=uri, description=EVIL)
    return "team"


def only(monkeypatch: pytest.MonkeyPatch, *actions: str) -> None:
    """Whatever the role: nothing but these is allowed."""
    monkeypatch.setattr(auth, "allows", lambda principal, action: action in (auth.PUBLIC, *actions))


# ---- who may


def test_the_menu_and_the_tabs_show_what_the_caller_may(user: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = user.get("/admin").text
    assert all(f'href="{section.path}"' in page for section in ADMIN)
    only(monkeypatch, "system.read", "audit.read")
    page = user.get("/admin").text
    assert 'href="/admin/audit"' in page and 'href="/admin/tokens"' not in page
    only(monkeypatch, "system.read")
    assert 'href="/admin"' in (home := user.get("/admin").text) and ">Admin</a>" not in home


def test_a_users_token_opens_the_pages_of_work_and_shows_what_it_may(user: TestClient, browser: TestClient) -> None:
    made = user.post("/api/tokens", json={"name": "ada"}, headers={"Origin": URL}).json()
    browser.cookies.clear()
    browser.headers["X-CSRF-Token"] = sign_in(browser, made["token"])
    for path in ("/", "/models", "/fine-tune", "/datasets", "/jobs", "/versions", "/search?q=a", "/admin"):
        assert browser.get(path).status_code == 200, path
    page = browser.get("/admin/permissions").text
    assert re.search(r"<h2>.{0,400}user</h2><span[^>]*>you<", page, re.DOTALL)
    for path in ("/admin/tokens", "/admin/quotas", "/admin/audit", "/admin/location-add"):
        assert browser.get(path).status_code == 403, path
        assert f'href="{path}"' not in page
    main = browser.get("/admin/locations").text.partition("<main")[2]
    assert 'method="post"' not in main and "/admin/location-add" not in main


@pytest.mark.parametrize("path", PATHS)
def test_a_page_is_refused_who_may_not(user: TestClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    assert user.get(path).status_code == 200
    only(monkeypatch, "job.read")
    answer = user.get(path)
    assert answer.status_code == 403 and "NOT_PERMITTED" in answer.text


@pytest.mark.parametrize(
    ("path", "permission"),
    [
        ("/admin/tokens", "token.create"), ("/admin/tokens/home/revoke", "token.revoke"),
        ("/admin/location-add", "location.add"), ("/admin/locations/team/check", "location.check"),
        ("/admin/locations/team/delete", "location.remove"), ("/admin/locations/team/edit", "location.change"),
        ("/admin/logs", "log.add"),
        ("/admin/logs/team", "log.change"), ("/admin/logs/team/delete", "log.remove"),
        ("/admin/networks", "network.add"), ("/admin/networks/team", "network.change"),
        ("/admin/networks/team/delete", "network.remove"), ("/admin/quotas", "quota.change"),
        ("/admin/quotas/reset", "quota.change"), ("/admin/projects", "project.create"),
        ("/admin/projects/default", "project.change"), ("/admin/projects/default/delete", "project.delete"),
        ("/admin/policies", "policy.create"), ("/admin/policies/everyday", "policy.change"),
        ("/admin/policies/everyday/delete", "policy.delete"),
    ],
)  # fmt: skip
def test_an_action_is_refused_who_may_not(
    user: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, permission: str
) -> None:
    reads = [action for section in ADMIN for action in section.any_of]
    only(monkeypatch, *reads, "system.read")
    answer = press(user, path, name="x")
    assert answer.status_code == 403 and permission in answer.text


def test_a_location_is_changed_by_its_form(user: TestClient, place: str) -> None:
    address = f"/admin/locations/{place}"
    before = user.get(f"/api/locations/{place}").json()
    page = user.get(f"{address}/edit").text
    assert f'value="{before["uri"]}"' in page and 'name="name"' not in page.partition("<main")[2]
    refused = press(user, f"{address}/edit", uri=before["uri"], credentials="AKIA123")
    assert refused.status_code == 422 and "AKIA123" in refused.text, "the form as it was sent, with what is wrong"
    saved = press(user, f"{address}/edit", uri=before["uri"], description="of the team", region="eu-1")
    assert saved.status_code in (302, 303) and saved.headers["location"].startswith(address)
    after = user.get(f"/api/locations/{place}").json()
    assert after == before | {"description": "of the team", "region": "eu-1"}


def test_buttons_of_what_one_may_not_are_not_there(
    user: TestClient, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, *(action for section in ADMIN for action in section.any_of))
    for path in (*(section.path for section in ADMIN), f"/admin/locations/{place}"):
        main = user.get(path).text.partition("<main")[2]
        assert 'method="post"' not in main and "/admin/location-add" not in main, path


def test_who_may_do_what_is_read_from_the_rule_that_decides(user: TestClient) -> None:
    page = user.get("/admin/permissions").text
    told = user.get("/api/permissions").json()["permissions"]
    for each in told:
        assert f">{each['permission']}</code>" in page
        assert html.escape(each["routes"][0]["summary"], quote=False).replace("'", "&#39;") in page
    assert f"{len(told)} of {len(told)} permissions" in page
    press(user, "/admin/tokens", name="ada", key="k")
    press(user, "/admin/policies", name="readers", who="ada", may="job.read\nlocation.add", projects="default")
    press(user, "/admin/policies/everyday/delete")
    page = user.get("/admin/permissions?who=ada&project=default").text
    assert f"has 5 of {len(told)} permissions" in page, "with what needs no token and what every token may"
    lines = re.findall(r"<tr>\s*<td>.*?</tr>", page, re.DOTALL)
    assert sum('aria-label="may"' in line for line in lines) == 5
    [of_job] = [line for line in lines if ">job.read</code>" in line]
    assert 'href="/admin/policies/readers"' in of_job and 'title="readers"' in of_job
    assert "NO_TOKEN_YET" not in page and "No token is called" in user.get("/admin/permissions?who=bob").text


def test_every_noun_of_the_permissions_and_acts_has_its_word(user: TestClient) -> None:
    told = user.get("/api/permissions").json()["permissions"]
    assert {each["permission"].partition(".")[0] for each in told} <= set(words.NOUNS)
    assert {act.partition(".")[0] for act in words.ACTS} <= set(words.NOUNS)


# ---- the first page


def test_what_needs_attention_comes_first_with_its_way_out(
    user: TestClient, state: State, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = user.get("/admin").text
    assert ">nothing<" in page and str(state.home.root) in page and "Up since" in page
    job = add_job(state, name=EVIL)
    lease, _ = state.jobs.acquire(job.job_id, owner="test/1/None")
    state.jobs.move(job.job_id, JobState.IN_PROGRESS, lease=lease)
    reason = "The bucket does not answer."
    state.jobs.say(lease, PhaseEvent(time=now(), phase="waiting"), phase="waiting", waiting_reason=reason)
    press(user, "/admin/tokens", name="soon over", days="3", key="k")
    press(user, "/admin/quotas", queued_jobs="1", versions="100", principal="*")
    monkeypatch.setattr(machine, "LEAST_DISK_BYTES", 10**18)
    part = user.get("/admin/health", headers=PART).text
    needs = part[: part.index('class="tiles"')]
    assert "<main" not in part and 'hx-trigger="every 5s"' in part
    assert needs.count('class="notice') == 4
    assert needs.index('class="notice bad"') < needs.index('class="notice warn"')
    assert "tunesmith state clean" in needs.replace("</span> <span>", " ")
    assert f"{html.escape(EVIL)} cannot go on: The bucket does not answer." in needs and EVIL not in part
    assert f'href="/jobs/{job.job_id}"' in needs
    assert "The token soon over expires on" in needs
    assert "local uses 100% of a quota: unfinished jobs." in needs


def test_a_failed_job_is_told_for_a_day(user: TestClient, state: State) -> None:
    job = add_job(state)
    lease, _ = state.jobs.acquire(job.job_id, owner="test/1/None")
    state.jobs.move(job.job_id, JobState.IN_PROGRESS, lease=lease)
    state.jobs.move(job.job_id, JobState.FAILED, lease=lease)
    assert "1 job failed in the last 24 hours." in user.get("/admin").text


# ---- tokens


def test_a_token_is_shown_once_and_revoked(user: TestClient, browser: TestClient) -> None:
    assert "Only the server’s own token so far" in user.get("/admin/tokens").text
    key = re.search(r'name="key" value="([^"]+)"', user.get("/admin/tokens").text)
    assert key is not None
    made = press(user, "/admin/tokens", name=EVIL, days="30", key=key[1])
    secret = re.search(r"tunesmith_[\w-]{43}", made.text)
    assert secret is not None and "shown this once" in made.text
    assert EVIL not in made.text and html.escape(EVIL) in made.text
    bearer = {"Authorization": f"Bearer {secret[0]}"}
    assert user.get("/api/jobs", headers=bearer).status_code == 200
    again = press(user, "/admin/tokens", name=EVIL, days="30", key=key[1])  # the page was reloaded
    assert secret[0] not in again.text and "was made before" in again.text
    assert secret[0] not in user.get("/admin/tokens").text
    [other] = [each for each in user.get("/api/tokens").json()["tokens"] if each["token_id"] != "home"]
    assert other["expires_at"] is not None
    assert press(user, f"/admin/tokens/{other['token_id']}/revoke").headers["location"] == "/admin/tokens"
    assert user.get("/api/jobs", headers=bearer).status_code == 401
    assert "Revoked" in user.get("/admin/tokens").text


def test_a_token_that_cannot_be_made_says_why_and_keeps_the_form(user: TestClient) -> None:
    for fields, told in (
        ({"name": "*"}, "everybody"),
        ({"name": "x", "days": "soon"}, "no whole number"),
        ({}, "name"),
    ):
        answer = press(user, "/admin/tokens", key="k", **fields)
        assert answer.status_code == 422 and told in answer.text
    assert 'value="x"' in press(user, "/admin/tokens", name="x", days="0", key="k").text
    assert len(user.get("/api/tokens").json()["tokens"]) == 1


def test_revoking_ones_own_token_signs_out(user: TestClient) -> None:
    assert press(user, "/admin/tokens/home/revoke").headers["location"] == "/sign-in"
    assert user.get("/admin").status_code == 303


# ---- locations


def test_a_location_is_declared_checked_browsed_and_deleted(user: TestClient, place: str) -> None:
    listed = user.get("/admin/locations").text
    page = user.get(f"/admin/locations/{place}?new=yes").text
    for text in (listed, page):
        assert EVIL not in text and html.escape(EVIL) in text
    assert 'hx-trigger="submit, load"' in page
    assert 'hx-trigger="submit"' in user.get(f"/admin/locations/{place}").text
    checked = user.post(f"/admin/locations/{place}/check", data={"x": "y"}, headers=PART).text
    assert "It keeps versions" in checked and "<main" not in checked
    assert "It keeps versions" in press(user, f"/admin/locations/{place}/check").text  # without a script: the page
    folder = Path(user.get(f"/api/locations/{place}").json()["uri"].removeprefix("file://"))
    (folder / ".tunesmith-probe-1-a").write_text("of a check that may not delete")
    part = user.get(f"/admin/locations/{place}/browse", headers=PART).text
    assert "<main" not in part and "tunesmith-probe" not in part and "rows.jsonl" in part and "week &lt;b&gt;3" in part
    assert "Nothing lies here yet" in user.get(f"/admin/locations/{place}/browse?path=week <b>3").text
    assert "stays; only the name goes" in user.get(f"/admin/locations/{place}/delete").text
    assert press(user, f"/admin/locations/{place}/delete").headers["location"] == "/admin/locations"
    assert "No location yet" in user.get("/admin/locations").text
    assert "No location fits" in user.get("/admin/locations?search=x").text


def test_a_location_that_cannot_be_used_says_what_to_do(user: TestClient, place: str, tmp_path: Path) -> None:
    (tmp_path / "team").rename(tmp_path / "gone")
    (tmp_path / "team").write_text("no folder any more")
    told = user.post(f"/admin/locations/{place}/check", data={"x": "y"}, headers=PART).text
    assert 'class="notice bad"' in told and "a file where a folder is meant" in told and "<main" not in told
    told = user.get(f"/admin/locations/{place}/browse?path=../up", headers=PART).text
    assert 'class="notice bad"' in told and "<main" not in told
    assert user.post("/admin/locations/nobody/check", data={"x": "y"}, headers=PART).status_code == 404


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "bad name", "uri": "file:///data"}, "name"), ({"uri": "file:///data"}, "name"),
        ({"name": "a", "uri": "data/here"}, "relative"), ({"name": "a"}, "uri"),
        ({"name": "a", "uri": "ftp://host"}, "ftp"),
        ({"name": "a", "uri": "s3://b", "credentials": "secret"}, "credentials"),
    ],
)  # fmt: skip
def test_a_location_with_a_fault_is_told_and_the_form_is_kept(
    user: TestClient, fields: dict[str, str], told: str
) -> None:
    answer = press(user, "/admin/location-add", description="kept as it was", **fields)
    assert answer.status_code == 422
    notice = answer.text[answer.text.index('class="notice bad"') :][:900]
    assert told in notice and "openapi" not in notice
    assert "kept as it was" in answer.text
    assert user.get("/api/locations").json()["locations"] == []


def test_what_uses_a_location_is_told_and_forbids_deleting(user: TestClient, state: State, place: str) -> None:
    job = add_job(state, dataset=f"{place}:rows.jsonl")
    for path in (f"/admin/locations/{place}", f"/admin/locations/{place}/delete"):
        assert f'href="/jobs/{job.job_id}"' in user.get(path).text
    assert press(user, f"/admin/locations/{place}/delete").status_code == 409


# ---- logs and networks


@pytest.mark.parametrize(
    ("noun", "new", "change", "shown"),
    [
        ("logs", {"retention_days": "30", "maximum_bytes": "64"}, {"retention_days": "7", "maximum_bytes": "32"},
         ("7 days", "33.6 MB")),
        ("networks", {"cidr": "10.0.0.0/24", "interface": "eth0"}, {"cidr": "10.0.1.0/24", "interface": "eth1"},
         ("10.0.1.0/24", "eth1")),
    ],
)  # fmt: skip
def test_a_log_and_a_network_are_made_changed_and_deleted(
    user: TestClient, state: State, noun: str, new: dict[str, str], change: dict[str, str], shown: tuple[str, ...]
) -> None:
    address = f"/admin/{noun}"
    assert "yet</h2>" in user.get(address).text
    bad = press(user, address, name="Bad Name", description="kept", **new)
    assert bad.status_code == 422 and 'class="notice bad"' in bad.text and ">kept</textarea>" in bad.text
    assert press(user, address, name="team", description=EVIL, **new).headers["location"] == address
    listed = user.get(address).text
    assert EVIL not in listed and html.escape(EVIL) in listed
    assert press(user, address, name="team", **new).status_code == 409
    first = next(iter(change))
    bad = press(user, f"{address}/team", description="kept", **change | {first: "nothing"})
    assert bad.status_code == 422 and "nothing" in bad.text and ">kept</textarea>" in bad.text
    assert press(user, f"{address}/team", **change).headers["location"] == f"{address}/team"
    assert user.get(f"/api{address.removeprefix('/admin')}/team").json()["description"] == ""
    listed = user.get(address).text
    assert all(text in listed for text in shown) and html.escape(EVIL) not in listed
    job = add_job(state, log="team", network="team")
    assert f'href="/jobs/{job.job_id}"' in (page := user.get(f"{address}/team").text)
    assert "cannot be deleted" in page and press(user, f"{address}/team/delete").status_code == 409
    state.jobs.move(job.job_id, JobState.CANCELED, lease=None)
    assert "Nothing uses it now" in user.get(f"{address}/team").text
    assert press(user, f"{address}/team/delete").headers["location"] == address
    assert user.get(f"{address}/team").status_code == 404


# ---- shapes, quotas, audit


def test_the_shape_tells_its_devices(user: TestClient, state: State) -> None:
    page, part = user.get("/admin/shapes").text, user.get("/admin/shapes", headers=PART).text
    [shape] = user.get("/api/shapes").json()["shapes"]
    assert shape["name"] == "local" and shape["devices"][0]["name"] in part
    assert html.escape(shape["processor"]) in page and "<main" in page and "<main" not in part


def test_quotas_are_changed_where_they_were_changed_alone(user: TestClient, state: State) -> None:
    add_job(state)
    page = user.get("/admin/quotas").text
    fields = dict(re.findall(r'<input name="(\w+)" value="([^"]*)"', page)[:5])
    assert fields["uploaded_bytes"] == "274877.907" and "1 of 1,000" in page
    press(user, "/admin/quotas", principal="local", **fields | {"queued_jobs": "5", "log_bytes": "1.5"})
    own = user.get("/api/quotas/local").json()
    assert own["own"] == ["log_bytes", "queued_jobs"]
    assert (own["limits"]["queued_jobs"], own["limits"]["log_bytes"]) == (5, 1_500_000)
    assert "1 of 5" in user.get("/admin/quotas").text
    for change, told in (({"datasets": "many"}, "no whole number"), ({"uploaded_bytes": "1e400"}, "megabytes"),
                         ({"log_bytes": "0"}, "log_bytes")):  # fmt: skip
        answer = press(user, "/admin/quotas", principal="local", **change)
        assert answer.status_code == 422 and told in answer.text and "<details open>" in answer.text
    assert press(user, "/admin/quotas", principal="nobody", datasets="1").status_code == 404
    press(user, "/admin/quotas/reset", principal="local")
    assert user.get("/api/quotas/local").json()["own"] == []


def test_the_audit_is_filtered_and_paged(user: TestClient, place: str) -> None:
    for number in range(60):
        press(user, "/admin/networks", name=f"net{number}", cidr="10.0.0.0/24")
    page = user.get("/admin/audit").text
    assert "declared a network" in page and "signed in<br>" not in page
    assert re.search(r'<time datetime="[^"]+" title="[^"]+"', page)
    older = re.search(r'href="\?after=(\d+)"', page)
    assert older is not None and "signed in<br>" in user.get(f"/admin/audit?after={older[1]}").text
    part = user.get("/admin/audit?action=location&actor=local", headers=PART).text
    assert "<main" not in part and part.count("<tr>") == 2 and f'href="/admin/locations/{place}"' in part
    assert user.get("/admin/audit?action=session.start&object=home").text.count("signed in<br>") == 1
    assert "Nothing of that kind" in user.get("/admin/audit?actor=nobody").text


def test_a_page_with_much_to_show_asks_the_database_no_more(
    user: TestClient, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (policies, sessions):  # what is asked again once a second would be counted on a slow machine
        monkeypatch.setattr(module, "REMEMBERED_SECONDS", 1000.0)
    asked: list[str] = []
    with state.database.read() as connection:
        event.listen(connection.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def costs() -> dict[str, int]:
        found: dict[str, int] = {}
        for path in PATHS:
            user.get(path)
            asked.clear()
            assert user.get(path).status_code == 200
            found[path] = len(asked)
        return found

    def fill(jobs: int, tokens: int) -> None:
        for number in range(jobs):
            add_job(state, name=f"job {number}", log="team")
        for number in range(tokens):
            user.post("/api/tokens", json={"name": f"token {number}", "days": 3}, headers={"Origin": URL})

    fill(2, 2)
    few = costs()
    fill(40, 30)
    grown = {path: (few[path], count) for path, count in costs().items() if count > few[path] + 2}
    assert not grown, "no query for each row"
