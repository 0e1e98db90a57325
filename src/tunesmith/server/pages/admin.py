"""Admin: how the server is and what needs somebody, who may do what, the shapes, the audit log.

What a section shows is what its REST route answers; the first page puts several of them together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from tunesmith.errors import TunesmithError
from tunesmith.server import auth
from tunesmith.server.api import administration as routes
from tunesmith.server.api.access import list_permissions, show_rights
from tunesmith.server.api.jobs import list_jobs
from tunesmith.server.api.system import list_shapes, show_system
from tunesmith.server.errors import status_of
from tunesmith.server.pages import words
from tunesmith.server.pages.page import View, is_part, page, query_text
from tunesmith.server.pages.shown import plural
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.access import Right
from tunesmith.spec.api import (
    CURSOR_CHARACTERS,
    Allowance,
    AuditQuery,
    JobQuery,
    PageQuery,
    Permission,
    RightsQuery,
    SystemView,
)
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import DEFAULT_PROJECT, AuditView
from tunesmith.spec.jobs import JobState
from tunesmith.spec.quotas import EVERYBODY, QuotaView

LOOKED_AT_JOBS = 50
ALL = {"limit": 200}
STOPS_WORK = frozenset({"DISK_FULL", "OUT_OF_MEMORY", "GPU_FAULT"})  # notices that are red
RECENTLY = timedelta(hours=24)
SOON = timedelta(days=14)  # a token that ends within this is told of
NEARLY = 0.9  # of a quota
ADDRESSES = {  # noun of an act -> where its object's page is
    "job": "/jobs/", "dataset": "/datasets/", "version": "/versions/", "model": "/models/", "set": "/version-sets/",
    "location": "/admin/locations/", "log": "/admin/logs/", "network": "/admin/networks/",
    "project": "/admin/projects/", "policy": "/admin/policies/",
}  # fmt: skip
OF_PROJECTS = auth.OF_PROJECTS | {"set"}
GONE = ("delete", "remove", "bytes")  # verbs after which there is no such page


# ---- the first page


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that somebody should see to. command: what mends it; link: where it is seen to, with its label."""

    tone: str
    text: str
    command: str | None = None
    link: tuple[str, str] | None = None


def overview(call: CallNow) -> View:
    return View(template="admin/overview.html", context=_health(call))


def health_part(call: CallNow) -> View:
    """What the first page asks for again and again."""
    return View(template="admin/health.html", context=_health(call))


def _health(call: Call) -> dict[str, Any]:
    system = show_system(call)
    needs = sorted(_needs(call, system), key=lambda need: need.tone != "bad")
    return {
        "system": system,
        "needs": needs,
        "gpus": {f"GPU {gpu.index}": gpu for gpu in system.machine.gpus},
        "running": sum(len(device.jobs) for device in system.devices),
    }


def _needs(call: Call, system: SystemView) -> Iterator[Need]:
    for notice in system.notices:
        yield Need(tone="bad" if notice.code in STOPS_WORK else "warn", text=notice.message, command=notice.hint)
    if auth.may(call.principal, "job.read"):
        yield from _job_needs(call)
    if auth.may(call.principal, "token.read"):
        yield from _token_needs(call)
    if auth.may(call.principal, "quota.read"):
        yield from _quota_needs(call)


def _job_needs(call: Call) -> Iterator[Need]:
    def of(state: JobState) -> Any:
        return list_jobs(call, JobQuery.model_validate({"state": state, "limit": LOOKED_AT_JOBS})).jobs

    for job in of(JobState.IN_PROGRESS):
        if job.phase == "waiting" and job.waiting_reason and not job.is_paused:
            told, label = words.NEEDS["waiting"]
            text = told.format(job=job.name, reason=job.waiting_reason)
            yield Need(tone="warn", text=text, link=(f"/jobs/{job.job_id}", label))
    since = (datetime.now(UTC) - RECENTLY).isoformat()
    if failed := [job for job in of(JobState.FAILED) if (job.finished_at or "") >= since]:
        told, label = words.NEEDS["failed"]
        text = told.format(jobs=plural(len(failed), "job"))
        yield Need(tone="warn", text=text, link=("/jobs?state=FAILED", label))


def _token_needs(call: Call) -> Iterator[Need]:
    soon = (datetime.now(UTC) + SOON).isoformat()
    for token in routes.list_tokens(call, PageQuery.model_validate(ALL)).tokens:
        if token.state == "active" and token.expires_at is not None and token.expires_at < soon:
            told, label = words.NEEDS["token"]
            text = told.format(token=token.name, day=token.expires_at[:10])
            yield Need(tone="warn", text=text, link=("/admin/tokens", label))


def _quota_needs(call: Call) -> Iterator[Need]:
    for view in routes.list_quotas(call, PageQuery.model_validate(ALL)).quotas:
        for name, used, limit in _used(view):
            if limit and used >= NEARLY * limit:
                told, label = words.NEEDS["quota"]
                quota = words.QUOTAS[name][0].lower()
                text = told.format(principal=view.principal, share=used / limit, quota=quota)
                yield Need(tone="warn", text=text, link=("/admin/quotas", label))


def _used(view: QuotaView) -> Iterator[tuple[str, int, int]]:
    """Each quota that something is counted for: its name, what is used, the limit."""
    if view.principal != EVERYBODY:
        for name, used in view.used.as_json().items():
            yield name, used, getattr(view.limits, name)


# ---- who may do what


class RightsForm(Spec):
    """What may who do where? A field that was left empty is absent."""

    who: str = Field("", max_length=128)
    project: str = Field("", max_length=63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A permission as a line of the table: what it lets one do, in words, who has it, and whether the one asked for."""

    name: str
    what: list[str]
    roles: list[str]
    policies: list[Allowance]
    is_of_project: bool
    is_allowed: bool
    by: list[str]


def permissions_page(call: CallNow, query: Annotated[RightsForm, Query()]) -> View:
    """From the permissions that the routes declare and the one rule that decides: nothing is written down twice."""
    asked = {name: value.strip() for name, value in query if value.strip()}
    error: TunesmithError | None = None
    try:
        rights = show_rights(call, RightsQuery.model_validate(asked))
    except TunesmithError as refused:
        error, rights = refused, show_rights(call, RightsQuery.model_validate({}))
    by_noun: dict[str, list[Line]] = defaultdict(list)
    found = {right.permission: right for right in rights.rights}
    for each in list_permissions(call).permissions:
        by_noun[each.permission.partition(".")[0]].append(_line(each, found.get(each.permission)))
    for lines in by_noun.values():
        lines.sort(key=lambda line: not line.name.endswith(".read"))  # to see comes before to change
    nouns = sorted(by_noun, key=lambda noun: (noun == auth.PUBLIC, words.NOUNS.get(noun, noun).lower()))
    context = {
        "role_words": words.ROLES,
        "nouns": [(words.NOUNS.get(noun, noun), by_noun[noun]) for noun in nouns],
        "num_rights": sum(line.is_allowed for lines in by_noun.values() for line in lines),
        "total": sum(len(lines) for lines in by_noun.values()),
        "rights": rights,
        "is_own": rights.who == call.principal.name,
        "query": query,
        "error": error,
    }
    return View(template="admin/permissions.html", context=context, status=200 if error is None else status_of(error))


def _line(permission: Permission, right: Right | None) -> Line:
    """right: None for what needs no token."""
    return Line(
        name=permission.permission,
        what=list(dict.fromkeys(route.summary for route in permission.routes)),
        roles=permission.who,
        policies=permission.policies,
        is_of_project=permission.is_of_project,
        is_allowed=right is None or right.is_allowed,
        by=[] if right is None else right.by,
    )


# ---- shapes


def shapes_page(call: CallNow) -> View:
    """A part of it, asked for again and again: what is free moves."""
    context = {"shapes": list_shapes(call).shapes}
    return View(template=f"admin/{'shape_list' if is_part(call.request) else 'shapes'}.html", context=context)


# ---- audit


class AuditListQuery(Spec):
    """The list's own form; a field that was left empty is absent."""

    actor: str = Field("", max_length=200)
    action: str = Field("", max_length=100)
    object: str = Field("", max_length=300)
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A line of the audit log as it is shown."""

    entry: AuditView
    told: str
    address: str | None
    details: list[tuple[str, str]]


def audit_page(call: CallNow, query: Annotated[AuditListQuery, Query()]) -> View:
    asked = {name: value.strip() for name, value in query if isinstance(value, str) and value.strip()}
    found = routes.list_audit(call, AuditQuery.model_validate(asked))
    nouns = sorted({name.partition(".")[0] for name in words.ACTS}, key=lambda noun: words.NOUNS[noun].lower())
    context = {
        "acts": [_act(entry, call.project) for entry in found.audit],
        "next": found.next,
        "query": query,
        "kept": query_text(actor=query.actor, action=query.action, object=query.object),
        "is_filtered": bool(asked),
        "choices": [
            (words.NOUNS[noun], noun, [name for name in words.ACTS if name.startswith(f"{noun}.")]) for noun in nouns
        ],
        "told": words.ACTS,
    }
    return View(template="admin/audit_list.html" if is_part(call.request) else "admin/audit.html", context=context)


def _act(entry: AuditView, project: str) -> Act:
    """project: where the reader is; the page of an object of another one is not there."""
    noun, _, verb = entry.action.partition(".")
    is_elsewhere = noun in OF_PROJECTS and (entry.detail or {}).get("project", DEFAULT_PROJECT) != project
    address = ADDRESSES.get(noun) if verb not in GONE and not is_elsewhere else None
    return Act(
        entry=entry,
        told=words.ACTS.get(entry.action, entry.action),
        address=address + entry.object if address else None,
        details=[(name.replace("_", " "), str(value)) for name, value in (entry.detail or {}).items()],
    )


ROUTES = [
    page("/admin", overview, permission="system.read", summary="Admin"),
    page("/admin/health", health_part, permission="system.read", summary="How the server is now"),
    page("/admin/permissions", permissions_page, permission="permission.read", summary="Who may do what"),
    page("/admin/shapes", shapes_page, permission="shape.read", summary="Shapes"),
    page("/admin/audit", audit_page, permission="audit.read", summary="Audit"),
]
