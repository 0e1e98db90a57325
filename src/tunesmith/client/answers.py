"""Answers of models as they come: the chunks of `/v1` from a server, or from the same application in this process.

In: a `Wire` and one of OpenAI's requests. Out: its chunks as JSON. Raises the package's own errors, also those that end
a stream in its middle. Who leaves the iterator stops the generation.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import httpx2

from tunesmith.client.errors import error_of, lost, unreadable
from tunesmith.client.synchronous.wire import Wire

DATA = "data: "
LAST = "[DONE]"
NO_LIMIT = httpx2.Timeout(None, connect=5.0)  # a large model loads for minutes before its first token
STREAM_ENDED = 503


def stream_answer(wire: Wire, path: str, request: dict[str, Any]) -> Generator[dict[str, Any]]:
    """path: `/v1/chat/completions` or `/v1/completions`."""
    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    url = wire.endpoint.url
    try:
        with wire.stream(path, method="POST", body=body, timeout=NO_LIMIT) as answer:
            for line in answer.iter_lines():
                if not line.startswith(DATA):
                    continue
                text = line.removeprefix(DATA)
                if text == LAST:
                    return
                chunk = json.loads(text)
                if "error" in chunk:
                    raise error_of(STREAM_ENDED, text.encode(), url=url)
                yield chunk
    except httpx2.TransportError as error:
        raise lost(error, url=url) from error
    except ValueError as error:
        raise unreadable(url) from error
    raise lost(httpx2.RemoteProtocolError("the stream ended early"), url=url)
