"""Policies at work: which project a request means, what its caller may do there, and the check of what a policy says.

In: a `Principal` that was let in, and the project that the request names. Out: the same caller with that project and
his rights in it. Policies are remembered for a second, as tokens are: requests come in bursts, and none asks the
database for them in between. The rule itself is `auth.grants`.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.catalog.policies import all_policies
from tunesmith.catalog.projects import project_names, unknown_project
from tunesmith.errors import Unknown, UsageFault
from tunesmith.server.auth import (
    ADMINISTRATOR,
    NEVER_GRANTED,
    PUBLIC,
    REMEMBERED_SECONDS,
    REMEMBERED_TOKENS,
    Policy,
    Principal,
    granted,
    grants,
)
from tunesmith.spec.access import ANY, PolicyView
from tunesmith.spec.catalog import DEFAULT_PROJECT
from tunesmith.storage.database import Database

PROJECT_HEADER = "X-Tunesmith-Project"  # the client knows it by the same name
OPENAI_PROJECT_HEADER = "OpenAI-Project"  # what the openai client sends for its own `project`


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Every policy and project at one moment, with what was worked out from them so far."""

    policies: tuple[Policy, ...]
    projects: tuple[str, ...]
    visible: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict[tuple[str, str], tuple[str, ...]])
    allowed: dict[tuple[str, str, str], frozenset[str]] = field(
        default_factory=dict[tuple[str, str, str], frozenset[str]]
    )

    def seen_by(self, name: str, role: str) -> tuple[str, ...]:
        """The projects in which one may do anything, in order."""
        found = self.visible.get((name, role))
        if found is None:
            own = [policy for policy in self.policies if policy.names(name, role)]
            found = tuple(
                project
                for project in self.projects
                if role == ADMINISTRATOR or any(policy.covers(project) for policy in own)
            )
            if len(self.visible) < REMEMBERED_TOKENS:
                self.visible[name, role] = found
        return found

    def allowed_to(self, name: str, role: str, project: str) -> frozenset[str]:
        found = self.allowed.get((name, role, project))
        if found is None:
            found = frozenset(grants(self.policies, name=name, role=role, project=project))
            if len(self.allowed) < REMEMBERED_TOKENS:
                self.allowed[name, role, project] = found
        return found


class Policies:
    """Safe from many threads: what is remembered is replaced as a whole."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: tuple[float, Rules] | None = None
        self._changes = 0

    def rules(self) -> Rules:
        remembered = self._remembered
        if remembered is None or remembered[0] < time.monotonic():
            until, changes = time.monotonic() + REMEMBERED_SECONDS, self._changes
            with self._database.read() as connection:
                policies = tuple(as_rule(view) for view in all_policies(connection))
                rules = Rules(policies=policies, projects=tuple(project_names(connection)))
            remembered = (until, rules)
            if changes == self._changes:  # else what was read may be of before the change
                self._remembered = remembered
        return remembered[1]

    def forget(self) -> None:
        """Called after a change: it counts at once."""
        self._changes += 1
        self._remembered = None

    def placed(self, principal: Principal, *, asked: str | None, preferred: str | None = None) -> Principal:
        """The caller in the project of his request. asked: by the request itself; preferred: a browser's choice, which
        gives way where it is none (any more). Raises Unknown (UNKNOWN_PROJECT), UsageFault (PROJECT_NOT_NAMED).
        """
        rules = self.rules()
        seen = rules.seen_by(principal.name, principal.role)
        project = asked
        if asked is not None:
            if asked not in seen:
                raise unknown_project(asked, seen)
        elif preferred is not None:
            project = next((each for each in (preferred, DEFAULT_PROJECT, *seen) if each in seen), None)
        elif DEFAULT_PROJECT in seen or len(seen) == 1:
            project = DEFAULT_PROJECT if DEFAULT_PROJECT in seen else seen[0]
        elif seen:
            raise UsageFault(
                "PROJECT_NOT_NAMED", f"You may use {len(seen)} projects, and {DEFAULT_PROJECT} is none of them.",
                field="project", hint=f"Name one, by --project or {PROJECT_HEADER}: {', '.join(seen[:5])}.",
            )  # fmt: skip
        project = project or DEFAULT_PROJECT
        allowed = rules.allowed_to(principal.name, principal.role, project)
        return replace(principal, project=project, projects=seen, allowed=allowed)


def as_rule(view: PolicyView) -> Policy:
    return Policy(
        name=view.name,
        who=frozenset(view.who),
        may=frozenset(each for entry in view.may for each in granted(entry)),
        projects=None if ANY in view.projects else frozenset(view.projects),
    )


def check_policy(values: dict[str, Any], *, permissions: Collection[str], projects: Sequence[str]) -> None:
    """values: fields of a policy, those that are given. permissions: all that routes declare. projects: all there are.

    Raises Unknown (UNKNOWN_PERMISSION, UNKNOWN_PROJECT), UsageFault (NOT_GRANTABLE).
    """
    for entry in values.get("may") or ():
        _check_grant(entry, permissions)
    for project in values.get("projects") or ():
        if project != ANY and project not in projects:
            raise unknown_project(project, projects, field="projects")


def _check_grant(entry: str, permissions: Collection[str]) -> None:
    if entry in ("use", "read"):
        return
    noun, _, verb = entry.partition(".")
    of_noun = sorted(each for each in permissions if each.startswith(f"{noun}."))
    if noun in NEVER_GRANTED:
        raise UsageFault(
            "NOT_GRANTABLE", f"{entry} cannot be granted: who makes {noun} objects lets himself do everything.",
            field="may", hint="Give a token of the role admin to who is to do that.",
        )  # fmt: skip
    if (verb == ANY and not of_noun) or (verb != ANY and entry not in permissions):
        named = {each for each in permissions if each != PUBLIC}
        known = sorted(named | {f"{each.partition('.')[0]}.{ANY}" for each in named})
        near = difflib.get_close_matches(entry, known, n=3, cutoff=0.6) or of_noun
        raise Unknown(
            "UNKNOWN_PERMISSION", f"There is no permission {entry}.", field="may",
            hint=f"Did you mean {' or '.join(near)}?" if near else "`tunesmith system permissions` lists them.",
        )  # fmt: skip
    if not granted(entry):
        raise UsageFault(
            "NOT_GRANTABLE", f"{entry} would grant what administers: that is granted by its whole name alone.",
            field="may", hint=f"Name what is meant: {', '.join(of_noun)}.",
        )  # fmt: skip
