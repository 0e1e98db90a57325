"""Access tokens. A secret is random and shown once; the database keeps its SHA-256 alone.

A fast hash serves: a secret holds 256 random bits, which no dictionary knows.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.clock import iso, now
from tunesmith.catalog.paging import Page, read_page
from tunesmith.errors import Unknown
from tunesmith.spec.catalog import NewToken, TokenRole, TokenView
from tunesmith.storage.database import fields_of
from tunesmith.storage.tables import TOKENS

PREFIX = "tunesmith_"  # what secret scanners look for
VIEW_COLUMNS = [column for column in TOKENS.c if column.name != "sha256"]


def create_token(connection: sa.Connection, new: NewToken, *, actor: str) -> tuple[TokenView, str]:
    """The token, and its secret: the one time that anybody sees it."""
    token_id, secret = f"tok-{secrets.token_hex(8)}", PREFIX + secrets.token_urlsafe(32)
    expires_at = None if new.days is None else iso(datetime.now(UTC) + timedelta(days=new.days))
    connection.execute(
        TOKENS.insert().values(
            token_id=token_id, name=new.name, role=new.role, sha256=hash_of(secret), created_at=now(),
            expires_at=expires_at,
        )
    )  # fmt: skip
    audit.record(connection, actor, "token.create", token_id, {"name": new.name, "role": new.role})
    return find_token(connection, token_id), secret


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def token_of_secret(connection: sa.Connection, secret: str) -> TokenView | None:
    """The token that this secret opens, if it is active now."""
    digest = hash_of(secret)
    row = connection.execute(sa.select(TOKENS).where(TOKENS.c.sha256 == digest)).one_or_none()
    if row is None or not hmac.compare_digest(row.sha256, digest):
        return None
    token = find_token(connection, row.token_id)
    return token if token.state == "active" else None


def list_tokens(connection: sa.Connection, *, after: str | None = None, limit: int | None = None) -> Page[TokenView]:
    """By id."""
    query = sa.select(*VIEW_COLUMNS)
    return read_page(connection, query, key=TOKENS.c.token_id, after=after, limit=limit, make=_views)


def find_token(connection: sa.Connection, token_id: str) -> TokenView:
    """Raises Unknown (UNKNOWN_TOKEN)."""
    row = connection.execute(sa.select(*VIEW_COLUMNS).where(TOKENS.c.token_id == token_id)).one_or_none()
    if row is None:
        raise Unknown("UNKNOWN_TOKEN", f"There is no token {token_id[:80]!r} here.", field="token_id")
    return _views([row])[0]


def roles_of_name(connection: sa.Connection, name: str) -> set[TokenRole]:
    """Of the active tokens that are called so."""
    rows = connection.execute(sa.select(*VIEW_COLUMNS).where(TOKENS.c.name == name)).all()
    return {token.role for token in _views(rows) if token.state == "active"}


def revoke_token(connection: sa.Connection, token_id: str, *, actor: str) -> TokenView:
    """It stays in the list. One that was revoked before stays as it is. Raises Unknown."""
    if find_token(connection, token_id).revoked_at is None:
        connection.execute(TOKENS.update().where(TOKENS.c.token_id == token_id).values(revoked_at=now()))
        audit.record(connection, actor, "token.revoke", token_id)
    return find_token(connection, token_id)


def _views(rows: Sequence[sa.Row[Any]]) -> list[TokenView]:
    time_now = now()
    return [TokenView.model_validate(fields_of(row) | {"state": _state(row, time_now)}) for row in rows]


def _state(row: sa.Row[Any], time_now: str) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= time_now else "active"
