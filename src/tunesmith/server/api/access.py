"""Projects and policies: who may do what in which of them, and what one may do."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Literal

import sqlalchemy as sa
from fastapi import Body, Query
from starlette.responses import Response

from tunesmith.catalog import policies, projects, tokens
from tunesmith.errors import Unknown
from tunesmith.server.auth import (
    ADMINISTRATOR,
    NEVER_GRANTED,
    OF_EVERY_TOKEN,
    PUBLIC,
    USER_MAY,
    Policy,
    grants,
    is_of_project,
    require,
)
from tunesmith.server.once import IdempotencyKey, once
from tunesmith.server.policies import check_policy
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.access import (
    ANY,
    NewPolicy,
    NewProject,
    PolicyChange,
    PolicyView,
    ProjectChange,
    ProjectView,
    Right,
    Rights,
)
from tunesmith.spec.api import (
    Allowance,
    Permission,
    PermissionList,
    PermittedRoute,
    PolicyPage,
    ProjectPage,
    RightsQuery,
    SearchQuery,
)
from tunesmith.spec.catalog import TokenRole
from tunesmith.spec.names import ROLE_PREFIX

# ---- projects


def list_projects(call: CallNow, query: Annotated[SearchQuery, Query()]) -> ProjectPage:
    """Those in which the caller may do anything, by name."""
    with call.database.read() as connection:
        page = projects.list_projects(
            connection, among=call.principal.projects, search=query.search, after=query.after, limit=query.limit
        )
    return ProjectPage(projects=page.items, next=page.next)


def add_project(call: CallNow, new: Annotated[NewProject, Body()], idempotency_key: IdempotencyKey = None) -> Response:
    """A new project. Administrators see it; others once a policy names it."""

    def make(connection: sa.Connection) -> str:
        return projects.add_project(connection, new, actor=call.actor).name

    name, is_new = once(call, idempotency_key, new, route="POST /api/projects", make=make)
    call.service.policies.forget()
    with call.database.read() as connection:
        return created(projects.find_project(connection, name), is_new=is_new)


def show_project(call: CallNow, name: str) -> ProjectView:
    """A project, and how much is in it."""
    _require_seen(call, name)
    with call.database.read() as connection:
        return projects.find_project(connection, name)


def _require_seen(call: Call, name: str) -> None:
    """Of a project that the caller does not see nothing is told, not even that it is there."""
    if name not in call.principal.projects:
        raise projects.unknown_project(name, call.principal.projects)


def change_project(call: CallNow, name: str, change: Annotated[ProjectChange, Body()]) -> ProjectView:
    """Change its description."""
    _require_seen(call, name)
    return call.database.write_grouped(
        lambda connection: projects.change_project(connection, name, change, actor=call.actor)
    )


def remove_project(call: CallNow, name: str) -> None:
    """Its name is not given again. 409 while it holds anything or a policy names it."""
    _require_seen(call, name)

    def remove(connection: sa.Connection) -> None:
        naming = policies.policies_of_project(connection, name)
        projects.delete_project(connection, name, policies=naming, actor=call.actor)

    call.database.write_grouped(remove)
    call.service.policies.forget()


# ---- policies


def list_policies(call: CallNow, query: Annotated[SearchQuery, Query()]) -> PolicyPage:
    """By name."""
    with call.database.read() as connection:
        page = policies.list_policies(connection, search=query.search, after=query.after, limit=query.limit)
    return PolicyPage(policies=page.items, next=page.next)


def add_policy(call: CallNow, new: Annotated[NewPolicy, Body()], idempotency_key: IdempotencyKey = None) -> Response:
    """A new policy; it counts at once. Names that no token carries are accepted, and told."""

    def make(connection: sa.Connection) -> str:
        _check(call, connection, new)
        return policies.add_policy(connection, new, actor=call.actor).name

    name, is_new = once(call, idempotency_key, new, route="POST /api/policies", make=make)
    call.service.policies.forget()
    return created(show_policy(call, name), is_new=is_new)


def _check(call: Call, connection: sa.Connection, given: NewPolicy | PolicyChange) -> None:
    """Inside the transaction that writes it: a project that is deleted meanwhile is not there."""
    known = {route.permission for route in call.request.app.state.routes}
    check_policy(given.model_dump(), permissions=known, projects=projects.project_names(connection))


def show_policy(call: CallNow, name: str) -> PolicyView:
    """A policy, with what is to be said of it."""
    with call.database.read() as connection:
        return policies.find_policy(connection, name)


def change_policy(call: CallNow, name: str, change: Annotated[PolicyChange, Body()]) -> PolicyView:
    """Change it; a list replaces the one that was there. It counts at once."""

    def write(connection: sa.Connection) -> PolicyView:
        policies.find_policy(connection, name)
        _check(call, connection, change)
        return policies.change_policy(connection, name, change, actor=call.actor)

    changed = call.database.write_grouped(write)
    call.service.policies.forget()
    return changed


def remove_policy(call: CallNow, name: str) -> None:
    """What it alone allowed is refused from now on."""
    call.database.write_grouped(lambda connection: policies.delete_policy(connection, name, actor=call.actor))
    call.service.policies.forget()


# ---- who may do what


def list_permissions(call: CallNow) -> PermissionList:
    """Every permission that a route declares, what it opens, and who has it: the roles, and by which policies."""
    by_permission: dict[str, list[PermittedRoute]] = defaultdict(list)
    for route in call.request.app.state.routes:
        each = PermittedRoute(method=route.method, path=route.path, summary=route.summary)
        by_permission[route.permission].append(each)
    rules = [policy for policy in call.service.policies.rules().policies if _concerns(call, policy)]
    return PermissionList(
        permissions=[
            Permission(
                permission=name, who=_roles(name), is_of_project=is_of_project(name), is_grantable=_grantable(name),
                policies=[_allowance(call, each) for each in rules if name in each.may], routes=by_permission[name],
            )
            for name in sorted(by_permission)
        ]
    )  # fmt: skip


def _roles(permission: str) -> list[str]:
    if permission == PUBLIC:
        return ["anybody"]
    return [role.value for role in TokenRole] if permission in OF_EVERY_TOKEN else [ADMINISTRATOR]


def _grantable(permission: str) -> Literal["yes", "by name", "no"]:
    if permission == PUBLIC or permission.partition(".")[0] in NEVER_GRANTED:
        return "no"
    return "yes" if permission in USER_MAY else "by name"


def _concerns(call: Call, policy: Policy) -> bool:
    caller = call.principal
    return caller.role == ADMINISTRATOR or policy.names(caller.name, caller.role)


def _allowance(call: Call, policy: Policy) -> Allowance:
    """Who is no administrator is told of himself alone."""
    caller = call.principal
    own = {caller.name, f"{ROLE_PREFIX}{caller.role}", ANY}
    who = policy.who if caller.role == ADMINISTRATOR else policy.who & own
    return Allowance(policy=policy.name, who=sorted(who), projects=sorted(policy.projects or {ANY}))


def show_rights(call: CallNow, query: Annotated[RightsQuery, Query()]) -> Rights:
    """What one may do in a project, and by which policy. Of others an administrator alone is told."""
    caller = call.principal
    who, project = query.who or caller.name, query.project or caller.project
    if who != caller.name:
        require(caller, "policy.read")
    _require_seen(call, project)
    known = {route.permission for route in call.request.app.state.routes} - {PUBLIC}
    if query.action is not None and query.action not in known:
        raise Unknown(
            "UNKNOWN_PERMISSION", f"There is no permission {query.action}.", field="action",
            hint="`tunesmith system permissions` lists them.",
        )  # fmt: skip
    if who == caller.name:
        role, notices = TokenRole(caller.role), []
    else:
        with call.database.read() as connection:
            found = tokens.roles_of_name(connection, who)
        role = max(found, default=TokenRole.USER, key=lambda each: each is TokenRole.ADMIN)
        notices = [] if found else [policies.nobody_yet(who)]
    rules = call.service.policies.rules().policies
    allowed = grants(rules, name=who, role=role, project=project)
    if role is TokenRole.ADMIN:
        allowed = {each: [f"{ROLE_PREFIX}{role}"] for each in known}
    wanted = sorted(known) if query.action is None else [query.action]
    rights = [Right(permission=each, is_allowed=each in allowed, by=allowed.get(each, [])) for each in wanted]
    return Rights(who=who, role=role, project=project, rights=rights, notices=notices)


PROJECT, POLICY = "/api/projects/{name}", "/api/policies/{name}"
ROUTES = [
    Route(
        method="GET", path="/api/projects", handler=list_projects, permission="project.read", summary="List projects",
        answer=ProjectPage,
    ),
    Route(
        method="POST", path="/api/projects", handler=add_project, permission="project.create",
        summary="Make a project", answer=ProjectView, status=201, statuses=(200,), refusals=(409,), body="json",
        request_example={"name": "support", "description": "Models of the help desk"},
    ),
    Route(
        method="GET", path=PROJECT, handler=show_project, permission="project.read", summary="Show a project",
        answer=ProjectView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=PROJECT, handler=change_project, permission="project.change", summary="Change a project",
        answer=ProjectView, refusals=(404,), body="json", request_example={"description": "Models of both help desks"},
    ),
    Route(
        method="DELETE", path=PROJECT, handler=remove_project, permission="project.delete",
        summary="Delete a project", status=204, refusals=(404, 409),
    ),
    Route(
        method="GET", path="/api/policies", handler=list_policies, permission="policy.read", summary="List policies",
        answer=PolicyPage,
    ),
    Route(
        method="POST", path="/api/policies", handler=add_policy, permission="policy.create", summary="Make a policy",
        answer=PolicyView, status=201, statuses=(200,), refusals=(404, 409), body="json",
        request_example={
            "name": "help-desk", "who": ["ada", "nightly training"], "may": ["use"], "projects": ["support"],
        },
    ),
    Route(
        method="GET", path=POLICY, handler=show_policy, permission="policy.read", summary="Show a policy",
        answer=PolicyView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=POLICY, handler=change_policy, permission="policy.change", summary="Change a policy",
        answer=PolicyView, refusals=(404,), body="json",
        request_example={"may": ["read", "job.submit", "location.add"]},
    ),
    Route(
        method="DELETE", path=POLICY, handler=remove_policy, permission="policy.delete", summary="Delete a policy",
        status=204, refusals=(404,),
    ),
    Route(
        method="GET", path="/api/permissions", handler=list_permissions, permission="permission.read",
        summary="Who may do what", answer=PermissionList,
    ),
    Route(
        method="GET", path="/api/rights", handler=show_rights, permission="permission.read",
        summary="What one may do in a project", answer=Rights, refusals=(404,),
    ),
]  # fmt: skip
