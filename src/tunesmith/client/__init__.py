"""The typed client of the service: `Client`, and `AsyncClient` for an event loop. Both know the same nouns.

    from tunesmith.client import Client

    with Client() as client:
        job = client.jobs.submit("tunesmith/demo", "rows.jsonl", epochs=2)
        result = job.watch().result()

Errors are those of `tunesmith.errors`.
"""

from __future__ import annotations

from tunesmith.client.asynchronous.client import AsyncClient
from tunesmith.client.asynchronous.jobs import AsyncJob
from tunesmith.client.synchronous.client import Client
from tunesmith.client.synchronous.jobs import Job

__all__ = ["AsyncClient", "AsyncJob", "Client", "Job"]
