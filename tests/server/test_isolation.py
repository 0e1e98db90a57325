"""Two users in two projects: neither reads, lists, streams, downloads, changes, uses or finds anything of the other's.

Every route is tried, a new one by itself: with the names of what is the other's, and as a list. So are the pages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.catalog import make
from tests.server.conftest import ROWS, UPLOAD, URL, app_over, form_of
from tests.server.test_console import HTML, sign_in
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.sets import set_alias
from tunesmith.catalog.versions import final_columns
from tunesmith.jobs.queue import HIDDEN_JOB, Slot
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State
from tunesmith.server.app import all_routes
from tunesmith.server.pages import page_routes
from tunesmith.server.routes import Route
from tunesmith.server.service import Service
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import VersionState

pytestmark = pytest.mark.slow  # every route and every page, one after the other
SECRET = "unmistakable-words-of-the-desk"


@pytest.fixture
def people(client: TestClient, state: State) -> dict[str, Any]:
    """Ada of the desk with one of each noun, and Bob of the lab with nothing; both may use their own project."""
    who: dict[str, dict[str, str]] = {}
    client.delete("/api/policies/everyday")
    for name, project in (("ada", "desk"), ("bob", "lab")):
        client.post("/api/projects", json={"name": project})
        body = {"name": name, "who": [name], "may": ["use"], "projects": [project]}
        assert client.post("/api/policies", json=body).status_code == 201
        token = client.post("/api/tokens", json={"name": name}).json()["token"]
        who[name] = {"Authorization": f"Bearer {token}"}
    ada = who["ada"]
    added = client.post(f"/api/datasets?filename=r.jsonl&name={SECRET}", content=ROWS, headers=UPLOAD | ada)
    dataset = added.json()["dataset_id"]
    asked = {"model": "tunesmith/demo", "dataset": dataset, "name": SECRET, "version_set": SECRET, "log": "shared"}
    client.post("/api/logs", json={"name": "shared"})
    job = client.post("/api/jobs", json=asked, headers=ada).json()
    (state.home.jobs / job["job_id"] / "logs").mkdir(parents=True)
    JobFolder(path=state.home.jobs / job["job_id"]).worker_log.write_text(SECRET)
    version = active_version(state)
    names = {"dataset_id": dataset, "job_id": job["job_id"], "version_set": SECRET, "version": version, "alias": "prod"}
    return {**who, **names}


def active_version(state: State) -> str:
    """A version of the desk with its files and an alias."""
    folder = state.results("desk") / SECRET / "2"
    folder.mkdir(parents=True)
    (folder / "README.md").write_bytes(SECRET.encode())
    file = ManifestFile(path="README.md", size=len(SECRET), sha256=hashlib.sha256(SECRET.encode()).hexdigest())
    manifest = Manifest(job_id="job-1", model_version=f"{SECRET}:2", files=[file])
    with state.database.write() as connection:
        version = add_version(
            connection, project="desk", version_set=SECRET, above=0, created_at=make.TIME, name=SECRET,
            base_name="tunesmith/demo", results_uri=folder.as_uri(),
        )  # fmt: skip
        columns = final_columns(
            lineage=make.lineage(), metrics=make.metrics(3.0, 2.0), artifact_uri=folder.as_uri(), manifest=manifest
        )
        move_version(
            connection, project="desk", model_version=version, state=VersionState.ACTIVE, now=make.TIME, **columns
        )
        set_alias(connection, SECRET, "prod", number=2, project="desk", actor="ada")
    return version


def told(people: dict[str, Any]) -> list[str]:
    """What must stand in no answer to Bob. A name that he sends himself comes back in a refusal."""
    return [SECRET, people["job_id"], people["dataset_id"]]


def named(route: Route, people: dict[str, Any]) -> str | None:
    """The route's address with the names of Ada's objects; None for one without."""
    given = {name: people[name] for name in ("dataset_id", "job_id", "version", "version_set", "alias")}
    wanted = re.findall(r"\{(\w+)(?::path)?\}", route.path)
    if not set(wanted) & given.keys():
        return None
    path = re.sub(r"\{(\w+)(?::path)?\}", lambda found: {**given, "path": "README.md"}[found[1]], route.path)
    return path + ("?model=tunesmith/demo" if path.endswith("/preview") else "")


def body_of(route: Route) -> Any:
    return route.request_example if route.body == "json" else None


def test_no_route_that_names_an_object_knows_another_projects(client: TestClient, people: dict[str, Any]) -> None:
    tried = 0
    for route in all_routes():
        path = named(route, people)
        if path is None:
            continue
        answer = client.request(route.method, path, json=body_of(route), headers=people["bob"])
        assert answer.status_code == 404, (route.method, path, answer.status_code, answer.text[:300])
        assert form_of(answer.json())["code"].startswith("UNKNOWN_"), path
        tried += 1
    assert tried > 30
    # and nothing of it was changed
    assert client.get(f"/api/jobs/{people['job_id']}", headers=people["ada"]).json()["state"] == "ACCEPTED"
    assert client.get(f"/api/datasets/{people['dataset_id']}", headers=people["ada"]).json()["name"] == SECRET
    assert client.get(f"/api/versions/{SECRET}@prod", headers=people["ada"]).json()["version"]["state"] == "ACTIVE"
    assert client.get(f"/api/versions/{people['version']}/export", headers=people["ada"]).status_code == 200


def test_the_same_routes_know_ones_own(client: TestClient, people: dict[str, Any]) -> None:
    """Else the test above would pass whatever the rule."""
    for route in all_routes():
        path = named(route, people)
        if path is not None and route.method == "GET" and "preview" not in path:
            answer = client.get(path, headers=people["ada"])
            assert answer.status_code in (200, 409), (path, answer.text[:300])


def test_no_list_holds_anything_of_another_project(client: TestClient, people: dict[str, Any]) -> None:
    tried = 0
    for route in all_routes():
        if route.method != "GET" or "{" in route.path:
            continue
        answer = client.get(route.path, headers=people["bob"])
        for words in told(people):
            assert words not in answer.text, route.path
        tried += answer.status_code == 200
    assert tried > 12
    assert SECRET in client.get("/api/versions", headers=people["ada"]).text
    for path in ("/api/jobs", "/api/datasets", "/api/versions", "/api/version-sets", "/api/projects"):
        assert SECRET not in client.get(path, params={"search": SECRET[:12]}, headers=people["bob"]).text


def test_what_is_shared_tells_of_no_others(client: TestClient, people: dict[str, Any]) -> None:
    bob = people["bob"]
    uses = client.get("/api/logs/shared/uses", headers=bob).json()
    assert uses == {"datasets": [], "jobs": [], "of_other_projects": 1}
    assert client.get("/api/logs/shared/uses", headers=people["ada"]).json()["jobs"] == [people["job_id"]]
    assert client.get("/api/logs/shared/lines", headers=bob).json()["lines"] == []
    assert people["job_id"] not in client.get("/api/logs/shared/download", headers=bob).text
    detail = client.get("/api/explorer/model/tunesmith/demo", headers=bob).json()
    assert detail["tuned"] == [] and detail["card"]["versions"] == 0
    assert client.get("/api/explorer/model/tunesmith/demo", headers=people["ada"]).json()["card"]["versions"] == 1


def test_the_machine_names_no_jobs_of_others(
    client: TestClient, people: dict[str, Any], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = Slot(name="CPU", gpu_index=None, free_bytes=1, capacity=1, users=(people["job_id"],))
    monkeypatch.setattr(service.devices, "slots", lambda _used: [slot])
    for path in ("/api/system", "/api/shapes"):
        assert people["job_id"] in client.get(path, headers=people["ada"]).text
        answer = client.get(path, headers=people["bob"]).text
        assert people["job_id"] not in answer and HIDDEN_JOB in answer


@pytest.mark.parametrize("field", ["dataset", "validation_dataset", "test_dataset", "from_version", "clone"])
def test_a_job_takes_nothing_of_another_project(client: TestClient, people: dict[str, Any], field: str) -> None:
    bob = people["bob"]
    own = client.post("/api/datasets?filename=r.jsonl", content=ROWS, headers=UPLOAD | bob).json()["dataset_id"]
    asked = {"model": "tunesmith/demo", "dataset": own}
    theirs = {"from_version": people["version"]}.get(field, people["dataset_id"])
    if field == "clone":
        answer = client.post(f"/api/jobs/{people['job_id']}/clone", json={}, headers=bob)
    else:
        answer = client.post("/api/jobs", json=asked | {field: theirs}, headers=bob)
        planned = client.post("/api/plan", json=asked | {field: theirs}, headers=bob)
        assert planned.status_code == 404, planned.text
    assert answer.status_code == 404 and form_of(answer.json())["code"].startswith("UNKNOWN_"), answer.text
    assert client.get("/api/jobs", headers=bob).json()["jobs"] == []


def test_a_version_of_another_project_does_not_answer(client: TestClient, people: dict[str, Any]) -> None:
    bob = people["bob"]
    for name in (people["version"], f"{SECRET}@prod"):
        for path, body in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            ("/v1/completions", {"prompt": "hi"}),
        ):
            answer = client.post(path, json={"model": name, **body}, headers=bob)
            assert answer.status_code == 404, answer.text
        assert client.get(f"/v1/models/{name}", headers=bob).status_code == 404
        answer = client.post("/api/answers", json={"models": [name], "prompts": ["hi"]}, headers=bob)
        assert answer.status_code == 404
        assert client.get("/api/compare", params={"left": name, "right": name}, headers=bob).status_code == 404
    seen = {each["id"] for each in client.get("/v1/models", headers=people["ada"]).json()["data"]}
    assert {"tunesmith/demo", people["version"], f"{SECRET}@prod"} <= seen
    assert {each["id"] for each in client.get("/v1/models", headers=bob).json()["data"]} == {"tunesmith/demo"}


def test_what_answers_in_one_project_does_not_in_another_where_one_only_reads(
    client: TestClient, people: dict[str, Any]
) -> None:
    client.post("/api/policies", json={"name": "look", "who": ["bob"], "may": ["read"], "projects": ["desk"]})
    at_desk = people["bob"] | {"X-Tunesmith-Project": "desk"}
    assert client.get(f"/api/versions/{people['version']}", headers=at_desk).status_code == 200
    for method, path in (
        ("POST", "/v1/completions"), ("POST", "/api/answers"), ("DELETE", f"/api/versions/{people['version']}"),
        ("POST", f"/api/jobs/{people['job_id']}/cancel"), ("GET", f"/api/versions/{people['version']}/export"),
    ):  # fmt: skip
        answer = client.request(method, path, headers=at_desk)
        assert answer.status_code == 403, (path, answer.text)


def test_a_stream_is_of_ones_own_jobs_and_a_key_finds_ones_own(client: TestClient, people: dict[str, Any]) -> None:
    stream = {"Accept": "text/event-stream"}
    answer = client.get(f"/api/jobs/{people['job_id']}/events", headers=people["bob"] | stream)
    assert answer.status_code == 404
    asked = {"model": "tunesmith/demo", "dataset": people["dataset_id"]}
    key = {"Idempotency-Key": "k"}
    made = client.post("/api/jobs", json=asked, headers=people["ada"] | key)
    again = client.post("/api/jobs", json=asked, headers=people["bob"] | key)
    assert (made.status_code, again.status_code) == (201, 404)
    # one who works in both gets nothing of the one by a key of the other
    client.post("/api/policies", json={"name": "both", "who": ["ada"], "may": ["use"], "projects": ["lab"]})
    at_lab = people["ada"] | key | {"X-Tunesmith-Project": "lab"}
    assert client.post("/api/jobs", json=asked, headers=at_lab).status_code == 404


def test_what_was_published_for_another_project_is_not_in_a_shared_location(
    client: TestClient, people: dict[str, Any], state: State
) -> None:
    home = state.home.results
    client.post("/api/locations", json={"name": "shelf", "uri": home.as_uri()})
    (home / "mine").mkdir()
    (home / "mine" / "rows.jsonl").write_bytes(ROWS)
    (state.results("desk") / SECRET / "2" / "rows.jsonl").write_bytes(ROWS)
    below = f"_desk/{SECRET}/2"

    def browse(who: str, path: str) -> Any:
        return client.get("/api/locations/shelf/browse", params={"path": path}, headers=people[who])

    assert [each["name"] for each in browse("ada", f"_desk/{SECRET}").json()["entries"]] == ["2"]
    assert browse("bob", f"_desk/{SECRET}").json()["entries"] == []
    assert form_of(browse("bob", below).json())["code"] == "OBJECT_NOT_FOUND"
    for path, status in ((f"{below}/rows.jsonl", 422), ("mine/rows.jsonl", 201)):
        body = {"location": "shelf", "path": path}
        answer = client.post("/api/datasets", json=body, headers=people["bob"])
        assert answer.status_code == status, answer.text
    for route, body in (
        ("/api/versions", {"path": f"shelf:{below}", "version_set": "mine", "base": "tunesmith/demo"}),
        ("/api/models", {"path": f"shelf:{below}", "name": "mine"}),
        ("/api/plan", {"model": "tunesmith/demo", "dataset": f"shelf:{below}/rows.jsonl"}),
        ("/api/jobs", {"model": "tunesmith/demo", "dataset": f"shelf:{below}/rows.jsonl"}),
    ):
        answer = client.post(route, json=body, headers=people["bob"])
        assert form_of(answer.json())["code"] == "OBJECT_NOT_FOUND", answer.text


def test_a_base_model_that_others_tuned_stays_and_their_versions_are_not_named(
    client: TestClient, people: dict[str, Any], state: State, tmp_path: Path
) -> None:
    with state.database.write() as connection:
        add_version(
            connection, project="desk", version_set=SECRET, above=0, created_at=make.TIME, name="", base_name="ours",
            results_uri="",
        )  # fmt: skip
    assert client.post("/api/models", json={"name": "ours", "path": str(MODEL_FOLDER)}).status_code == 201
    answer = client.delete("/api/models/ours", headers=people["bob"])
    error = form_of(answer.json())
    assert error["code"] == "MODEL_IN_USE" and SECRET not in answer.text
    assert "1 model versions of other projects" in error["message"]


def test_the_audit_log_tells_the_project_of_an_act(client: TestClient, people: dict[str, Any]) -> None:
    client.post(f"/api/jobs/{people['job_id']}/cancel", headers=people["ada"])
    acts = {
        each["action"]: each["detail"] for each in client.get("/api/audit", params={"actor": "ada"}).json()["audit"]
    }
    for action in ("dataset.add", "job.submit", "job.cancel", "alias.set"):
        assert acts[action]["project"] == "desk", action


# ---- pages


@pytest.fixture
def bobs_browser(service: Service, people: dict[str, Any]) -> Iterator[TestClient]:
    token = people["bob"]["Authorization"].partition(" ")[2]
    app = app_over(service, with_console=True)
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50001), follow_redirects=False) as browser:
        browser.headers.update(HTML)
        browser.headers["X-CSRF-Token"] = sign_in(browser, token)
        yield browser


def test_no_page_shows_anything_of_another_project(bobs_browser: TestClient, people: dict[str, Any]) -> None:
    tried = 0
    for route in page_routes():
        path = named(route, people)
        is_list = "{" not in route.path
        if route.method != "GET" or (path is None and not is_list):
            continue
        query = {"/search": f"?q={SECRET[:12]}"}.get(route.path, "")
        answer = bobs_browser.get((path or route.path) + query)
        main = answer.text.partition("<main")[2]
        if path is not None:
            assert answer.status_code in (404, 422), (path, answer.status_code)
        else:
            assert not [words for words in told(people) if words in main.replace(f'value="{SECRET[:12]}"', "")], path
        tried += 1
    assert tried > 30
    for query in (f"clone={people['job_id']}", f"from_version={people['version']}"):
        assert bobs_browser.get(f"/fine-tune?{query}").status_code == 404
    left = {"left": people["version"], "right": people["version"]}
    assert bobs_browser.get("/versions/compare", params=left).status_code == 404


def test_an_action_of_a_page_on_anothers_object_is_refused(bobs_browser: TestClient, people: dict[str, Any]) -> None:
    tried = 0
    for route in page_routes():
        path = named(route, people)
        if route.method != "POST" or path is None:
            continue
        answer = bobs_browser.post(path, data={"pressed": "yes", "name": "x"}, headers={"Origin": URL})
        assert answer.status_code in (404, 422), (path, answer.status_code)
        tried += 1
    assert tried > 8


def test_the_switch_is_there_for_who_sees_more_than_one_project(
    client: TestClient, bobs_browser: TestClient, people: dict[str, Any]
) -> None:
    assert 'action="/project"' not in bobs_browser.get("/").text
    answer = bobs_browser.post("/project", data={"project": "desk"}, headers={"Origin": URL})
    assert answer.status_code == 404 and SECRET not in answer.text
    client.post("/api/policies", json={"name": "look", "who": ["bob"], "may": ["read"], "projects": ["desk"]})
    page = bobs_browser.get("/jobs").text
    assert 'action="/project"' in page and "<option selected>lab</option>" in page.replace("\n", "")
    unsaid = bobs_browser.post("/project", data={"project": "desk"}, headers={"Origin": URL, "X-CSRF-Token": "no"})
    assert unsaid.status_code == 403
    moved = bobs_browser.post("/project", data={"project": "desk", "next": "/jobs"}, headers={"Origin": URL})
    assert (moved.status_code, moved.headers["location"]) == (303, "/jobs")
    page = bobs_browser.get("/jobs").text
    assert SECRET in page and "/fine-tune" not in page, "what one only reads has no button"
    assert bobs_browser.get(f"/jobs/{people['job_id']}").status_code == 200
    client.post("/api/policies", json={"name": "work", "who": ["bob"], "may": ["use"], "projects": ["desk"]})
    stale = bobs_browser.post(f"/jobs/{people['job_id']}/cancel", data={"x": "y"}, headers={"Origin": URL})
    assert stale.status_code == 403 and "PROJECT_CHANGED" in stale.text, "the token is of a page that shows the lab"
    uploaded = bobs_browser.post("/api/datasets?filename=r.jsonl", content=ROWS, headers=UPLOAD | {"Origin": URL})
    assert form_of(uploaded.json())["code"] == "PROJECT_CHANGED"
    client.delete("/api/policies/work")
    elsewhere = bobs_browser.post("/project", data={"project": "lab", "next": "//evil"}, headers={"Origin": URL})
    assert elsewhere.headers["location"] == "/"
    client.delete("/api/policies/look")
    bobs_browser.cookies.set("tunesmith_project_8440", "desk", domain="127.0.0.1")
    page = bobs_browser.get("/jobs")
    assert page.status_code == 200 and SECRET not in page.text, "a choice that is none any more gives way"
