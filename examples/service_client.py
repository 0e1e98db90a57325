"""Fine-tune through a running service: upload, submit, watch, compare, name the better one.

    tunesmith serve &
    python examples/service_client.py rows.jsonl

The client finds the server of this machine by itself; TUNESMITH_URL and TUNESMITH_TOKEN name another one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunesmith.client import Client
from tunesmith.errors import JobFailed, TunesmithError


def better_rate(rows: Path, rates: tuple[float, ...], **settings: Any) -> str:
    """Train once for each learning rate on the same rows; the best version becomes `rates@best`. Returns its name."""
    with Client() as client:
        dataset = client.datasets.upload(rows)  # checked while it arrives, refused with every faulty line
        jobs = [
            client.jobs.submit(
                "tunesmith/demo", dataset.dataset_id, version_set="rates", learning_rate=rate, **settings
            )
            for rate in rates
        ]
        losses: dict[str, float] = {}
        for job in jobs:
            try:
                result = job.watch().result()
            except JobFailed as failure:
                print(f"{job.job_id} is left out: {failure}")
                continue
            best = min(epoch.validation.loss for epoch in result.epochs if epoch.validation is not None)
            losses[result.model_version] = best
        winner = min(losses, key=lambda version: losses[version])
        client.version_sets.set_alias("rates", "best", int(winner.rpartition(":")[2]))
        return winner


if __name__ == "__main__":
    try:
        print(better_rate(Path(sys.argv[1]), (1e-4, 1e-3), epochs=1))
    except TunesmithError as error:
        sys.exit(f"{error} ({error.code})")
