"""The client against the real application: every noun, and a job from submission to result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.jobs.conftest import submit_job
from tunesmith.bundled import MODEL_NAME, TRAINING_ROWS
from tunesmith.client import AsyncClient, Client
from tunesmith.client.connection import Endpoint
from tunesmith.client.in_process import Host, InProcess
from tunesmith.client.synchronous.wire import Wire
from tunesmith.errors import Conflict, InputRefused, JobFailed, MachineCannot, NotPermitted, Unknown, UsageFault
from tunesmith.jobs.records import JobFolder
from tunesmith.jobs.state import State
from tunesmith.jobs.store import this_process
from tunesmith.server import feed
from tunesmith.spec.access import NewPolicy, NewProject, PolicyChange, ProjectChange
from tunesmith.spec.catalog import (
    BaseModelChange,
    LocationChange,
    NetworkChange,
    NewLocation,
    NewLog,
    NewNetwork,
    NewToken,
    NounChange,
)
from tunesmith.spec.jobs import JobState
from tunesmith.spec.metrics import EpochEvent, NoticeEvent, PhaseEvent, SplitMetrics, StepEvent
from tunesmith.spec.quotas import QuotaChange

ROWS = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:20])
TIME = "2026-01-01T00:00:00Z"
SCORES = SplitMetrics(loss=1.5, token_accuracy=0.5, completion_accuracy=0.25)
STEP = StepEvent(
    time=TIME, step=2, steps=4, epoch=1, loss=1.25, learning_rate=1e-4, gradient_norm=1.0, tokens=10, learned_tokens=5,
    tokens_per_second=100.0, memory_bytes=1000, eta_seconds=1.0,
)  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "support rows.jsonl"
    path.write_bytes(ROWS)
    return path


def play(state: State, job_id: str, ending: JobState = JobState.SUCCEEDED) -> None:
    """What a supervisor would write of a job's life."""
    store = state.jobs
    lease, _ = store.acquire(job_id, owner=this_process())
    store.move(job_id, JobState.IN_PROGRESS, lease=lease)
    store.say(lease, PhaseEvent(time=TIME, phase="training"), STEP)
    store.say(lease, NoticeEvent(time=TIME, code="SAID", message="<b>so</b>"))
    store.say(lease, EpochEvent(time=TIME, epoch=0, training=SCORES, validation=None))
    if ending is JobState.FAILED:
        failure = {"code": "BAD_ROWS", "message": "It failed.", "field": None, "hint": "Mend it."}
        store.move(job_id, ending, lease=lease, failure=failure, failure_family="InputRefused")
    else:
        if ending is JobState.CANCELED:
            store.move(job_id, JobState.CANCELING, lease=None)
        store.move(job_id, ending, lease=lease)
    store.release(lease)


# ---- datasets


def test_a_file_is_uploaded_with_its_progress_and_its_name(client: Client, rows: Path) -> None:
    told: list[tuple[int, int]] = []
    made = client.datasets.upload(rows, progress=lambda done, total: told.append((done, total)))
    assert (made.name, made.rows, made.bytes) == ("support rows", 20, len(ROWS))
    assert told[-1] == (len(ROWS), len(ROWS))
    assert client.datasets.get(made.dataset_id) == made
    assert client.datasets.list() == [made]
    assert client.datasets.report(made.dataset_id).rows == 20
    changed = client.datasets.edit(made.dataset_id, NounChange(description="tickets", tags={"team": "support"}))
    assert (changed.description, changed.name) == ("tickets", "support rows")
    assert client.datasets.list(search="support") == [changed] == client.datasets.list(tag="team=support")
    client.datasets.delete(made.dataset_id)
    with pytest.raises(Unknown):
        client.datasets.get(made.dataset_id)


def test_a_faulty_upload_is_refused_with_its_line(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "faulty.jsonl"
    path.write_bytes(ROWS + b'{"prompt": "x", "completion": ""}\n')
    with pytest.raises(InputRefused, match="21") as caught:
        client.datasets.upload(path)
    assert caught.value.field == "line 21"
    assert client.datasets.list() == []


def test_columns_of_other_names_are_mapped(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "renamed.jsonl"
    path.write_bytes(b'{"question": "one", "answer": "two"}\n' * 3)
    made = client.datasets.upload(path, columns={"prompt": "question", "completion": "answer"})
    assert made.columns == {"prompt": "question", "completion": "answer"} and made.rows == 3
    path.write_bytes(b'{" question ": "one", "answer": "two"}\n' * 3)
    assert client.datasets.upload(path, columns={"prompt": " question ", "completion": "answer"}).rows == 3


# ---- models, locations, logs, networks, tokens, audit, system


def test_base_models_are_listed_and_the_bundled_one_stays(client: Client) -> None:
    [bundled] = client.models.list()
    assert bundled.name == MODEL_NAME == client.models.get(MODEL_NAME).name
    assert client.models.list(search="nothing is called so") == []
    with pytest.raises(Conflict):
        client.models.delete(MODEL_NAME)
    with pytest.raises((Conflict, Unknown)):
        client.models.edit(MODEL_NAME, BaseModelChange(description="mine"))


def test_the_explorer_knows_more_than_the_catalog_holds(client: Client) -> None:
    cards = client.models.explore("llama", label="Ready to Fine Tune", family="Llama 3.2", sort="smallest")
    assert [card.parameters for card in cards] == sorted(card.parameters or 0 for card in cards) and len(cards) == 4
    assert len(client.models.explore(limit=3)) == 3
    detail = client.models.detail("Qwen/Qwen3-8B")
    assert detail.card.licence == "apache-2.0" and detail.memory and detail.sources
    with pytest.raises(Unknown, match="nobody/knows"):
        client.models.detail("nobody/knows")
    with pytest.raises(Conflict, match="not here"):
        client.models.template("Qwen/Qwen3-8B")


def test_locations_are_declared_checked_browsed_and_forgotten(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    folder.mkdir()
    made = client.locations.add(NewLocation(name="team", uri=folder.as_uri(), description="of the team"))
    assert client.locations.list() == [made] == [client.locations.get("team")]
    changed = client.locations.edit("team", LocationChange(description="of another team"))
    assert changed == made.model_copy(update={"description": "of another team"}) == client.locations.get("team")
    with pytest.raises(InputRefused):
        client.locations.edit("team", LocationChange(uri="relative/folder"))
    client.locations.check("team")
    (folder / "data").mkdir()
    (folder / "data" / "rows.jsonl").write_bytes(ROWS)
    assert any("data" in str(each) for each in client.locations.browse("team"))
    registered = client.datasets.register("team", "data/rows.jsonl", name="registered")
    assert (registered.rows, registered.location) == (20, "team")
    client.datasets.delete(registered.dataset_id)
    client.locations.delete("team")
    assert client.locations.list() == []


def test_logs_networks_and_tokens(client: Client, host: Host, endpoint: Endpoint) -> None:
    log = client.logs.add(NewLog(name="long", retention_days=400))
    assert client.logs.list() == [log] == [client.logs.get("long")]
    client.logs.delete("long")
    network = client.networks.add(NewNetwork(name="rack", cidr="10.0.0.0/24", interface="eth0"))
    assert client.networks.list() == [network] == [client.networks.get("rack")]
    client.networks.delete("rack")
    with pytest.raises(Unknown):
        client.networks.get("rack")
    made = client.tokens.create(NewToken(name="colleague", days=3))
    theirs = Client.over(Wire(Endpoint(url=endpoint.url, token=made["token"]), transport=InProcess(host)))
    assert [each.name for each in theirs.models.list()] == [MODEL_NAME]
    [token_id] = [each.token_id for each in client.tokens.list() if each.name == "colleague"]
    client.tokens.revoke(token_id)
    with pytest.raises(NotPermitted):
        theirs.models.list()
    assert {"token.create", "log.remove"} <= {each.action for each in client.audit.list()}


def test_projects_and_policies(client: Client, host: Host, endpoint: Endpoint, rows: Path) -> None:
    desk = client.projects.create(NewProject(name="desk"))
    assert client.projects.list(search="desk") == [desk] == [client.projects.get("desk")]
    assert client.projects.edit("desk", ProjectChange(description="Help")).description == "Help"
    policy = client.policies.create(NewPolicy(name="night", who=["colleague"], may=["use"], projects=["desk"]))
    assert policy.notices and client.policies.get("night").projects == ["desk"]
    made = client.tokens.create(NewToken(name="colleague"))

    def colleague(project: str | None) -> Client:
        there = Endpoint(url=endpoint.url, token=made["token"], project=project)
        return Client.over(Wire(there, transport=InProcess(host)))

    dataset = colleague("desk").datasets.upload(rows)
    assert colleague("desk").datasets.get(dataset.dataset_id) == dataset
    for elsewhere in (colleague(None), colleague("default"), client):
        with pytest.raises(Unknown) as caught:
            elsewhere.datasets.get(dataset.dataset_id)
        assert caught.value.code == "UNKNOWN_DATASET"
    [right] = client.rights("colleague", project="desk", action="job.submit").rights
    assert right.is_allowed and right.by == ["night"]
    assert {each.permission for each in colleague("desk").rights().rights if each.is_allowed} >= {"job.submit"}
    assert client.policies.edit("night", PolicyChange(projects=["default"])).projects == ["default"]
    with pytest.raises(Unknown) as caught:
        colleague("desk").datasets.list()
    assert caught.value.code == "UNKNOWN_PROJECT"
    client.policies.delete("night")
    with pytest.raises(Conflict) as full:
        client.projects.delete("desk")
    assert full.value.code == "PROJECT_NOT_EMPTY"


def test_a_quota_is_set_refuses_with_its_field_and_is_taken_back(client: Client, rows: Path) -> None:
    assert client.quotas.get().principal == "*"
    assert client.quotas.edit("local", QuotaChange(queued_jobs=1)).limits.queued_jobs == 1
    client.jobs.submit(MODEL_NAME, rows)
    with pytest.raises(Conflict) as refused:
        client.jobs.submit(MODEL_NAME, rows)
    assert (refused.value.code, refused.value.field) == ("QUOTA_EXCEEDED", "queued_jobs")
    assert [(each.principal, each.used.queued_jobs) for each in client.quotas.list()] == [("*", 0), ("local", 1)]
    client.quotas.reset("local")
    client.jobs.submit(MODEL_NAME, rows)
    assert "quota.reset" in {each.action for each in client.audit.list()}


def test_a_wrong_token_is_not_permitted(host: Host, endpoint: Endpoint) -> None:
    stranger = Client.over(Wire(Endpoint(url=endpoint.url, token="wrong"), transport=InProcess(host)))
    with pytest.raises(NotPermitted) as caught:
        stranger.system()
    assert caught.value.code == "TOKEN_WRONG"


def test_the_system_tells_its_release_and_disk(client: Client) -> None:
    system = client.system()
    assert [each.name for each in client.shapes()] == ["local"]
    assert system.version and 0 < system.disk_free_bytes <= system.disk_total_bytes


def test_rows_uses_lineage_and_permissions(client: Client, rows: Path) -> None:
    dataset_id = client.datasets.upload(rows).dataset_id
    found = client.datasets.rows(dataset_id, after=3, limit=2)
    assert [row.line for row in found] == [4, 5]
    assert client.datasets.uses(dataset_id).versions == []
    client.logs.add(NewLog(name="team"))
    client.networks.add(NewNetwork(name="fabric", cidr="10.0.0.0/24"))
    client.locations.add(NewLocation(name="data", uri="file:///tmp"))
    assert client.networks.edit("fabric", NetworkChange(cidr="10.0.1.0/24")).cidr == "10.0.1.0/24"
    job = client.jobs.submit(MODEL_NAME, dataset_id, version_set="bot", log="team")
    assert client.logs.uses("team").jobs == [job.job_id]
    assert client.networks.uses("fabric").jobs == client.locations.uses("data").datasets == []
    graph = client.versions.lineage("bot:1")
    assert [node.name for node in graph.nodes if node.is_asked] == [job.model_version]
    assert "version.delete" in {each.permission for each in client.permissions()}


# ---- jobs


def test_a_job_is_submitted_with_its_file_uploaded(client: Client, rows: Path) -> None:
    job = client.jobs.submit(MODEL_NAME, rows, epochs=2, name="first try", version_set="support-bot")
    assert (job.state, job.model_version, job.view.name) == (JobState.ACCEPTED, "support-bot:1", "first try")
    [dataset] = client.datasets.list()
    assert dataset.name == "support rows"
    again = client.jobs.submit(MODEL_NAME, dataset.dataset_id, version_set="support-bot")
    assert again.model_version == "support-bot:2"
    assert [each.job_id for each in client.jobs.list()] == [again.job_id, job.job_id]
    assert [each.job_id for each in client.jobs.list(search="first try")] == [job.job_id]
    assert len(client.jobs.list(limit=1)) == 1
    assert client.jobs.get(job.job_id).view == job.refresh().view


@pytest.mark.parametrize("absent", ["absent.jsonl", Path("absent.jsonl")])
def test_a_file_that_is_not_there_is_refused_here(client: Client, absent: str | Path) -> None:
    with pytest.raises(InputRefused) as caught:
        client.jobs.submit(MODEL_NAME, absent)
    assert caught.value.code == "FILE_NOT_READABLE"


def test_a_faulty_setting_is_a_usage_fault(client: Client, rows: Path) -> None:
    with pytest.raises(UsageFault, match="epochs"):
        client.jobs.submit(MODEL_NAME, rows, epochs=0)
    with pytest.raises(UsageFault, match="epoch"):
        client.jobs.submit(MODEL_NAME, rows, epoch=3)


def test_jobs_are_paused_resumed_canceled_and_cloned(client: Client, rows: Path) -> None:
    job = client.jobs.submit(MODEL_NAME, rows, epochs=2, version_set="support-bot")
    assert job.pause().view.is_paused
    assert not job.resume().view.is_paused
    assert job.cancel().state is JobState.CANCELED
    with pytest.raises(JobFailed) as caught:
        job.result()
    assert caught.value.code == "JOB_CANCELED"
    with pytest.raises(Conflict):
        job.pause()
    clone = job.clone(epochs=5)
    assert clone.state is JobState.ACCEPTED and clone.job_id != job.job_id
    assert client.jobs.cancel(clone.job_id).state is JobState.CANCELED


def test_a_job_is_watched_to_its_end(
    client: Client, state: State, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.jobs.submit(MODEL_NAME, rows)
    player = threading.Timer(0.2, play, (state, job.job_id))
    player.start()
    job.watch(display="lines")
    player.join()
    told = capsys.readouterr().err
    for words in ("ACCEPTED", "IN_PROGRESS", "training", "step 2 of 4", "0 (base)", "<b>so</b>", "SUCCEEDED"):
        assert words in told
    assert job.is_finished and job.result().state is JobState.SUCCEEDED
    assert [each.number for each in job.events()] == list(range(1, job.view.num_events + 1))
    assert list(job.events(after=job.view.num_events)) == []


@pytest.mark.parametrize(("ending", "code"), [(JobState.FAILED, "BAD_ROWS"), (JobState.CANCELED, "JOB_CANCELED")])
def test_the_result_of_a_job_that_did_not_succeed_is_raised(
    client: Client, state: State, rows: Path, ending: JobState, code: str
) -> None:
    job = client.jobs.submit(MODEL_NAME, rows)
    play(state, job.job_id, ending)
    with pytest.raises(JobFailed) as caught:
        job.result()
    assert caught.value.code == code
    assert client.jobs.result(job.job_id).state is ending


def test_a_result_before_the_end_is_a_conflict(client: Client, rows: Path) -> None:
    job = client.jobs.submit(MODEL_NAME, rows)
    with pytest.raises(Conflict):
        client.jobs.result(job.job_id)
    with pytest.raises(Unknown):
        client.jobs.get("job-000000000000")


def test_the_log_is_read_and_downloaded(client: Client, job: JobFolder, tmp_path: Path) -> None:
    job.worker_log.parent.mkdir(exist_ok=True)
    job.worker_log.write_bytes(b"first\nsecond\n")
    assert client.jobs.log(job.job_id, lines=1) == ["second"]
    assert client.jobs.log(job.job_id, search="FIRST") == ["first"]
    assert client.jobs.download_log(job.job_id, tmp_path / "x.log").read_bytes() == b"first\nsecond\n"


class LosesAnswers(httpx2.BaseTransport):
    """The request arrives and is done; the answer to every first POST of a path is lost on its way."""

    def __init__(self, host: Host) -> None:
        self._inner = InProcess(host)
        self.lost: set[str] = set()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self._inner.handle_request(request)
        if request.method == "POST" and request.url.path not in self.lost:
            self.lost.add(request.url.path)
            answer.read()
            answer.close()
            raise httpx2.ReadError("the answer was lost")
        return answer


def test_a_creation_whose_answer_was_lost_makes_one_object(host: Host, endpoint: Endpoint, rows: Path) -> None:
    transport = LosesAnswers(host)
    client = Client.over(Wire(endpoint, transport=transport))
    job = client.jobs.submit(MODEL_NAME, rows, version_set="bot")
    clone = job.clone(epochs=5)
    client.logs.add(NewLog(name="long"))
    assert len(transport.lost) == 4
    assert [each.job_id for each in client.jobs.list()] == [clone.job_id, job.job_id]
    assert len(client.datasets.list()) == len(client.logs.list()) == 1
    assert [each.model_version for each in client.versions.list()] == ["bot:2", "bot:1"]


# ---- versions


def test_versions_are_listed_named_aliased_and_compared(client: Client, state: State, rows: Path) -> None:
    dataset = client.datasets.upload(rows)
    first = client.jobs.submit(MODEL_NAME, dataset.dataset_id, version_set="bot", description="one")
    second = client.jobs.submit(MODEL_NAME, dataset.dataset_id, version_set="bot", learning_rate=1e-3)
    assert [each.model_version for each in client.versions.list(version_set="bot")] == ["bot:2", "bot:1"]
    assert client.versions.get("bot:1").version.shown_state == "In progress"
    assert client.versions.list(state="ACTIVE") == []
    for each in (first, second):
        play(state, each.job_id)
    assert len(client.versions.list(state="ACTIVE")) == 2
    assert client.version_sets.set_alias("bot", "prod", 2).model_version == "bot:2"
    assert client.versions.get("bot@prod").version.model_version == "bot:2"
    with pytest.raises(Conflict):
        client.versions.delete("bot:2", with_bytes=False)
    compared = client.versions.compare("bot:1", "bot@prod")
    assert compared.right.version.model_version == "bot:2"
    changed = client.versions.edit("bot:1", NounChange(name="the first", tags={"kept": "yes"}))
    assert (changed.name, changed.tags) == ("the first", {"kept": "yes"})
    assert [each.model_version for each in client.versions.list(tag="kept")] == ["bot:1"]
    assert client.version_sets.edit("bot", description="answers").description == "answers"
    [bot] = client.version_sets.list()
    assert [(each.alias, each.number) for each in bot.aliases] == [("prod", 2)]
    client.version_sets.delete_alias("bot", "prod")
    client.versions.delete("bot:2", with_bytes=True)
    assert client.version_sets.get("bot").versions == 1
    client.versions.metrics("bot:1")


# ---- without a server, and with an event loop


def test_without_a_server_it_reads_and_runs_no_job(state: State, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(state.home.root))
    monkeypatch.delenv("TUNESMITH_URL", raising=False)
    waiting = submit_job(state, results=None, is_foreground=False)
    with Client() as client:
        assert client.wire.endpoint.is_in_process
        assert [each.job_id for each in client.jobs.list()] == [waiting.job_id]
        for refused in (
            lambda: client.jobs.submit(MODEL_NAME, rows),
            lambda: client.jobs.clone(waiting.job_id),
            lambda: client.jobs.resume(waiting.job_id),
        ):
            with pytest.raises(MachineCannot, match="tunesmith serve") as caught:
                refused()
            assert caught.value.code == "SERVER_NEEDED"
        assert client.datasets.list() == []
        assert client.jobs.cancel(waiting.job_id).state is JobState.CANCELED


def test_the_async_client_does_the_same(
    async_client: Callable[[], AsyncClient], state: State, rows: Path, tmp_path: Path
) -> None:
    async def use() -> None:
        async with async_client() as client:
            assert [each.name for each in await client.models.list()] == [MODEL_NAME]
            dataset = await client.datasets.upload(rows)
            job = await client.jobs.submit(MODEL_NAME, dataset.dataset_id, version_set="bot")
            ended = asyncio.create_task(job.wait())
            await asyncio.sleep(0.1)
            assert not ended.done()
            await asyncio.to_thread(play, state, job.job_id)
            assert (await ended).state is JobState.SUCCEEDED
            assert (await job.result()).state is JobState.SUCCEEDED
            assert min([each.number async for each in job.events(after=2)]) == 3
            with pytest.raises(Unknown):
                await client.versions.get("bot:9")
            assert (await client.version_sets.set_alias("bot", "prod", 1)).model_version == "bot:1"

    asyncio.run(use())


def test_leaving_a_stream_ends_it_on_the_server(client: Client, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "KEEP_ALIVE_SECONDS", 3600.0)  # nothing is sent that would tell it of the leaving
    job = client.jobs.submit(MODEL_NAME, rows)
    events = job.events()
    assert next(iter(events)).number == 1
    events.close()  # type: ignore[attr-defined]  # a generator; one that waited for the stream would wait on
