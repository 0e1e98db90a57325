"""What a submission's place for results is refused for, over REST: in a bucket that keeps versions, one that does not,
and a store that is away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3.session
import pytest
from starlette.testclient import TestClient

from tests.server.conftest import ROWS, UPLOAD, URL, app_over, form_of
from tests.servers.moto import moto_server
from tests.servers.proxy import Proxy, proxy_server
from tunesmith.jobs.results_check import FIT_SECONDS, SILENT_SECONDS, ResultsChecks
from tunesmith.jobs.state import State
from tunesmith.server.service import make_service
from tunesmith.spec.metrics import NoticeEvent

pytestmark = pytest.mark.servers


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        client: Any = boto3.session.Session("a", "b", region_name="us-east-1").client("s3", endpoint_url=url)
        for bucket in ("team", "plain"):
            client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket="team", VersioningConfiguration={"Status": "Enabled"})
        client.put_object(Bucket="team", Key="full/README.md", Body=b"somebody's")
        client.close()
        yield url


@pytest.fixture
def store(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tunesmith.jobs.results_check.PATIENCE_SECONDS", 60.0)  # a slow machine is no silent store
    with proxy_server(moto) as proxy:
        yield proxy


@pytest.fixture
def client(state: State, token: str, store: Proxy, clock: Clock) -> Iterator[TestClient]:
    environment = {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    service = replace(
        make_service(state, environment, queue=None), results_checks=ResultsChecks(environment, clock=clock)
    )
    with TestClient(app_over(service), base_url=URL, client=("127.0.0.1", 50000)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        for name in ("team", "plain"):
            body = {"name": name, "uri": f"s3://{name}/out"}
            assert client.post("/api/locations", json=body).status_code == 201
        yield client


@pytest.fixture
def dataset_id(client: TestClient) -> str:
    answer = client.post("/api/datasets?name=rows&filename=rows.jsonl", content=ROWS, headers=UPLOAD)
    return answer.json()["dataset_id"]


@pytest.fixture
def submit(client: TestClient, dataset_id: str) -> Any:
    def send(results: str, **headers: str) -> Any:
        body = {"model": "tunesmith/demo", "dataset": dataset_id, "results": results}
        return client.post("/api/jobs", json=body, headers=headers)

    return send


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ("plain:a", "VERSIONING_OFF"),
        ("s3://plain/b", "VERSIONING_OFF"),
        ("s3://nowhere/out", "BUCKET_NOT_FOUND"),
        ("s3://team/full", "RESULTS_NOT_EMPTY"),
    ],
)
def test_a_bucket_that_is_not_fit_is_refused_at_once(submit: Any, state: State, results: str, code: str) -> None:
    for _ in range(2):  # a refusal is not remembered: it may be mended
        answer = submit(results)
        error = form_of(answer.json())
        assert (answer.status_code, error["code"], error["field"]) == (422, code, "results") and error["hint"]
    assert state.jobs.records() == []


def test_a_fit_bucket_is_asked_once_in_a_while(submit: Any, store: Proxy, clock: Clock) -> None:
    assert submit("team:a").status_code == 201
    probes = [path for method, path in store.seen if method == "PUT"]
    assert len(probes) == 1 and "/team/out/a/" in probes[0]
    assert submit("team:b").status_code == 201 and submit("s3://team/full/below").status_code == 201
    assert [path for method, path in store.seen if method == "PUT"] == probes
    assert form_of(submit("s3://team/full").json())["code"] == "RESULTS_NOT_EMPTY", "each place is looked at"
    clock.now += FIT_SECONDS
    assert submit("team:c").status_code == 201
    assert len([path for method, path in store.seen if method == "PUT"]) == 2


def test_a_store_that_is_away_delays_nobody_and_is_told(
    submit: Any, client: TestClient, state: State, store: Proxy, clock: Clock
) -> None:
    store.faults = lambda _method, _path: "503"
    answer = submit("plain:a", **{"Idempotency-Key": "k"})
    assert answer.status_code == 201
    said = [each["code"] for each in answer.json()["notices"]]
    assert said == ["LOG_RECOMMENDED", "RESULTS_NOT_CHECKED"]
    (event,) = [each.event for each in state.jobs.events(answer.json()["job_id"], kinds=("notice",))]
    assert isinstance(event, NoticeEvent) and event.code == "RESULTS_NOT_CHECKED" and "plain" in event.message
    asked = len(store.seen)
    again = submit("plain:b")
    assert again.json()["notices"][1]["code"] == "RESULTS_NOT_CHECKED" and len(store.seen) == asked
    store.faults = lambda _method, _path: None
    clock.now += SILENT_SECONDS
    assert form_of(submit("plain:c").json())["code"] == "VERSIONING_OFF"
    repeated = submit("plain:a", **{"Idempotency-Key": "k"})
    assert repeated.status_code == 200, "what this key made before is told, whatever holds now"
    assert repeated.json()["notices"] == answer.json()["notices"]


def test_a_store_that_went_away_since_is_told_too(submit: Any, store: Proxy) -> None:
    assert [each["code"] for each in submit("team:x").json()["notices"]] == ["LOG_RECOMMENDED"]
    store.faults = lambda _method, _path: "drop"
    assert [each["code"] for each in submit("team:y").json()["notices"]][1:] == ["RESULTS_NOT_CHECKED"]
