"""Tokens: the home's own, its mode, what the database keeps, revocation, roles."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from tests.server.conftest import UPLOAD, form_of
from tunesmith.catalog.clock import now
from tunesmith.catalog.tokens import hash_of
from tunesmith.errors import NotPermitted
from tunesmith.jobs.state import State
from tunesmith.server.auth import (
    NEVER_GRANTED,
    OF_EVERY_TOKEN,
    PUBLIC,
    USER_MAY,
    Principal,
    ensure_home_token,
    require,
)
from tunesmith.server.pages import page_routes
from tunesmith.storage.tables import TOKENS


def home_token(state: State) -> str:
    return (state.home.root / "token").read_text().strip()


def test_the_first_token_is_private_and_the_database_holds_its_hash_alone(state: State) -> None:
    path = state.home.root / "token"
    assert path.stat().st_mode & 0o777 == 0o600
    with state.database.read() as connection:
        rows = connection.execute(sa.select(TOKENS)).all()
    assert [row.sha256 for row in rows] == [hash_of(home_token(state))]
    assert home_token(state).encode() not in (state.home.root / "state.db").read_bytes()


def test_another_start_keeps_the_token(state: State) -> None:
    before = home_token(state)
    (state.home.root / "token").chmod(0o644)
    ensure_home_token(state.home, state.database)
    assert home_token(state) == before
    assert (state.home.root / "token").stat().st_mode & 0o777 == 0o600


def test_a_lost_file_gets_a_new_token_and_the_old_one_opens_nothing(state: State, client: TestClient) -> None:
    old = home_token(state)
    (state.home.root / "token").unlink()
    ensure_home_token(state.home, state.database)
    assert home_token(state) != old
    assert client.get("/api/jobs").status_code == 401
    assert client.get("/api/jobs", headers={"Authorization": f"Bearer {home_token(state)}"}).status_code == 200


def test_a_lost_database_takes_the_token_of_the_file(state: State, client: TestClient) -> None:
    with state.database.write() as connection:
        connection.execute(TOKENS.delete())
    ensure_home_token(state.home, state.database)
    assert client.get("/api/jobs").status_code == 200


def test_a_revoked_home_token_is_replaced_at_the_next_start(state: State, client: TestClient) -> None:
    old = home_token(state)
    assert client.delete("/api/tokens/home").status_code == 204
    assert client.get("/api/jobs").status_code == 401
    ensure_home_token(state.home, state.database)
    assert home_token(state) != old


def test_wrong_tokens_are_refused_alike(client: TestClient) -> None:
    for value in ("Bearer wrong", "Bearer " + "a" * 10_000, "Bearer é"):
        answer = client.get("/api/jobs", headers={"Authorization": value.encode("latin-1")})
        assert (answer.status_code, form_of(answer.json())["code"]) == (401, "TOKEN_WRONG")
    for value in ("", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "wrong"):
        answer = client.get("/api/jobs", headers={"Authorization": value})
        assert (answer.status_code, form_of(answer.json())["code"]) == (401, "TOKEN_MISSING")


def test_a_made_token_opens_until_it_is_revoked(client: TestClient) -> None:
    made = client.post("/api/tokens", json={"name": "robot"}).json()
    robot = {"Authorization": f"Bearer {made['token']}"}
    assert client.get("/api/jobs", headers=robot).status_code == 200
    assert made["token"] not in client.get("/api/tokens").text + client.get("/api/audit").text
    assert client.delete(f"/api/tokens/{made['token_id']}").status_code == 204
    assert client.get("/api/jobs", headers=robot).status_code == 401


def test_a_repeated_creation_of_a_token_tells_no_text(client: TestClient) -> None:
    first = client.post("/api/tokens", json={"name": "robot"}, headers={"Idempotency-Key": "k"})
    again = client.post("/api/tokens", json={"name": "robot"}, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["token_id"] == again.json()["token_id"]
    assert again.json()["token"] is None


def test_an_expired_token_opens_nothing(state: State, client: TestClient) -> None:
    secret = "tunesmith_of-last-year"
    with state.database.write() as connection:
        connection.execute(
            TOKENS.insert().values(
                token_id="tok-2", name="guest", role="admin", sha256=hash_of(secret), created_at=now(),
                expires_at="2020-01-01T00:00:00.000Z", revoked_at=None,
            )
        )  # fmt: skip
    answer = client.get("/api/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 401


def test_only_the_local_administrator_names_paths(state: State, client: TestClient) -> None:
    made = client.post("/api/tokens", json={"name": "robot"}).json()
    robot = {"Authorization": f"Bearer {made['token']}"}
    asked = {"model": "tunesmith/demo", "dataset": str(state.home.root / "rows.jsonl")}
    answer = client.post("/api/jobs", json=asked, headers=robot)
    assert (answer.status_code, form_of(answer.json())["code"]) == (403, "PATH_NOT_PERMITTED")
    answer = client.post("/api/jobs", json=asked)
    assert (answer.status_code, form_of(answer.json())["code"]) == (422, "DATASET_NOT_FOUND")
    answer = client.post("/api/jobs", json={**asked, "dataset": "rows.jsonl"})
    assert (answer.status_code, form_of(answer.json())["code"]) == (422, "PATH_NOT_ABSOLUTE")


ADMINISTERING = {
    "audit.read", "location.add", "location.change", "location.check", "location.remove", "log.add", "log.change",
    "log.remove", "network.add", "network.change", "network.remove", "policy.change", "policy.create", "policy.delete",
    "policy.read", "project.change", "project.create", "project.delete", "quota.change", "quota.read", "token.create",
    "token.read", "token.revoke",
}  # fmt: skip


def test_every_permission_is_decided_for_users(client: TestClient) -> None:
    told = {each["permission"]: each for each in client.get("/api/permissions").json()["permissions"]}
    assert told.pop(PUBLIC)["who"] == ["anybody"]
    everyday = {"policy": "everyday", "who": ["role:user"], "projects": ["default"]}
    assert {name for name, each in told.items() if each["policies"] == [everyday]} == USER_MAY - {"session.end"}
    assert {name for name, each in told.items() if not each["policies"]} == ADMINISTERING
    of_every_token = {name for name, each in told.items() if each["who"] == ["admin", "user"]}
    assert of_every_token == OF_EVERY_TOKEN - {"session.end"}
    assert {each["is_grantable"] for name, each in told.items() if name in ADMINISTERING} == {"by name", "no"}
    assert {name.partition(".")[0] for name, each in told.items() if each["is_grantable"] == "no"} == NEVER_GRANTED
    assert {route.permission for route in page_routes()} <= ADMINISTERING | USER_MAY | {PUBLIC}, "and every page's"


def test_a_user_fine_tunes_and_administers_nothing(client: TestClient) -> None:
    made = client.post("/api/tokens", json={"name": "ada"}).json()
    assert made["role"] == "user"
    ada = {"Authorization": f"Bearer {made['token']}"}
    row = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
    uploaded = client.post("/api/datasets?name=rows.jsonl", content=row, headers=ada | UPLOAD)
    assert uploaded.status_code in (200, 201), uploaded.text
    asked = {"model": "tunesmith/demo", "dataset": uploaded.json()["dataset_id"], "epochs": 1}
    job = client.post("/api/jobs", json=asked, headers=ada)
    assert job.is_success, job.text
    assert client.post(f"/api/jobs/{job.json()['job_id']}/cancel", headers=ada).is_success
    for method, path, body in (
        ("GET", "/api/audit", None), ("GET", "/api/tokens", None), ("GET", "/api/quotas", None),
        ("POST", "/api/tokens", {"name": "eve", "role": "admin"}), ("DELETE", "/api/tokens/home", None),
        ("POST", "/api/locations", {"name": "mine", "uri": "file:///tmp"}),
    ):  # fmt: skip
        refused = client.request(method, path, json=body, headers=ada)
        assert (refused.status_code, form_of(refused.json())["code"]) == (403, "NOT_PERMITTED"), path
    boss = client.post("/api/tokens", json={"name": "eve", "role": "admin"}).json()
    assert client.get("/api/audit", headers={"Authorization": f"Bearer {boss['token']}"}).status_code == 200


def test_a_role_without_the_right_is_not_permitted() -> None:
    guest = Principal(token_id="tok-3", name="guest", role="guest")
    require(guest, PUBLIC)
    with pytest.raises(NotPermitted, match=r"No policy lets guest do job.submit of job-1 in the project default"):
        require(guest, "job.submit", "job-1")
