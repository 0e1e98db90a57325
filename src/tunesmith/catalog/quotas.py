"""Quotas: what a principal may take up, what it does, and the refusal of more. All inside a caller's transaction.

The one place that counts: who adds or ends something calls `take` or `give_back`. Whose quota it is, is the actor of
the request; groups and policies of a later release change `limits_of` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from tunesmith.catalog import audit
from tunesmith.catalog.paging import Page, read_page
from tunesmith.errors import Conflict, Unknown
from tunesmith.spec.catalog import LOCAL_USER, VersionState
from tunesmith.spec.jobs import FINAL_STATES
from tunesmith.spec.quotas import EVERYBODY, QuotaChange, Quotas, QuotaView, Usage
from tunesmith.storage.tables import DATASETS, JOBS, MODEL_VERSIONS, QUOTAS, TOKENS, USAGE

COUNTED = tuple(Usage.model_fields)
LIMITS = sa.select(QUOTAS.c.actor, QUOTAS.c.quota, QUOTAS.c.value).where(
    sa.or_(QUOTAS.c.actor == EVERYBODY, QUOTAS.c.actor == sa.bindparam("of_actor"))
)
ADD = (
    USAGE.update()
    .where(USAGE.c.actor == sa.bindparam("of_actor"))
    .values({name: USAGE.c[name] + sa.bindparam(f"more_{name}", type_=sa.BigInteger) for name in COUNTED})
    .returning(*(USAGE.c[name] for name in COUNTED))
)
BEGIN = USAGE.insert()
KNOWN = [(sa.select(column), column) for column in (TOKENS.c.name, USAGE.c.actor, QUOTAS.c.actor)]
WORDS = {
    "queued_jobs": ("unfinished jobs", "Wait until some are finished, or cancel them"),
    "versions": ("model versions", "Delete versions that nobody needs"),
    "datasets": ("datasets", "Delete datasets that nobody needs"),
    "uploaded_bytes": (
        "bytes of uploaded datasets",
        "Delete datasets that nobody needs, or register them where they lie in a location",
    ),
}


def take(connection: sa.Connection, actor: str, **amounts: int) -> None:
    """Count what is added. Raises Conflict (QUOTA_EXCEEDED): the caller's part is undone then."""
    used = _count(connection, actor, amounts)
    limits = limits_of(connection, actor)[0]
    for name, amount in amounts.items():
        if amount > 0 and used[name] > getattr(limits, name):
            raise _exceeded(actor, name, used=used[name] - amount, amount=amount, limit=getattr(limits, name))


def give_back(connection: sa.Connection, actor: str, **amounts: int) -> None:
    """Count what is gone."""
    _count(connection, actor, {name: -amount for name, amount in amounts.items()})


def limits_of(connection: sa.Connection, actor: str) -> tuple[Quotas, list[str]]:
    """The limits that hold, and the names of those that were set for this actor."""
    rows = connection.execute(LIMITS, {"of_actor": actor}).all()
    everybodys = {row.quota: row.value for row in rows if row.actor == EVERYBODY}
    own = {row.quota: row.value for row in rows if row.actor == actor}
    return Quotas.model_validate(everybodys | own), sorted(own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left to a principal for uploads, so that one too many is refused before its bytes have come."""

    actor: str
    used: int
    limit: int

    def require(self, num_bytes: int) -> None:
        """Raises Conflict (QUOTA_EXCEEDED)."""
        if self.used + num_bytes > self.limit:
            raise _exceeded(self.actor, "uploaded_bytes", used=self.used, amount=num_bytes, limit=self.limit)


def upload_room(connection: sa.Connection, actor: str) -> Room:
    """Raises Conflict (QUOTA_EXCEEDED) where no dataset may be added at all."""
    limits, used = limits_of(connection, actor)[0], _used(connection, actor)
    if used.datasets >= limits.datasets:
        raise _exceeded(actor, "datasets", used=used.datasets, amount=1, limit=limits.datasets)
    return Room(actor=actor, used=used.uploaded_bytes, limit=limits.uploaded_bytes)


def _count(connection: sa.Connection, actor: str, amounts: dict[str, int]) -> dict[str, int]:
    more = {f"more_{name}": amounts.get(name, 0) for name in COUNTED}
    row = connection.execute(ADD, {"of_actor": actor, **more}).one_or_none()
    if row is None:
        begun = {name: amounts.get(name, 0) for name in COUNTED}
        connection.execute(BEGIN, {"actor": actor, **begun})
        return begun
    return dict(zip(COUNTED, row, strict=True))


def _exceeded(actor: str, name: str, *, used: int, amount: int, limit: int) -> Conflict:
    what, way_out = WORDS[name]
    return Conflict(
        "QUOTA_EXCEEDED",
        f"{actor} is at {used:,} of {limit:,} {what}, and asked for {amount:,} more.",
        field=name,
        hint=f"{way_out}; an administrator raises the quota with `tunesmith quota edit`.",
    )


# ---- an administrator's view


def list_quotas(connection: sa.Connection, *, after: str | None = None, limit: int | None = None) -> Page[QuotaView]:
    """By principal, everybody's first: who has quotas of his own or uses something."""
    known = sa.union(sa.select(QUOTAS.c.actor), sa.select(USAGE.c.actor), sa.select(sa.literal(EVERYBODY))).subquery()

    def make(rows: Sequence[sa.Row[Any]]) -> list[QuotaView]:
        return [find_quotas(connection, row.actor) for row in rows]

    key = cast(sa.Column[Any], known.c.actor)
    return read_page(connection, sa.select(key), key=key, after=after, limit=limit, make=make)


def find_quotas(connection: sa.Connection, principal: str) -> QuotaView:
    """Of one that did nothing yet, too. Raises Unknown (UNKNOWN_PRINCIPAL)."""
    if principal not in (EVERYBODY, LOCAL_USER):
        asked = (each.where(column == principal) for each, column in KNOWN)
        if connection.execute(sa.union_all(*asked).limit(1)).first() is None:
            raise Unknown(
                "UNKNOWN_PRINCIPAL", f"There is no principal {principal[:80]!r} here.", field="principal",
                hint="A principal is called as its token; `tunesmith token list` shows the tokens.",
            )  # fmt: skip
    limits, own = limits_of(connection, principal)
    return QuotaView(principal=principal, limits=limits, own=own, used=_used(connection, principal))


def _used(connection: sa.Connection, actor: str) -> Usage:
    row = connection.execute(
        sa.select(*(USAGE.c[name] for name in COUNTED)).where(USAGE.c.actor == actor)
    ).one_or_none()
    return Usage() if row is None else Usage.model_validate(dict(zip(COUNTED, row, strict=True)))


def change_quotas(connection: sa.Connection, principal: str, change: QuotaChange, *, actor: str) -> QuotaView:
    """A limit below what is used refuses more and takes nothing away. Raises Unknown."""
    find_quotas(connection, principal)
    values = change.model_dump(exclude_none=True)
    for name, value in values.items():
        where = (QUOTAS.c.actor == principal) & (QUOTAS.c.quota == name)
        if connection.execute(QUOTAS.update().where(where).values(value=value)).rowcount == 0:
            connection.execute(QUOTAS.insert().values(actor=principal, quota=name, value=value))
    if values:
        audit.record(connection, actor, "quota.change", principal, values)
    return find_quotas(connection, principal)


def reset_quotas(connection: sa.Connection, principal: str, *, actor: str) -> None:
    """Back to everybody's; of everybody, back to the defaults. Raises Unknown."""
    find_quotas(connection, principal)
    if connection.execute(QUOTAS.delete().where(QUOTAS.c.actor == principal)).rowcount:
        audit.record(connection, actor, "quota.reset", principal)


def recount(connection: sa.Connection) -> None:
    """Count anew what everybody uses: a database of an older release, or one that was repaired by hand, may be off."""
    unfinished = sa.select(JOBS.c.submitted_by, sa.func.count()).where(JOBS.c.state.not_in(FINAL_STATES))
    versions = sa.select(MODEL_VERSIONS.c.made_by, sa.func.count()).where(
        MODEL_VERSIONS.c.made_by.is_not(None), MODEL_VERSIONS.c.state != VersionState.DELETED
    )
    uploaded = sa.case((DATASETS.c.source_uri.is_(None), DATASETS.c.bytes), else_=0)
    datasets = sa.select(DATASETS.c.added_by, sa.func.count(), sa.func.sum(uploaded)).group_by(DATASETS.c.added_by)
    counts: dict[str, dict[str, int]] = {}
    for name, query, owner in (
        ("queued_jobs", unfinished, JOBS.c.submitted_by), ("versions", versions, MODEL_VERSIONS.c.made_by),
    ):  # fmt: skip
        for actor, count in connection.execute(query.group_by(owner)):
            counts.setdefault(actor, {})[name] = count
    for actor, count, num_bytes in connection.execute(datasets):
        counts.setdefault(actor, {}).update(datasets=count, uploaded_bytes=num_bytes)
    connection.execute(USAGE.delete())
    if counts:
        connection.execute(
            BEGIN, [{"actor": actor, **dict.fromkeys(COUNTED, 0), **own} for actor, own in counts.items()]
        )
