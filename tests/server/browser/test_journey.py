"""The acceptance test of the whole product, in the order of its purpose, by browser, by command line and by client.

Explorer, Ready to Fine Tune, the form with every field, In progress, the metrics panel that fills epoch by epoch, the
notice of overfitting (the run is made to overfit), ACTIVE in a versioned bucket, base and tuned version side by side.
With TUNESMITH_JOURNEY_PICTURES the browser's way leaves its pictures in that folder: docs/guide/console.md shows them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3.session
import pytest
from playwright.sync_api import Page, expect

from tests.server.browser.conftest import Served, sign_in, violations
from tests.servers.moto import moto_server
from tunesmith.bundled import MODEL_NAME, TRAINING_ROWS
from tunesmith.client import Client

OVERFITS: dict[str, Any] = {
    "epochs": 6, "learning_rate": 0.01, "validation_fraction": 0.4, "lora_dropout": 0, "seed": 3,
}  # fmt: skip
Picture = Callable[..., None]
TRAINED_MILLISECONDS = 300_000
PROMPT = "Summarize this dialog:\nAmanda: I baked cookies. Do you want some?\nJerry: Sure!\n---\nSummary:\n"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A versioned bucket `team` of moto's server, with rows in it; the client of its store."""
    with moto_server(tmp_path_factory.mktemp("moto")) as url:
        client: Any = boto3.session.Session("a", "b", region_name="us-east-1").client("s3", endpoint_url=url)
        client.create_bucket(Bucket="team")
        client.put_bucket_versioning(Bucket="team", VersioningConfiguration={"Status": "Enabled"})
        rows = b"".join(TRAINING_ROWS.read_bytes().splitlines(keepends=True)[:40])
        client.put_object(Bucket="team", Key="tunesmith/support/a few dialogues.jsonl", Body=rows)
        client.url = url
        yield client
        client.close()


@pytest.fixture(scope="module")
def served(bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = {"AWS_ENDPOINT_URL": bucket.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    server = Served(home=tmp_path_factory.mktemp("home"), environment=keys | {"NO_PROXY": "127.0.0.1"})
    server.start()
    try:
        server.ask("POST", "/api/locations", json={"name": "team", "uri": "s3://team/tunesmith"})
        server.ask("POST", "/api/logs", json={"name": "support-log", "retention_days": 30})
        server.ask("POST", "/api/networks", json={"name": "lab", "cidr": "10.0.0.0/24"})
        yield server
    finally:
        server.stop()


@pytest.fixture
def picture() -> Picture:
    folder = os.environ.get("TUNESMITH_JOURNEY_PICTURES")

    def take(page: Page, name: str, part: str = "h1") -> None:
        """part: what stands at the top of the picture."""
        if folder:
            page.locator(part).first.evaluate("each => each.scrollIntoView({block: 'start'})")
            page.wait_for_timeout(600)  # what moves has come to rest
            page.screenshot(path=Path(folder) / f"journey-{name}.png")

    return take


def published(bucket: Any, prefix: str) -> None:
    """Every file of the manifest lies in the bucket, in the version that the manifest names."""
    manifest = json.loads(bucket.get_object(Bucket="team", Key=f"tunesmith/{prefix}/manifest.json")["Body"].read())
    assert "adapter_model.safetensors" in {file["path"] for file in manifest["files"]}
    for file in manifest["files"]:
        key = f"tunesmith/{prefix}/{file['path']}"
        found = bucket.head_object(Bucket="team", Key=key, VersionId=file["version_id"])
        assert found["ContentLength"] == file["size"]


def overfits(epochs: list[dict[str, Any]]) -> bool:
    """Validation loss rose while training loss fell, from one epoch to the next."""
    return any(
        after["validation"]["loss"] > before["validation"]["loss"]
        and after["training"]["loss"] < before["training"]["loss"]
        for before, after in itertools.pairwise(epochs[1:])
    )


def test_by_browser(new_page: Callable[..., Page], served: Served, bucket: Any, picture: Picture) -> None:
    page = sign_in(new_page(viewport={"width": 1280, "height": 860}), served)

    # the explorer: what is Ready to Fine Tune and here
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Models", exact=True).click()
    page.get_by_role("navigation", name="Labels").get_by_role("link", name="Ready to Fine Tune").click()
    card = page.locator(".model").filter(has=page.get_by_role("link", name=MODEL_NAME, exact=True))
    expect(card.get_by_text("Ready to Fine Tune")).to_be_visible()
    picture(page, "1-explorer")
    card.get_by_role("link", name=MODEL_NAME, exact=True).click()
    expect(page.locator("mark.learned").nth(1)).to_contain_text("ten o'clock")
    picture(page, "2-model")
    page.locator("main").get_by_role("link", name="Fine Tune", exact=True).click()

    # the form: every field that was promised
    expect(page.get_by_label("Base model")).to_have_value(MODEL_NAME)
    page.get_by_role("tab", name="Bucket or folder").click()
    page.get_by_role("button", name="team").click()
    page.get_by_role("button", name="support").click()
    page.get_by_role("button", name="a few dialogues.jsonl").click()
    expect(page.get_by_role("radio", name="a few dialogues.jsonl")).to_be_checked()
    page.get_by_label("Name", exact=True).fill("A few dialogues by heart")
    page.get_by_label("Description").fill("Made to overfit: few rows, a high rate.")
    page.get_by_label("Rows for validation").fill("40")
    page.get_by_label("Model version set").fill("by-heart")
    page.get_by_label("Results location").select_option("team")
    expect(page.locator("#results-check")).to_contain_text("keeps versions")
    page.get_by_label("Folder in it").fill("results/browser")
    expect(page.get_by_label("Shape")).to_have_value("local")
    network = page.get_by_label("Network")
    expect(network).not_to_be_visible()
    page.get_by_label("Replicas").fill("2")
    expect(network).to_be_visible()
    page.get_by_label("Replicas").fill("1")
    expect(network).not_to_be_visible()
    page.get_by_label("Log", exact=True).select_option("support-log")
    page.get_by_label("Epochs").fill("6")
    page.get_by_label("Learning rate", exact=True).fill("0.01")
    page.get_by_text("Advanced: adapter").click()
    page.get_by_label("LoRA dropout").fill("0")
    page.get_by_label("Seed").fill("3")
    expect(page.locator("#plan")).to_contain_text("a version of by-heart")
    expect(page.locator("#understood mark.learned").first).to_be_visible()
    expect(page.locator("#plan code").last).to_contain_text("--results team:results/browser")
    picture(page, "3-form", "[aria-labelledby=dataset-title]")
    page.get_by_role("button", name="Start").click()

    # In progress: the version, in the catalog as soon as its job was submitted
    page.wait_for_url("**/versions/by-heart:*")
    version = page.url.rpartition("/")[2]
    assert served.ask("GET", f"/api/versions/{version}")["version"]["shown_state"] == "In progress"
    expect(page.locator(".heading .badge").first).to_have_text("In progress")

    # the metrics panel fills epoch by epoch, without a reload
    page.evaluate("window.sameDocument = true")
    lines = page.locator("#metrics .epochs tbody tr")
    expect(lines.first).to_contain_text("base", timeout=TRAINED_MILLISECONDS)
    seen = {lines.count()}
    while lines.count() < 7:
        before = lines.count()
        expect(lines).not_to_have_count(before, timeout=TRAINED_MILLISECONDS)
        seen.add(lines.count())
        if before == 3:
            picture(page, "4-in-progress", "#metrics")
    assert len(seen) >= 3, f"it filled in steps: {sorted(seen)}"
    assert page.evaluate("window.sameDocument") is True
    expect(page.locator(".heading .badge").first).to_have_text("Active", timeout=TRAINED_MILLISECONDS)  # by itself

    # overfitting is noticed and said
    expect(page.locator("#metrics")).to_contain_text("overfitting")
    assert overfits(served.ask("GET", f"/api/versions/{version}/metrics")["epochs"])
    picture(page, "5-overfitting", "#metrics")

    # ACTIVE, in the bucket
    expect(page.get_by_text("s3://team/tunesmith/results/browser")).to_be_visible()
    published(bucket, "results/browser")
    picture(page, "6-version")
    assert violations(page) == []

    # base and tuned, side by side
    page.get_by_role("link", name="Try it").click()
    page.get_by_text("Options").click()
    page.get_by_label("Tokens at most").fill("24")
    page.get_by_label("Your words").fill(PROMPT)
    page.get_by_role("button", name="Send").click()
    for side in (f"Left: {MODEL_NAME}", f"Right: {version}"):
        answer = page.get_by_role("region", name=side).locator(".bubble.assistant:not(.pending)")
        expect(answer).not_to_be_empty(timeout=TRAINED_MILLISECONDS)
    assert page.locator(".bubble.error").count() == 0
    picture(page, "7-side-by-side")

    # and the explorer knows
    page.goto(f"{served.url}/models/{MODEL_NAME}")
    expect(page.get_by_text("Fine-tuned", exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name=version, exact=True)).to_be_visible()


def test_by_command_line(served: Served, bucket: Any) -> None:
    def tunesmith(*arguments: str) -> Any:
        environment = {**os.environ, "TUNESMITH_URL": served.url, "TUNESMITH_TOKEN": served.token}
        done = subprocess.run(
            [sys.executable, "-m", "tunesmith", *arguments, "--json"], env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    found = tunesmith("model", "search", "--label", "Ready to Fine Tune", "--here")
    assert [card["name"] for card in found["models"]] == [MODEL_NAME]
    assert "Ready to Fine Tune" in json.dumps(tunesmith("model", "show", MODEL_NAME)["explorer"])
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in OVERFITS.items()]
    settings += ["--name=By command", "--description=Made to overfit", "--version-set=by-heart"]
    settings += ["--results=team:results/command", "--shape=local", "--replicas=1", "--log=support-log"]
    dataset = "team:support/a few dialogues.jsonl"
    job = tunesmith("job", "submit", MODEL_NAME, dataset, *settings)
    version = job["model_version"]
    assert tunesmith("version", "show", version)["version"]["shown_state"] == "In progress"
    result = tunesmith("job", "watch", job["job_id"])
    assert result["state"] == "SUCCEEDED" and len(result["epochs"]) == OVERFITS["epochs"]
    epochs = tunesmith("version", "metrics", version)["epochs"]
    assert len(epochs) == OVERFITS["epochs"] + 1 and overfits(epochs)
    assert tunesmith("version", "show", version)["version"]["state"] == "ACTIVE"
    published(bucket, "results/command")
    answers = tunesmith("version", "answers", MODEL_NAME, version, "--prompt", PROMPT, "--max-tokens", "16")
    assert MODEL_NAME in json.dumps(answers) and version in json.dumps(answers)


def test_by_client(served: Served, bucket: Any) -> None:
    with Client(served.url, served.token) as client:
        [card] = [each for each in client.models.explore(label="Ready to Fine Tune", here=True) if each.is_bundled]
        job = client.jobs.submit(
            card.name, "team:support/a few dialogues.jsonl", name="By client", description="Made to overfit",
            version_set="by-heart", results="team:results/client", shape="local", replicas=1, log="support-log",
            **OVERFITS,
        )  # fmt: skip
        assert client.versions.get(job.model_version).version.shown_state == "In progress"
        filled: list[int] = []
        for each in job.events():
            if each.event.kind == "epoch":
                filled.append(len(client.versions.metrics(job.model_version).epochs))
        assert filled == sorted(filled) and len(set(filled)) >= 3, "the panel fills while the job trains"
        result = job.result()
        assert len(result.epochs) == OVERFITS["epochs"]
        detail = client.versions.get(job.model_version)
        assert detail.version.state == "ACTIVE" and overfits([each.as_json() for each in detail.metrics.epochs])
        published(bucket, "results/client")
        answers = list(client.versions.answers([card.name, job.model_version], [PROMPT], max_tokens=16))
        assert answers
