"""Every route: its permission, its refusals in one form, its description."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.server.conftest import URL, form_of
from tunesmith.errors import TunesmithError
from tunesmith.jobs.home import open_home
from tunesmith.jobs.state import open_state
from tunesmith.plan.machine import Gpu
from tunesmith.server.app import all_routes, create_app
from tunesmith.server.auth import PUBLIC, ensure_home_token
from tunesmith.server.routes import Route
from tunesmith.server.service import Service, make_service

ROUTES = all_routes()


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for the hundreds of requests here that change nothing."""
    state = open_state(open_home({"TUNESMITH_HOME": str(tmp_path_factory.mktemp("refusing"))}))
    ensure_home_token(state.home, state.database)
    app = create_app(make_service(state, {}, queue=None))
    token = (state.home.root / "token").read_text().strip()
    with TestClient(app, base_url=URL, client=("127.0.0.1", 50000)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client
    state.database.close()


PROTECTED = [route for route in ROUTES if route.permission != PUBLIC]
IDS = [f"{route.method} {route.path}" for route in PROTECTED]
WITH_ID = [route for route in PROTECTED if "{" in route.path]


def path_of(route: Route) -> str:
    """The route's path with a name in place of each parameter that names nothing."""
    path = route.path
    for name, value in {
        "{version}": "nothing:1",
        "{path:path}": "a/b",
        "{name:path}": "no/thing",
        "{model:path}": "no/thing",
    }.items():
        path = path.replace(name, value)
    return "/".join("nothing" if part.startswith("{") else part for part in path.split("/"))


def input_status(route: Route) -> int:
    """Of a fault of input: OpenAI's interface says 400."""
    return 400 if route.path.startswith("/v1/") else 422


def ask(client: TestClient, route: Route, **more: Any) -> Any:
    body = {"json": route.request_example or {}} if route.body == "json" else {}
    if route.body == "stream":
        body = {"content": b"", "headers": {"Content-Type": "application/octet-stream"}}
    return client.request(route.method, path_of(route), **(body | more))


@pytest.mark.parametrize("route", PROTECTED, ids=IDS)
def test_every_route_refuses_a_caller_without_a_token(refusing: TestClient, route: Route) -> None:
    answer = ask(refusing, route, headers={"Authorization": "", "Content-Type": "application/json"})
    assert answer.status_code == 401
    assert form_of(answer.json(), route.path)["code"] == "TOKEN_MISSING"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("route", PROTECTED, ids=IDS)
def test_every_route_refuses_a_parameter_that_it_does_not_have(refusing: TestClient, route: Route) -> None:
    answer = refusing.request(route.method, path_of(route), params={"surprise": "1"})
    assert answer.status_code == input_status(route)
    assert form_of(answer.json(), route.path)["code"] == "UNKNOWN_FIELD"


@pytest.mark.parametrize("route", PROTECTED, ids=IDS)
def test_every_route_refuses_another_method_in_our_form(refusing: TestClient, route: Route) -> None:
    taken = {each.method for each in ROUTES if each.path == route.path}
    answer = refusing.request("PUT" if "PUT" not in taken else "POST", path_of(route))
    assert answer.status_code == 405
    assert form_of(answer.json(), route.path)["code"] == "METHOD_NOT_ALLOWED"
    assert set(answer.headers["Allow"].split(", ")) >= taken


@pytest.mark.parametrize("route", WITH_ID, ids=[f"{route.method} {route.path}" for route in WITH_ID])
def test_every_route_with_an_id_answers_404_for_one_that_is_not_there(refusing: TestClient, route: Route) -> None:
    more = {"params": {"model": "tunesmith/demo"}} if route.path.endswith("/preview") else {}
    answer = ask(refusing, route, **more)
    assert answer.status_code == 404, answer.text
    assert form_of(answer.json(), route.path)["code"].startswith("UNKNOWN_")


BODIES = [route for route in PROTECTED if route.body == "json"]


@pytest.mark.parametrize("route", BODIES, ids=[f"{route.method} {route.path}" for route in BODIES])
@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 422, "BAD_JSON"),
        (b"[]", "application/json", 422, "INVALID_FIELD"),
        (b"", "application/json", 422, "MISSING_FIELD"),
        (b'{"a": 1, "a": 2}', "application/json", 422, "BAD_JSON"),
        (b"{}", "text/plain", 415, "CONTENT_TYPE"),
        (b"{}", "", 415, "CONTENT_TYPE"),
        (None, "application/json", 413, "BODY_TOO_LARGE"),
    ],
)
def test_every_body_is_json_of_a_bounded_size(
    refusing: TestClient, route: Route, content: bytes | None, kind: str, status: int, code: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    content = b" " * (route.body_limit + 1) if content is None else content
    answer = refusing.request(route.method, path_of(route), content=content, headers=headers)
    status = input_status(route) if status == 422 else status
    assert (answer.status_code, form_of(answer.json(), route.path)["code"]) == (status, code)


@pytest.mark.parametrize("route", BODIES, ids=[f"{route.method} {route.path}" for route in BODIES])
def test_every_body_with_an_unknown_field_is_refused_by_its_name(refusing: TestClient, route: Route) -> None:
    answer = ask(refusing, route, json={**(route.request_example or {}), "is_admin": True})
    if route.path.endswith("/clone"):  # its fields are those of the job that is cloned, which comes first
        assert answer.status_code == 404
        return
    assert answer.status_code == input_status(route)
    assert "is_admin" in form_of(answer.json(), route.path)["message"]


def test_a_route_without_a_permission_does_not_start(service: Service) -> None:
    async def open_door() -> None: ...

    for permission in ("", "jobs"):
        route = Route(method="GET", path="/api/door", handler=open_door, permission=permission, summary="A door")
        with pytest.raises(TunesmithError, match="declares no permission") as caught:
            create_app(service, routes=[route])
        assert caught.value.code == "ROUTE_WITHOUT_PERMISSION"


def test_an_unknown_path_has_our_form(client: TestClient) -> None:
    answer = client.get("/api/nowhere")
    assert (answer.status_code, form_of(answer.json())["code"]) == (404, "UNKNOWN_ROUTE")


def test_an_error_below_v1_has_the_form_of_openai(client: TestClient) -> None:
    answer = client.get("/v1/nowhere")
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_fault_of_ours_tells_a_number_and_no_more(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr("tunesmith.server.api.administration.logs.list_logs", broken)
    answer = client.get("/api/logs")
    form = form_of(answer.json())
    assert (answer.status_code, form["code"]) == (500, "INTERNAL")
    assert answer.headers["X-Request-ID"] in form["message"]
    assert "swordfish" not in answer.text and "Traceback" not in answer.text
    assert "swordfish" in caplog.text  # where the administrator looks


def test_a_full_disk_is_told_as_one(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr("tunesmith.server.api.administration.logs.list_logs", full)
    answer = client.get("/api/logs")
    assert (answer.status_code, form_of(answer.json())["code"]) == (503, "DISK_FULL")
    assert "/secret" not in answer.text


def test_health_needs_no_token_and_tells_little(client: TestClient) -> None:
    del client.headers["Authorization"]
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert set(answer.json()) == {"status", "version"}


def test_system_tells_disk_and_devices(client: TestClient) -> None:
    told = client.get("/api/system").json()
    assert told["disk_free_bytes"] > 0
    assert told["devices"][0]["free_bytes"] > 0
    assert told["jobs"] == {"ACCEPTED": 0, "IN_PROGRESS": 0, "CANCELING": 0}
    assert told["state_folder"].endswith("/home") and told["disk_warning_bytes"] == 10**9
    assert told["database_bytes"] > 0 and told["started_at"] and told["answering"] == []
    machine = told["machine"]
    assert machine["cores"] >= 1 and 0 < machine["free_memory_bytes"] <= machine["total_memory_bytes"]


def test_the_shape_of_this_machine_tells_its_devices_and_their_jobs(client: TestClient, service: Service) -> None:
    [shape] = client.get("/api/shapes").json()["shapes"]
    assert (shape["name"], shape["is_discovered"], shape["maximum_replicas"]) == ("local", True, 1)
    assert shape["accelerator"] is None and shape["devices"][0]["model"] == shape["processor"]
    gpu = Gpu(index=1, name="H100", total_bytes=80 << 30, free_bytes=70 << 30, driver="570")
    machine = replace(service.devices.machine(), gpus=(gpu,), has_cuda_torch=True)
    service.devices._machine, service.devices._read_at = machine, float("inf")
    [shape] = client.get("/api/shapes").json()["shapes"]
    assert shape["accelerator"] == "H100" and shape["processor"] == machine.processor
    assert shape["devices"] == [
        {"name": "GPU 1", "model": "H100", "total_bytes": 80 << 30, "free_bytes": 70 << 30, "jobs": []}
    ]


def test_the_system_says_what_somebody_should_see_to(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5_000_000, total=10**10))
    codes = [notice["code"] for notice in client.get("/api/system").json()["notices"]]
    assert "DISK_FULL" in codes


def test_permissions_are_those_of_the_routes(client: TestClient) -> None:
    found = {each["permission"]: each for each in client.get("/api/permissions").json()["permissions"]}
    assert found["public"]["who"] == ["anybody"]
    assert found["version.delete"] == {
        "permission": "version.delete", "who": ["admin"], "is_of_project": True, "is_grantable": "yes",
        "policies": [{"policy": "everyday", "who": ["role:user"], "projects": ["default"]}],
        "routes": [{"method": "DELETE", "path": "/api/versions/{version}", "summary": "Delete a model version"}],
    }  # fmt: skip
    assert {route.permission for route in all_routes()} == set(found)


# ---- the description


@pytest.fixture(scope="module")
def document(refusing: TestClient) -> Any:
    return refusing.get("/openapi.json").json()


@pytest.mark.parametrize("route", ROUTES, ids=[f"{route.method} {route.path}" for route in ROUTES])
def test_the_description_holds_every_route_with_every_status(document: Any, route: Route) -> None:
    told = document["paths"][route.path.replace(":path", "")][route.method.lower()]
    statuses = set(told["responses"])
    assert {str(status) for status in (route.status, *route.statuses, *route.refusals)} <= statuses
    assert {"400", "421", "500", "503"} <= statuses
    assert told["summary"] and told["description"]
    if route.permission != PUBLIC:
        assert {"401", "403"} <= statuses
        assert told["x-permission"] == route.permission
    if route.body == "json":
        content = told["requestBody"]["content"]["application/json"]
        assert content["example"] == route.request_example
        assert {"413", "415"} <= statuses


def test_the_description_leaves_no_reference_open(document: Any) -> None:
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(value["$ref"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    assert found
    for reference in set(found):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_operation_ids_are_unique(document: Any) -> None:
    ids = [told["operationId"] for path in document["paths"].values() for told in path.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/locations", {"name": "Bad name", "uri": "file:///tmp"}),
        ("POST", "/api/logs", {"name": "Bad name"}),
        ("POST", "/api/networks", {"name": "Bad name", "cidr": "10.0.0.0/24"}),
        ("POST", "/api/models", {"name": "bad name", "path": "/tmp"}),
        ("GET", "/api/versions?set=bad+name", None),
    ],
)
def test_a_refused_name_is_told_with_one_that_would_do(client: TestClient, method: str, path: str, body: Any) -> None:
    answer = client.request(method, path, json=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "INVALID_FIELD" and "'bad-name' would do" in error["message"]
