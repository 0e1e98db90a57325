from __future__ import annotations

import hashlib

from starlette.testclient import TestClient

from tests.catalog import make
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.catalog.versions import final_columns
from tunesmith.jobs.state import State
from tunesmith.spec.artifacts import Manifest, ManifestFile
from tunesmith.spec.catalog import VersionState


def test_the_files_of_a_version_go_with_it_only_where_somebody_says_so(client: TestClient, state: State) -> None:
    folder = state.home.results / "bot" / "1"
    folder.mkdir(parents=True)
    (folder / "README.md").write_bytes(b"card")
    (folder / "manifest.json").write_text('{"job_id": "job-1"}')
    file = ManifestFile(path="README.md", size=4, sha256=hashlib.sha256(b"card").hexdigest())
    columns = final_columns(
        artifact_uri=folder.as_uri(), manifest=Manifest(job_id="job-1", model_version="bot:1", files=[file])
    )
    with state.database.write() as connection:
        add_version(
            connection, project="default", version_set="bot", above=0, created_at=make.TIME, name="",
            base_name="base", results_uri="",
        )  # fmt: skip
        move_version(
            connection, project="default", model_version="bot:1", state=VersionState.ACTIVE, now=make.TIME, **columns
        )
    assert client.delete("/api/versions/bot:1").is_success
    assert (folder / "README.md").exists()
    assert client.delete("/api/versions/bot:1", params={"bytes": "true"}).is_success
    assert not folder.exists()
