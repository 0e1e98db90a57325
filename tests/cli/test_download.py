"""`model search --hub`, `model download` and `download`: in the foreground where no server runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done
from tests.servers.hub import FakeHub
from tunesmith.bundled import MODEL_FOLDER
from tunesmith.spec.hub import DownloadView, HubModelDetail

Tunesmith = Callable[..., Done]
SMALL = "team/small"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add(SMALL, MODEL_FOLDER, extra={"pytorch_model.bin": b"\x80\x04" * 1_000_000})
        hub.add("team/gated", MODEL_FOLDER, gated=True)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TUNESMITH_URL"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def test_the_hub_is_searched(tunesmith: Tunesmith) -> None:
    done = tunesmith("model", "search", "small", "--hub", "--author", "team", "--licence", "apache-2.0", "--json")
    assert done.code == 0 and [each["hub_id"] for each in done.json["models"]] == [SMALL]
    said = tunesmith("model", "search", "--hub")
    assert "gated" in said.out and SMALL in said.out
    for words in (["--hub", "--family", "Llama 2"], ["--author", "team"], ["--hub", "--author", "a/b"]):
        assert tunesmith("model", "search", *words, "--json").code == 2


@pytest.mark.slow  # inspects a model
def test_a_model_is_downloaded_in_the_foreground(tunesmith: Tunesmith, fake: FakeHub) -> None:
    looked = tunesmith("model", "download", SMALL, "--dry-run", "--json")
    detail = HubModelDetail.model_validate(looked.json)
    assert looked.code == 0 and detail.revision == "c" * 40
    said = tunesmith("model", "download", SMALL, "--dry-run")
    assert "MB to file://" in said.out and "pytorch_model.bin" in said.out
    done = tunesmith("model", "download", SMALL, "--name", "ours", "--tag", "team=support", "--json")
    assert done.code == 0, done.err
    view = DownloadView.model_validate(done.json)
    assert (view.state, view.name, view.revision) == ("SUCCEEDED", "ours", "c" * 40)
    assert tunesmith("model", "show", "ours", "--json").json["explorer"]["card"]["hub_id"] == SMALL
    listed: list[dict[str, Any]] = tunesmith("download", "list", "--json").json["downloads"]
    assert [each["download_id"] for each in listed] == [view.download_id]
    assert tunesmith("download", "show", view.download_id).code == 0
    assert tunesmith("download", "cancel", view.download_id, "--json").json["error"]["code"] == "DOWNLOAD_ENDED"


@pytest.mark.slow  # inspects a model
def test_a_hub_id_is_registered_by_downloading_it(tunesmith: Tunesmith) -> None:
    done = tunesmith("model", "register", "mine", SMALL, "--json")
    assert done.code == 0 and done.json["name"] == "mine", done.err


@pytest.mark.slow
def test_a_gated_model_ends_the_command_with_its_way_out_and_is_resumed(tunesmith: Tunesmith, fake: FakeHub) -> None:
    done = tunesmith("model", "download", "team/gated", "--json")
    assert (done.code, done.json["error"]["code"]) == (5, "HUB_GATED")
    fake.repositories["team/gated"].gated = False
    [view] = tunesmith("download", "list", "--json").json["downloads"]
    assert view["state"] == "FAILED"
    again = tunesmith("download", "resume", view["download_id"], "--json")
    assert again.code == 0 and again.json["state"] == "SUCCEEDED", again.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["model", "download", "no-slash"], 2),
        (["model", "download", "team/absent"], 3),
        (["model", "download", SMALL, "--revision", "v9"], 3),
        (["download", "show", "dl-000000000000"], 2),
    ],
)
def test_what_is_not_there_is_refused(tunesmith: Tunesmith, tmp_path: Path, words: list[str], code: int) -> None:
    done = tunesmith(*words, "--json")
    assert done.code == code, done.err
    assert done.json["error"]["hint"]
