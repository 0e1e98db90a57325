"""Version sets: their versions over time, and their aliases, which are promoted here."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.server.api import versions as routes
from tunesmith.server.pages import shown
from tunesmith.server.pages.page import View, action, done, is_part, page, query_text
from tunesmith.server.pages.pictures import Series, line_chart
from tunesmith.server.pages.words import CHARTS
from tunesmith.server.service import CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, SearchQuery, SetChange, SetNumber, VersionQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import VersionState
from tunesmith.spec.faults import checked

CHARTED = 100


class SetListQuery(Spec):
    search: str = Field("", max_length=200)
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


class SetQuery(Spec):
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def set_list(call: CallNow, query: Annotated[SetListQuery, Query()]) -> View:
    asked = {"search": query.search.strip() or None, "after": query.after or None}
    found = routes.list_version_sets(call, SearchQuery.model_validate(asked))
    context = {
        "sets": found.version_sets,
        "next": found.next,
        "query": query,
        "kept": query_text(search=query.search),
    }
    template = "version_sets/cards.html" if is_part(call.request) else "version_sets/list.html"
    return View(template=template, context=context)


def set_page(call: CallNow, version_set: str, query: Annotated[SetQuery, Query()]) -> View:
    view = routes.show_version_set(call, version_set)
    asked = {"set": view.name, "limit": CHARTED, "after": query.after or None}
    found = routes.list_versions(call, VersionQuery.model_validate(asked))
    points = [(each.number, each.best.loss) for each in found.versions[::-1] if each.best is not None]
    context = {
        "set": view,
        "versions": found.versions,
        "next": found.next,
        "active": [each for each in found.versions if each.state is VersionState.ACTIVE],
        "chart": line_chart(
            [Series(name=CHARTS["validation_loss"], tone="validation", points=points, is_marked=True)],
            label=CHARTS["of_a_set"].format(set=view.name), x_label=CHARTS["version"], x_told=CHARTS["version"],
            told=shown.number,
        )
        if len(points) > 1
        else "",
    }  # fmt: skip
    return View(template="version_sets/show.html", context=context)


def describe_set(call: CallNow, version_set: str) -> Response:
    routes.change_version_set(
        call, version_set, checked(SetChange, {"description": call.form.text("description") or ""})
    )
    return done(call, f"/version-sets/{quote(version_set)}")


def promote(call: CallNow, version_set: str) -> Response:
    """Set an alias or move it."""
    target = checked(SetNumber, {"number": call.form.text("number")})
    routes.set_alias(call, version_set, call.form.text("alias") or "", target)
    back = call.form.text("back") == "version"
    return done(call, f"/versions/{version_set}:{target.number}" if back else f"/version-sets/{quote(version_set)}")


def remove_alias(call: CallNow, version_set: str, alias: str) -> Response:
    routes.remove_alias(call, version_set, alias)
    return done(call, f"/version-sets/{quote(version_set)}")


SET = "/version-sets/{version_set}"
ROUTES = [
    page("/version-sets", set_list, permission="version.read", summary="Version sets"),
    page(SET, set_page, permission="version.read", summary="A version set"),
    action(f"{SET}/describe", describe_set, permission="version.change", summary="Describe a version set"),
    action(f"{SET}/aliases", promote, permission="alias.set", summary="Set or move an alias"),
    action(f"{SET}/aliases/{{alias}}/remove", remove_alias, permission="alias.remove", summary="Remove an alias"),
]
