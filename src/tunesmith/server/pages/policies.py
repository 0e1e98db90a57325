"""Admin: projects and policies; and the switch in every page's header that goes to another project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.catalog.projects import unknown_project
from tunesmith.errors import TunesmithError
from tunesmith.server import auth
from tunesmith.server.api import access as routes
from tunesmith.server.errors import status_of
from tunesmith.server.pages.page import View, action, done, page, query_text, redirect
from tunesmith.server.service import Call, CallNow
from tunesmith.server.sessions import set_project
from tunesmith.spec.access import ANY, USERS, NewPolicy, NewProject, PolicyChange, PolicyView, ProjectChange
from tunesmith.spec.api import CURSOR_CHARACTERS, SearchQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import MAXIMUM_PAGE
from tunesmith.spec.faults import checked

NEW_PROJECT = {"name": "", "description": ""}
LISTS = ("who", "may", "projects")
NEW_POLICY = {"name": "", "who": USERS, "may": "use", "projects": "", "description": ""}
ALL = SearchQuery.model_validate({"limit": MAXIMUM_PAGE})


class ProjectsQuery(Spec):
    search: str = Field("", max_length=200)
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


class PoliciesQuery(Spec):
    """project: the form begins with it."""

    project: str = Field("", max_length=63, alias="for")
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def _status(error: TunesmithError | None) -> int:
    return 200 if error is None else status_of(error)


# ---- projects


def project_list(call: CallNow, query: Annotated[ProjectsQuery, Query()]) -> View:
    return _projects(call, query)


def _projects(call: Call, query: ProjectsQuery | None = None, **more: Any) -> View:
    query = query or ProjectsQuery.model_validate({})
    asked = SearchQuery.model_validate({"search": query.search.strip() or None, "after": query.after or None})
    found = routes.list_projects(call, asked)
    context = {
        "projects": found.projects,
        "next": found.next,
        "kept": query_text(search=query.search),
        "values": NEW_PROJECT,
        "error": None,
    }
    return View(template="admin/projects.html", context=context | more, status=_status(more.get("error")))


def add_project(call: CallNow) -> View | Response:
    given = call.form.texts()
    fields = {name: given[name].strip() for name in NEW_PROJECT if name in given}
    try:
        routes.add_project(call, checked(NewProject, fields))
    except TunesmithError as error:
        return _projects(call, error=error, values=NEW_PROJECT | fields)
    return redirect(f"{PROJECTS}/{quote(fields['name'])}")


def project_page(call: CallNow, name: str) -> View:
    return _project(call, name)


def _project(call: Call, name: str, **more: Any) -> View:
    it = routes.show_project(call, name)
    naming: list[PolicyView] = []
    if auth.may(call.principal, "policy.read"):
        naming = [each for each in routes.list_policies(call, ALL).policies if {name, ANY} & set(each.projects)]
    context = {"it": it, "policies": naming, "values": {"description": it.description}, "error": None}
    return View(template="admin/project.html", context=context | more, status=_status(more.get("error")))


def change_project(call: CallNow, name: str) -> View | Response:
    description = call.form.texts().get("description", "")
    try:
        routes.change_project(call, name, checked(ProjectChange, {"description": description}))
    except TunesmithError as error:
        return _project(call, name, error=error, values={"description": description})
    return redirect(f"{PROJECTS}/{quote(name)}")


def delete_project(call: CallNow, name: str) -> Response:
    routes.remove_project(call, name)
    return done(call, PROJECTS)


def choose_project(call: CallNow) -> Response:
    """Every page of this browser's session is of that project from now on. An object's own page is none there."""
    from tunesmith.server.pages import ADMIN, NAVIGATION  # they import us

    project = call.form.text("project") or ""
    if project not in call.principal.projects:
        raise unknown_project(project, call.principal.projects)
    lists = {entry.path for group in (*NAVIGATION, ADMIN) for entry in group}
    target = call.form.text("next") or "/"
    response = redirect(target if target in lists else "/")
    set_project(response, call.request, project)
    return response


# ---- policies


def policy_list(call: CallNow, query: Annotated[PoliciesQuery, Query()]) -> View:
    return _policies(call, query)


def _policies(call: Call, query: PoliciesQuery | None = None, **more: Any) -> View:
    query = query or PoliciesQuery.model_validate({})
    found = routes.list_policies(call, SearchQuery.model_validate({"after": query.after or None}))
    values = NEW_POLICY | {"projects": query.project or call.project}
    context = {"policies": found.policies, "next": found.next, "values": values, "error": None}
    return View(template="admin/policies.html", context=context | more, status=_status(more.get("error")))


def add_policy(call: CallNow) -> View | Response:
    given = call.form.texts()
    fields = _fields(given) | ({"name": given["name"].strip()} if "name" in given else {})
    try:
        routes.add_policy(call, checked(NewPolicy, fields))
    except TunesmithError as error:
        return _policies(call, error=error, values={name: given.get(name, "") for name in NEW_POLICY})
    return redirect(f"{POLICIES}/{quote(fields['name'])}")


def _fields(given: Mapping[str, str]) -> dict[str, Any]:
    """The form's lists have an entry a line."""
    lists = {name: [line.strip() for line in given.get(name, "").splitlines() if line.strip()] for name in LISTS}
    return {**lists, "description": given.get("description", "")}


def policy_page(call: CallNow, name: str) -> View:
    return _policy(call, name)


def _policy(call: Call, name: str, **more: Any) -> View:
    it = routes.show_policy(call, name)
    summaries: dict[str, list[str]] = {}
    for route in call.request.app.state.routes:
        summaries.setdefault(route.permission, []).append(route.summary)
    allowed = sorted({each for entry in it.may for each in auth.granted(entry)} & summaries.keys())
    context = {
        "it": it,
        "values": {each: "\n".join(getattr(it, each)) for each in LISTS} | {"description": it.description},
        "allows": [(each, list(dict.fromkeys(summaries[each]))) for each in allowed],
        "error": None,
    }
    return View(template="admin/policy.html", context=context | more, status=_status(more.get("error")))


def change_policy(call: CallNow, name: str) -> View | Response:
    given = call.form.texts()
    try:
        routes.change_policy(call, name, checked(PolicyChange, _fields(given)))
    except TunesmithError as error:
        values = {each: given.get(each, "") for each in NEW_POLICY}
        return _policy(call, name, error=error, values=values)
    return redirect(f"{POLICIES}/{quote(name)}")


def delete_policy(call: CallNow, name: str) -> Response:
    routes.remove_policy(call, name)
    return done(call, POLICIES)


PROJECTS, POLICIES = "/admin/projects", "/admin/policies"
PROJECT, POLICY = f"{PROJECTS}/{{name}}", f"{POLICIES}/{{name}}"
ROUTES = [
    action("/project", choose_project, permission="project.read", summary="Go to another project"),
    page(PROJECTS, project_list, permission="project.read", summary="Projects"),
    action(PROJECTS, add_project, permission="project.create", summary="Make a project"),
    page(PROJECT, project_page, permission="project.read", summary="A project"),
    action(PROJECT, change_project, permission="project.change", summary="Change a project"),
    action(f"{PROJECT}/delete", delete_project, permission="project.delete", summary="Delete a project"),
    page(POLICIES, policy_list, permission="policy.read", summary="Policies"),
    action(POLICIES, add_policy, permission="policy.create", summary="Make a policy"),
    page(POLICY, policy_page, permission="policy.read", summary="A policy"),
    action(POLICY, change_policy, permission="policy.change", summary="Change a policy"),
    action(f"{POLICY}/delete", delete_policy, permission="policy.delete", summary="Delete a policy"),
]
