"""Idempotency keys: the same request again, in the same project, is answered by what the first one made.

`recall` and `remember` stand in the transaction that creates the object, so that of two equal requests one creates.
"""

from __future__ import annotations

import string

import sqlalchemy as sa

from tunesmith.catalog.clock import now
from tunesmith.errors import Conflict, UsageFault
from tunesmith.storage.tables import IDEMPOTENCY

MAXIMUM_KEY_CHARACTERS = 255
PRINTABLE = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")


def check_key(key: str) -> str:
    """Raises UsageFault (BAD_IDEMPOTENCY_KEY)."""
    if not 1 <= len(key) <= MAXIMUM_KEY_CHARACTERS or not PRINTABLE.issuperset(key):
        raise UsageFault(
            "BAD_IDEMPOTENCY_KEY",
            f"Idempotency-Key has to be 1 to {MAXIMUM_KEY_CHARACTERS} printable ASCII characters.",
            field="Idempotency-Key",
            hint="A random UUID serves well.",
        )
    return key


def recall(
    connection: sa.Connection, *, actor: str, key: str, route: str, body_sha256: str, project: str
) -> str | None:
    """The id of what this request made before; None for a new key. Raises Conflict (IDEMPOTENCY_KEY_REUSED)."""
    row = connection.execute(
        sa.select(IDEMPOTENCY.c.route, IDEMPOTENCY.c.body_sha256, IDEMPOTENCY.c.object_id).where(
            IDEMPOTENCY.c.actor == actor, IDEMPOTENCY.c.key == key, IDEMPOTENCY.c.project == project
        )
    ).one_or_none()
    if row is None:
        return None
    if (row.route, row.body_sha256) != (route, body_sha256):
        raise Conflict(
            "IDEMPOTENCY_KEY_REUSED",
            "This Idempotency-Key came before with another request.",
            field="Idempotency-Key",
            hint="Take a new key for a new request; send the same body to repeat one.",
        )
    return row.object_id


def remember(
    connection: sa.Connection, *, actor: str, key: str, route: str, body_sha256: str, object_id: str, project: str
) -> None:
    connection.execute(
        IDEMPOTENCY.insert().values(
            actor=actor,
            key=key,
            route=route,
            body_sha256=body_sha256,
            object_id=object_id,
            created_at=now(),
            project=project,
        )
    )


def forget(connection: sa.Connection, *, before: str) -> int:
    """Drop the keys of before that time; returns how many."""
    return connection.execute(IDEMPOTENCY.delete().where(IDEMPOTENCY.c.created_at < before)).rowcount
