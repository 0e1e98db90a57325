"""Idempotency of what creates: the same key and request again give what the first request made.

In: a call with its `Idempotency-Key`. Out: the id of what was made, and whether it is new. Key and object stand in one
transaction, which many requests share (group commit); it is durable when this returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated

import sqlalchemy as sa
from fastapi import Header
from pydantic import BaseModel

from tunesmith.catalog.idempotency import check_key, recall, remember
from tunesmith.server.service import Call

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", description="The same key with the same request gives the same object; a UUID.",
        max_length=255, pattern=r"^[\x20-\x7e]+$",
    ),
]  # fmt: skip


def made_before(call: Call, key: str | None, body: BaseModel, *, route: str) -> str | None:
    """What the same request made earlier, for a handler whose work before the transaction must not be done twice."""
    if key is None:
        return None
    check_key(key)
    with call.database.read() as connection:
        return recall(connection, **_wish(call, key, body.model_dump_json(), route=route))


def _wish(call: Call, key: str, text: str, *, route: str) -> dict[str, str]:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"actor": call.actor, "key": key, "route": route, "body_sha256": digest, "project": call.project}


def once(
    call: Call, key: str | None, body: BaseModel | str, *, route: str, make: Callable[[sa.Connection], str]
) -> tuple[str, bool]:
    """make: creates the object in the given transaction and returns its id. body: the request as it was understood."""
    if key is None:
        return call.database.write_grouped(make), True
    check_key(key)
    text = body if isinstance(body, str) else body.model_dump_json()
    wish = _wish(call, key, text, route=route)

    def make_once(connection: sa.Connection) -> tuple[str, bool]:
        made = recall(connection, **wish)
        if made is not None:
            return made, False
        object_id = make(connection)
        remember(connection, object_id=object_id, **wish)
        return object_id, True

    return call.database.write_grouped(make_once)
