"""Admin: tokens and quotas: who may come in, and how much they may take up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError, UsageFault
from tunesmith.server.api import administration as routes
from tunesmith.server.errors import status_of
from tunesmith.server.pages import words
from tunesmith.server.pages.jobs import new_key
from tunesmith.server.pages.page import View, action, done, page, redirect
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, PageQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import NewToken, TokenRole
from tunesmith.spec.faults import checked
from tunesmith.spec.quotas import EVERYBODY, QuotaChange, Quotas, QuotaView

MEGABYTE = 10**6
SHOWN_SHARES = 20
IN_MEGABYTES = ("uploaded_bytes", "log_bytes")


class ListQuery(Spec):
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


# ---- tokens


def tokens_page(call: CallNow, query: Annotated[ListQuery, Query()]) -> View:
    return _tokens(call, after=query.after)


def _tokens(call: Call, *, after: str | None = None, status: int = 200, **more: Any) -> View:
    found = routes.list_tokens(call, PageQuery.model_validate({"after": after or None}))
    context = {
        "tokens": found.tokens,
        "next": found.next,
        "own": call.principal.token_id,
        "roles": [(role.value, words.ROLES[role.value]) for role in TokenRole],
        "lifetimes": tuple(words.LIFETIMES.items()),
        "key": new_key(),
        "values": {"name": "", "days": "90", "role": TokenRole.USER.value},
        "made": None,
        "error": None,
    }
    return View(template="admin/tokens.html", context=context | more, status=status)


def create_token(call: CallNow) -> View:
    """The answer shows the token's text, this once: a redirect would have to carry it in an address."""
    given = call.form.texts()
    try:
        days = _whole_number("days", given["days"]) if "days" in given else None
        wanted = {name: given[name] for name in ("name", "role") if name in given} | {"days": days}
        made = orjson.loads(routes.create_token(call, checked(NewToken, wanted), given.get("key")).body)
    except TunesmithError as error:
        values = {name: given.get(name, "") for name in ("name", "days", "role")}
        return _tokens(call, status=status_of(error), error=error, values=values)
    return _tokens(call, made=made)


def revoke_token(call: CallNow, token_id: str) -> Response:
    routes.revoke_token(call, token_id)
    return done(call, "/sign-in" if token_id == call.principal.token_id else "/admin/tokens")


# ---- quotas


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One quota of one principal. text: the limit as the form shows it; used: None where nothing is counted."""

    name: str
    label: str
    hint: str
    limit: int
    used: int | None
    is_bytes: bool
    is_own: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    principal: str
    is_everybody: bool
    is_own: bool
    lines: list[Line]


def quotas_page(call: CallNow, query: Annotated[ListQuery, Query()]) -> View:
    return _quotas(call, after=query.after)


def _quotas(call: Call, *, after: str | None = None, status: int = 200, **more: Any) -> View:
    found = routes.list_quotas(call, PageQuery.model_validate({"after": after or None, "limit": SHOWN_SHARES}))
    context = {"shares": [_share(view) for view in found.quotas], "next": found.next, "error": None, "failed": None}
    return View(template="admin/quotas.html", context=context | more, status=status)


def _share(view: QuotaView) -> Share:
    used, is_everybody = view.used.as_json(), view.principal == EVERYBODY
    lines = [
        Line(
            name=name, label=words.QUOTAS[name][0], hint=words.QUOTAS[name][1], limit=limit,
            used=None if is_everybody else used.get(name), is_bytes=name in IN_MEGABYTES, is_own=name in view.own,
            text=_as_text(name, limit),
        )
        for name, limit in view.limits.as_json().items()
    ]  # fmt: skip
    return Share(principal=view.principal, is_everybody=is_everybody, is_own=bool(view.own), lines=lines)


def _as_text(name: str, limit: int) -> str:
    """As the form shows and takes it: bytes in megabytes."""
    if name not in IN_MEGABYTES:
        return str(limit)
    return f"{limit / MEGABYTE:.3f}".rstrip("0").rstrip(".")


def change_quotas(call: CallNow) -> View | Response:
    """What was left as it was shown stays whose it is: everybody's does not become one's own."""
    given = call.form.texts()
    principal = given.get("principal", EVERYBODY)
    try:
        limits = routes.show_quotas(call, principal).limits
        change = {
            name: _limit(name, given[name])
            for name in Quotas.model_fields
            if name in given and given[name].strip() != _as_text(name, getattr(limits, name))
        }
        if change:
            routes.change_quotas(call, principal, checked(QuotaChange, change))
    except TunesmithError as error:
        return _quotas(call, status=status_of(error), error=error, failed=principal)
    return redirect("/admin/quotas")


def _limit(name: str, text: str) -> int:
    if name not in IN_MEGABYTES:
        return _whole_number(name, text)
    try:
        return round(float(text) * MEGABYTE)
    except (ValueError, OverflowError) as error:
        label = words.QUOTAS[name][0]
        raise UsageFault("INVALID_FIELD", f"{label}: {text[:40]!r} is no number of megabytes.", field=name) from error


def _whole_number(name: str, text: str) -> int:
    label = words.QUOTAS[name][0] if name in words.QUOTAS else name.capitalize()
    if not (text.strip().isascii() and text.strip().isdecimal() and len(text) < 20):
        raise UsageFault("INVALID_FIELD", f"{label}: {text[:40]!r} is no whole number.", field=name)
    return int(text)


def reset_quotas(call: CallNow) -> Response:
    principal = call.form.text("principal") or EVERYBODY
    routes.reset_quotas(call, principal)
    return done(call, "/admin/quotas")


TOKENS, QUOTAS = "/admin/tokens", "/admin/quotas"
ROUTES = [
    page(TOKENS, tokens_page, permission="token.read", summary="Tokens"),
    action(TOKENS, create_token, permission="token.create", summary="Make a token"),
    action(f"{TOKENS}/{{token_id}}/revoke", revoke_token, permission="token.revoke", summary="Revoke a token"),
    page(QUOTAS, quotas_page, permission="quota.read", summary="Quotas"),
    action(QUOTAS, change_quotas, permission="quota.change", summary="Change quotas"),
    action(f"{QUOTAS}/reset", reset_quotas, permission="quota.change", summary="Give a principal everybody's quotas"),
]
