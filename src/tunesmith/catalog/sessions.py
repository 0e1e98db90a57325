"""Sessions of browsers: each stands for the token that somebody signed in with, and ends with it.

A secret is random, and only its SHA-256 is kept. A session ends at sign-out, after `DAYS`, or with its token.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import iso, now
from tunesmith.catalog.tokens import find_token, hash_of
from tunesmith.errors import Unknown
from tunesmith.spec.catalog import TokenView
from tunesmith.storage.tables import SESSIONS

DAYS = 7


def start_session(connection: sa.Connection, token: TokenView) -> str:
    """Its secret, for the cookie: the one time that anybody sees it. Sessions that are over go."""
    time_now, secret = datetime.now(UTC), secrets.token_urlsafe(32)
    connection.execute(SESSIONS.delete().where(SESSIONS.c.expires_at <= iso(time_now)))
    connection.execute(
        SESSIONS.insert().values(
            sha256=hash_of(secret), token_id=token.token_id, created_at=iso(time_now),
            expires_at=iso(time_now + timedelta(days=DAYS)),
        )
    )  # fmt: skip
    audit.record(connection, token.name, "session.start", token.token_id)
    return secret


def token_of_session(connection: sa.Connection, secret: str) -> TokenView | None:
    """The token behind a session that is not over, if it is active itself."""
    token_id = connection.execute(
        sa.select(SESSIONS.c.token_id).where(SESSIONS.c.sha256 == hash_of(secret), SESSIONS.c.expires_at > now())
    ).scalar()
    return active_token(connection, token_id) if token_id is not None else None


def active_token(connection: sa.Connection, token_id: str) -> TokenView | None:
    try:
        token = find_token(connection, token_id)
    except Unknown:
        return None
    return token if token.state == "active" else None


def end_session(connection: sa.Connection, secret: str) -> None:
    """One that is over already stays so."""
    token = token_of_session(connection, secret)
    gone = connection.execute(SESSIONS.delete().where(SESSIONS.c.sha256 == hash_of(secret)))
    if gone.rowcount and token is not None:
        audit.record(connection, token.name, "session.end", token.token_id)
