"""Projects and policies over REST: the rule, what a policy may say, which project a request means, who is told what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from tests.server.conftest import ROWS, UPLOAD, add_job, form_of
from tunesmith.jobs.state import State
from tunesmith.server import policies as policies_module
from tunesmith.server.auth import USER_MAY, Policy, granted, grants
from tunesmith.server.service import Service

Headers = dict[str, str]
Colleague = Callable[..., Headers]


@pytest.fixture
def colleague(client: TestClient) -> Colleague:
    """`colleague("ada")`: the headers of a user's token of that name; project: the one that they name."""

    def make(name: str, *, project: str | None = None, role: str = "user") -> Headers:
        made = client.post("/api/tokens", json={"name": name, "role": role}).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        return headers if project is None else headers | {"X-Tunesmith-Project": project}

    return make


def add(client: TestClient, name: str, *, who: str, may: list[str], projects: list[str]) -> Any:
    body = {"name": name, "who": [who], "may": may, "projects": projects}
    answer = client.post("/api/policies", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def refused(answer: Any) -> tuple[int, str]:
    return answer.status_code, form_of(answer.json())["code"]


# ---- the rule


def test_the_rule_allows_what_a_policy_names_in_its_projects_and_what_is_of_no_project_anywhere() -> None:
    policy = Policy(
        name="desk", who=frozenset({"ada"}), may=frozenset({"job.read", "location.add", "model.use"}),
        projects=frozenset({"desk"}),
    )  # fmt: skip
    inside = grants([policy], name="ada", role="user", project="desk")
    outside = grants([policy], name="ada", role="user", project="default")
    assert inside["job.read"] == inside["model.use"] == inside["location.add"] == ["desk"]
    assert "job.read" not in outside and "model.use" not in outside, "what answers may be another project's version"
    assert outside["location.add"] == ["desk"]
    assert set(grants([policy], name="bob", role="user", project="desk")) == {
        "permission.read", "project.read", "session.end",
    }  # fmt: skip


def test_entries_stand_for_what_users_may_and_never_for_what_administers() -> None:
    assert granted("use") == USER_MAY
    assert granted("read") < USER_MAY and "job.read" in granted("read") and "location.browse" in granted("read")
    assert not {each for each in granted("read") if not each.endswith((".read", ".browse"))}
    assert granted("location.*") == {"location.browse", "location.read"}
    assert granted("location.add") == {"location.add"}
    assert granted("token.read") == granted("policy.create") == granted("token.*") == frozenset()


@pytest.mark.parametrize(
    ("may", "code", "told"),
    [
        ("job.sumbit", "UNKNOWN_PERMISSION", "job.submit"), ("jobs.*", "UNKNOWN_PERMISSION", "job.*"),
        ("quota.*", "NOT_GRANTABLE", "quota.change, quota.read"), ("token.read", "NOT_GRANTABLE", "role admin"),
        ("policy.*", "NOT_GRANTABLE", "role admin"), ("policy.create", "NOT_GRANTABLE", "role admin"),
        ("*", "INVALID_FIELD", "'use'"), ("everything", "INVALID_FIELD", "'use'"),
    ],
)  # fmt: skip
def test_what_a_policy_cannot_grant_is_refused_with_what_it_could(
    client: TestClient, may: str, code: str, told: str
) -> None:
    answer = client.post("/api/policies", json={"name": "p", "who": ["ada"], "may": ["job.read", may]})
    found = form_of(answer.json())
    assert found["code"] == code and told in f"{found['message']} {found['hint']}", found
    assert client.get("/api/policies/p").status_code == 404


@pytest.mark.parametrize(
    ("field", "value"), [("who", ["role:admin"]), ("who", ["role:guest"]), ("who", []), ("projects", ["A b"])]
)
def test_who_and_where_are_checked(client: TestClient, field: str, value: list[str]) -> None:
    body = {"name": "p", "who": ["ada"], "may": ["use"], field: value}
    assert client.post("/api/policies", json=body).status_code == 422


def test_a_project_that_is_none_is_refused_by_name_with_near_ones(client: TestClient) -> None:
    client.post("/api/projects", json={"name": "support"})
    answer = client.post("/api/policies", json={"name": "p", "who": ["ada"], "may": ["use"], "projects": ["suport"]})
    assert refused(answer) == (404, "UNKNOWN_PROJECT")
    assert "support" in form_of(answer.json())["hint"] and form_of(answer.json())["field"] == "projects"


def test_a_name_that_no_token_carries_is_accepted_and_told(client: TestClient, colleague: Colleague) -> None:
    made = add(client, "desk", who="ada", may=["use"], projects=["default"])
    assert [each["code"] for each in made["notices"]] == ["NO_TOKEN_YET"] and "'ada'" in made["notices"][0]["message"]
    colleague("ada")
    assert client.get("/api/policies/desk").json()["notices"] == []
    [token] = [each for each in client.get("/api/tokens").json()["tokens"] if each["name"] == "ada"]
    assert token["policies"] == ["desk", "everyday"]


def test_no_token_reads_as_many(client: TestClient) -> None:
    for name in ("*", "role:user", "role:admin"):
        assert client.post("/api/tokens", json={"name": name}).status_code == 422, name


# ---- changes


def test_a_policy_counts_at_once_in_both_directions(client: TestClient, colleague: Colleague) -> None:
    ada = colleague("ada")
    assert client.get("/api/jobs", headers=ada).status_code == 200
    assert client.delete("/api/policies/everyday").status_code == 204
    assert refused(client.get("/api/jobs", headers=ada)) == (403, "NOT_PERMITTED")
    add(client, "desk", who="ada", may=["job.read"], projects=["default"])
    assert client.get("/api/jobs", headers=ada).status_code == 200
    assert refused(client.get("/api/datasets", headers=ada)) == (403, "NOT_PERMITTED")
    client.patch("/api/policies/desk", json={"may": ["dataset.read"]})
    assert refused(client.get("/api/jobs", headers=ada)) == (403, "NOT_PERMITTED")
    assert client.get("/api/datasets", headers=ada).status_code == 200


def test_what_administers_is_granted_by_its_whole_name(client: TestClient, colleague: Colleague) -> None:
    ada = colleague("ada")
    new = {"name": "team", "uri": "file:///tmp"}
    assert refused(client.post("/api/locations", json=new, headers=ada)) == (403, "NOT_PERMITTED")
    add(client, "places", who="ada", may=["location.add"], projects=["default"])
    assert client.post("/api/locations", json=new, headers=ada).status_code == 201
    assert refused(client.delete("/api/locations/team", headers=ada)) == (403, "NOT_PERMITTED")


def test_nobody_locks_the_administrators_out(client: TestClient, colleague: Colleague) -> None:
    boss = colleague("boss", role="admin")
    client.delete("/api/policies/everyday")
    for headers in ({}, boss):
        assert client.get("/api/jobs", headers=headers).status_code == 200
        assert client.get("/api/policies", headers=headers).json()["policies"] == []


def test_changes_are_lines_of_the_audit_log(client: TestClient) -> None:
    client.post("/api/projects", json={"name": "desk"})
    client.patch("/api/projects/desk", json={"description": "x"})
    add(client, "p", who="ada", may=["use"], projects=["desk"])
    client.patch("/api/policies/p", json={"projects": ["default"]})
    client.delete("/api/policies/p")
    client.delete("/api/projects/desk")
    told = [(each["action"], each["object"]) for each in client.get("/api/audit").json()["audit"]]
    assert told == [
        ("project.delete", "desk"), ("policy.delete", "p"), ("policy.change", "p"), ("policy.create", "p"),
        ("project.change", "desk"), ("project.create", "desk"),
    ]  # fmt: skip


def test_a_project_that_holds_anything_is_not_deleted(client: TestClient, state: State) -> None:
    client.post("/api/projects", json={"name": "desk"})
    inside = {"X-Tunesmith-Project": "desk"}
    dataset = client.post("/api/datasets?filename=r.jsonl", content=ROWS, headers=UPLOAD | inside).json()["dataset_id"]
    job = client.post("/api/jobs", json={"model": "tunesmith/demo", "dataset": dataset}, headers=inside).json()
    answer = client.delete("/api/projects/desk")
    assert refused(answer) == (409, "PROJECT_NOT_EMPTY")
    message = form_of(answer.json())["message"]
    assert "1 unfinished jobs" in message and "1 datasets" in message and "1 model versions" in message
    client.post(f"/api/jobs/{job['job_id']}/cancel", headers=inside)
    client.delete(f"/api/versions/{job['model_version']}", headers=inside)
    client.delete(f"/api/datasets/{dataset}", headers=inside)
    assert client.delete("/api/projects/desk").status_code == 204
    assert refused(client.get("/api/jobs", headers=inside)) == (404, "UNKNOWN_PROJECT")
    taken = client.post("/api/projects", json={"name": "desk"})
    assert refused(taken) == (409, "PROJECT_TAKEN"), "its ended job would be another project's"


def test_a_project_that_a_policy_names_and_the_default_one_are_not_deleted(client: TestClient) -> None:
    client.post("/api/projects", json={"name": "desk"})
    add(client, "p", who="ada", may=["use"], projects=["desk"])
    answer = client.delete("/api/projects/desk")
    assert refused(answer) == (409, "PROJECT_NOT_EMPTY") and "policies p" in form_of(answer.json())["message"]
    assert refused(client.delete("/api/projects/default")) == (409, "PROJECT_DEFAULT")


# ---- which project a request means


def test_an_unknown_project_and_an_unseen_one_are_refused_alike(client: TestClient, colleague: Colleague) -> None:
    client.post("/api/projects", json={"name": "secret"})
    ada = colleague("ada")
    told = [
        client.get("/api/jobs", headers=ada | {"X-Tunesmith-Project": name}).text.replace(name, "NAME")
        for name in ("secret", "absent")
    ]
    assert told[0] == told[1] and "UNKNOWN_PROJECT" in told[0]
    told = [
        client.get(f"/api/projects/{name}", headers=ada).text.replace(name, "NAME") for name in ("secret", "absent")
    ]
    assert told[0] == told[1] and "UNKNOWN_PROJECT" in told[0]
    assert [each["name"] for each in client.get("/api/projects", headers=ada).json()["projects"]] == ["default"]


def test_without_a_name_it_is_default_or_the_only_one_that_one_sees(client: TestClient, colleague: Colleague) -> None:
    for name in ("desk", "lab"):
        client.post("/api/projects", json={"name": name})
    ada = colleague("ada")
    inside = {"X-Tunesmith-Project": "desk"}
    dataset = client.post("/api/datasets?filename=r.jsonl", content=ROWS, headers=UPLOAD | inside).json()["dataset_id"]
    client.delete("/api/policies/everyday")
    add(client, "desk", who="ada", may=["use"], projects=["desk"])
    assert client.get(f"/api/datasets/{dataset}", headers=ada).status_code == 200
    add(client, "lab", who="ada", may=["use"], projects=["lab"])
    answer = client.get("/api/datasets", headers=ada)
    assert refused(answer) == (422, "PROJECT_NOT_NAMED") and "desk, lab" in form_of(answer.json())["hint"]
    assert client.get(f"/api/datasets/{dataset}", headers=ada | inside).status_code == 200
    add(client, "all", who="ada", may=["job.read"], projects=["*"])
    assert client.get("/api/jobs", headers=ada).status_code == 200
    assert refused(client.get(f"/api/datasets/{dataset}", headers=ada)) == (403, "NOT_PERMITTED")


def test_v1_takes_the_openai_clients_own_header(client: TestClient) -> None:
    client.post("/api/projects", json={"name": "desk"})
    assert client.get("/v1/models", headers={"OpenAI-Project": "desk"}).status_code == 200
    answer = client.get("/v1/models", headers={"OpenAI-Project": "proj_123"})
    assert answer.status_code == 404 and form_of(answer.json(), "/v1/models")["code"] == "UNKNOWN_PROJECT"
    both = {"OpenAI-Project": "absent", "X-Tunesmith-Project": "desk"}
    assert client.get("/v1/models", headers=both).status_code == 200
    assert client.get("/api/jobs", headers={"OpenAI-Project": "absent"}).status_code == 200, "it is /v1's alone"


def test_a_key_of_idempotency_counts_in_its_project(client: TestClient) -> None:
    client.post("/api/projects", json={"name": "desk"})
    made = [
        client.post(
            "/api/datasets?filename=r.jsonl",
            content=ROWS,
            headers=UPLOAD | {"Idempotency-Key": "k", "X-Tunesmith-Project": project},
        )
        for project in ("default", "desk", "desk")
    ]
    assert [each.status_code for each in made] == [201, 201, 200]
    ids = [each.json()["dataset_id"] for each in made]
    assert ids[0] != ids[1] == ids[2]


def test_results_of_projects_lie_apart_and_their_version_numbers_too(client: TestClient, state: State) -> None:
    client.post("/api/projects", json={"name": "desk"})
    (state.results("desk") / "bot" / "4").mkdir(parents=True)
    made: dict[str, Any] = {}
    for project in ("default", "desk"):
        inside = {"X-Tunesmith-Project": project}
        upload = client.post("/api/datasets?filename=r.jsonl", content=ROWS, headers=UPLOAD | inside).json()
        asked = {"model": "tunesmith/demo", "dataset": upload["dataset_id"], "version_set": "bot"}
        made[project] = client.post("/api/jobs", json=asked, headers=inside).json()
    assert made["default"]["model_version"] == "bot:1" and made["desk"]["model_version"] == "bot:5"
    assert made["default"]["results_uri"].endswith("/results/bot/1")
    assert made["desk"]["results_uri"].endswith("/results/_desk/bot/5")


# ---- what one may do


def test_rights_are_told_with_the_policies_that_give_them(client: TestClient, colleague: Colleague) -> None:
    client.post("/api/projects", json={"name": "desk"})
    add(client, "desk", who="ada", may=["job.*"], projects=["desk"])
    ada = colleague("ada")

    def right(action: str, headers: Headers | None = None, **asked: str) -> Any:
        answer = client.get("/api/rights", params={"action": action, **asked}, headers=headers or {})
        assert answer.status_code == 200, answer.text
        return answer.json()["rights"][0]

    assert right("job.submit", who="ada", project="desk") == {
        "permission": "job.submit", "is_allowed": True, "by": ["desk"],
    }  # fmt: skip
    assert right("job.submit", who="ada", project="default")["by"] == ["everyday"]
    assert not right("dataset.read", who="ada", project="desk")["is_allowed"]
    assert right("token.create", who="local")["by"] == ["role:admin"]
    assert right("job.read", ada, project="desk")["by"] == ["desk"], "one's own"
    assert refused(client.get("/api/rights?who=local", headers=ada)) == (403, "NOT_PERMITTED"), "not another's"
    assert refused(client.get("/api/rights?action=job.fly")) == (404, "UNKNOWN_PERMISSION")
    nobody = client.get("/api/rights?who=bob").json()
    assert [each["code"] for each in nobody["notices"]] == ["NO_TOKEN_YET"]


def test_who_is_no_administrator_is_told_of_his_own_policies_alone(client: TestClient, colleague: Colleague) -> None:
    client.post("/api/projects", json={"name": "secret"})
    add(client, "others", who="bob", may=["use"], projects=["secret"])
    text = client.get("/api/permissions", headers=colleague("ada")).text
    assert "everyday" in text and "secret" not in text and "others" not in text and "bob" not in text
    assert "others" in client.get("/api/permissions").text


# ---- cost


def test_a_request_asks_for_no_policies_while_they_are_remembered(
    client: TestClient, service: Service, state: State, colleague: Colleague, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies_module, "REMEMBERED_SECONDS", 1000.0)
    job = add_job(state)
    ada = colleague("ada")
    client.get(f"/api/jobs/{job.job_id}", headers=ada)
    asked: list[str] = []
    engine = service.state.database._engine
    event.listen(engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    for _ in range(3):
        assert client.get("/api/jobs", headers=ada).status_code == 200
    assert asked and not [text for text in asked if "policies" in text or "FROM projects" in text]


def test_what_another_process_changed_counts_a_second_later(
    client: TestClient, service: Service, colleague: Colleague, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies_module, "REMEMBERED_SECONDS", 0.0)
    ada = colleague("ada")
    assert client.get("/api/jobs", headers=ada).status_code == 200
    monkeypatch.setattr(service.policies, "forget", lambda: None)
    client.delete("/api/policies/everyday")
    assert refused(client.get("/api/jobs", headers=ada)) == (403, "NOT_PERMITTED")
