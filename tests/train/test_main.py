"""The worker as a process: by hand from its file, and standing by until its starter has a job for it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = [sys.executable, "-P", "-m", "tunesmith.train"]


@pytest.mark.slow
def test_a_worker_that_stood_by_writes_the_same_adapter_as_one_started_by_hand(make_job: Callable[..., Path]) -> None:
    by_hand, stood_by = make_job("by-hand", epochs=1), make_job("stood-by", epochs=1)
    subprocess.run([*WORKER, str(by_hand)], check=True, capture_output=True, cwd=by_hand.parent)
    log = stood_by.parent / "worker.log"
    given = json.dumps({"job_file": str(stood_by), "log": str(log)})
    done = subprocess.run([*WORKER, "-"], check=True, input=given + "\n", capture_output=True, text=True)
    assert done.stdout + done.stderr == "", "what it says belongs into its log"
    assert log.exists()
    adapters = [(job.parent / "artifact" / "adapter_model.safetensors").read_bytes() for job in (by_hand, stood_by)]
    assert adapters[0] == adapters[1]


@pytest.mark.slow
def test_a_worker_whose_starter_has_no_job_ends_quietly() -> None:
    done = subprocess.run([*WORKER, "-"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
