"""Server time of the console's pages over 10,000 jobs and 1,000 model versions, one of them of 100,000 steps.

    python -m benchmarks.bench_console

In this process, without a network: what is measured is the query and the template. Each page is asked 20 times after
two warm-ups; the median and the slowest are told. Issue 4 asks for a first paint under 150 ms of server time.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from benchmarks.report import save
from tunesmith.jobs.home import open_home
from tunesmith.jobs.records import new_job_id
from tunesmith.jobs.state import State, open_state
from tunesmith.jobs.store import NewJob
from tunesmith.server.app import create_app
from tunesmith.server.auth import ensure_home_token
from tunesmith.server.console import Console
from tunesmith.server.pages import ADMIN
from tunesmith.server.service import Service, make_service
from tunesmith.spec.jobs import JobState
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.tables import EVENTS, JOBS, MODEL_VERSIONS

JOB_COUNT, VERSION_COUNT, STEPS = 10_000, 1_000, 100_000
ROUNDS, WARM_UPS = 20, 2
URL = "http://127.0.0.1:8440"


def fill(state: State) -> str:
    """Finished jobs and the long one, whose id is returned. All but 1,000 versions are deleted again."""
    names = [new_job_id() for _ in range(JOB_COUNT)]
    with state.database.write() as connection:
        for number, job_id in enumerate(names):
            request = FinetuneRequest(
                model="tunesmith/demo", dataset="/data/rows.jsonl", validation_dataset=None, test_dataset=None,
                from_version=None, results=None, name=f"run {number} of the night", description="", version_set=None,
                shape="local", replicas=1, network=None, log=None,
            )  # fmt: skip
            new = NewJob(
                job_id=job_id, request=request, settings=TrainingSettings.model_validate({}),
                version_set=f"set-{number % 40}", results_uri=None, results_root=state.home.results,
                base_name="tunesmith/demo", submitted_by=f"user-{number // 400}",  # within each one's quota
            )  # fmt: skip
            state.jobs.insert(connection, new)
        final = {
            "state": JobState.SUCCEEDED,
            "started_at": "2026-01-01T00:00:00Z",
            "finished_at": "2026-01-01T01:00:00Z",
        }
        connection.execute(JOBS.update().values(final))
        connection.execute(MODEL_VERSIONS.update().values(state="ACTIVE"))
        connection.execute(
            MODEL_VERSIONS.update()
            .where(MODEL_VERSIONS.c.sequence <= JOB_COUNT - VERSION_COUNT)
            .values(state="DELETED")
        )
        step = {
            "time": "2026-01-01T00:00:00Z", "kind": "step", "steps": STEPS, "epoch": 1, "learning_rate": 1e-4,
            "gradient_norm": 1.0, "tokens": 100, "learned_tokens": 50, "tokens_per_second": 1e3, "memory_bytes": 10**9,
            "eta_seconds": 1.0,
        }  # fmt: skip
        connection.execute(
            EVENTS.insert(),
            [
                {"job_id": names[-1], "number": 1 + each, "kind": "step",
                 "body": json.dumps(step | {"step": each, "loss": 1 / each})}
                for each in range(1, STEPS + 1)
            ],
        )  # fmt: skip
        connection.execute(JOBS.update().where(JOBS.c.job_id == names[-1]).values(num_events=STEPS + 1))
    return names[-1]


def measured(client: TestClient, path: str) -> dict[str, float]:
    times: list[float] = []
    for _ in range(WARM_UPS + ROUNDS):
        started = time.perf_counter()
        answer = client.get(path)
        times.append(1000 * (time.perf_counter() - started))
        assert answer.status_code == 200, answer.text
    return {"median_ms": round(statistics.median(times[WARM_UPS:]), 1), "slowest_ms": round(max(times[WARM_UPS:]), 1)}


def first_look(client: TestClient, service: Service, path: str) -> dict[str, float]:
    """As after a start of the server: no run's columns were read."""
    times: list[float] = []
    for _ in range(5):
        service.curves._runs.clear()
        started = time.perf_counter()
        answer = client.get(path)
        times.append(1000 * (time.perf_counter() - started))
        assert answer.status_code == 200, answer.text
    return {"median_ms": round(statistics.median(times), 1), "slowest_ms": round(max(times), 1)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = open_state(open_home({"TUNESMITH_HOME": folder}))
        ensure_home_token(state.home, state.database)
        long_run = fill(state)
        service = make_service(state, {}, queue=None)
        app = create_app(service, console=Console())
        result: dict[str, Any] = {"jobs": JOB_COUNT, "versions": VERSION_COUNT, "steps": STEPS, "pages": {}}
        with TestClient(app, base_url=URL, client=("127.0.0.1", 50000)) as client:
            client.headers["Authorization"] = f"Bearer {Path(folder, 'token').read_text().strip()}"
            newest = client.get("/api/versions?limit=1").json()["versions"][0]["model_version"]
            paths = {
                "/": "/", "/jobs": "/jobs", "/jobs, a search": "/jobs?search=run+77", "/jobs/ID": f"/jobs/{long_run}",
                "/jobs/ID/settings": f"/jobs/{long_run}/settings", "/fine-tune": "/fine-tune",
                "/search": "/search?q=run", "/models": "/models", "/datasets": "/datasets", "/versions": "/versions",
                "/versions/ID": f"/versions/{newest}", "/version-sets": "/version-sets",
                "/admin": "/admin", "/model": "/models/tunesmith/demo", "/model-downloads": "/model-downloads",
                "/versions/compare": f"/versions/compare?left={newest}&right={newest}",
                **{section.path: section.path for section in ADMIN},
                "curves of 100,000 steps": f"/api/jobs/{long_run}/curves?points=1200",
                "curves, zoomed": f"/api/jobs/{long_run}/curves?points=1200&first=50000&last=50800",
            }  # fmt: skip
            for name, path in paths.items():
                result["pages"][name] = measured(client, path)
                print(f"{name:28} {result['pages'][name]}", flush=True)
            others = client.get("/api/versions?limit=2").json()["versions"][1]["model_version"]
            for name, path in {
                "first look: compare": f"/versions/compare?left={newest}&right={others}",
                "first look: its running losses": f"/versions/compare?left={newest}&right={others}&whole=yes",
                "first look: curves of 100,000 steps": f"/api/jobs/{long_run}/curves?points=1200",
            }.items():
                result["pages"][name] = first_look(client, service, path)
                print(f"{name:28} {result['pages'][name]}", flush=True)
        state.database.close()
        print(save("console", result, libraries=("jinja2", "fastapi", "sqlalchemy")))


if __name__ == "__main__":
    main()
