"""One box for everything: what names, descriptions and ids hold, a group a noun, each with the way to all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import Query
from pydantic import Field

from tunesmith.server.api.access import list_projects
from tunesmith.server.api.datasets import list_datasets
from tunesmith.server.api.explorer import explore_models
from tunesmith.server.api.jobs import list_jobs
from tunesmith.server.api.locations import list_locations
from tunesmith.server.api.versions import list_version_sets, list_versions
from tunesmith.server.auth import may
from tunesmith.server.pages import shown, words
from tunesmith.server.pages.page import View, is_part, page
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import JobQuery, SearchQuery, TaggedQuery, VersionQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.explorer import ExplorerQuery

SHOWN = 6


class SearchForm(Spec):
    q: str = Field("", max_length=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    title: str
    path: str
    told: str  # what tells it from others of its kind
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """permission: without it the group is left out."""

    title: str
    icon: str
    permission: str
    all_path: str  # its list, filtered by what is appended
    find: Callable[[Call, str], list[Hit]]


def _asked(text: str) -> dict[str, str | int]:
    return {"search": text, "limit": SHOWN + 1}


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _models(call: Call, text: str) -> list[Hit]:
    found = explore_models(call, ExplorerQuery.model_validate(_asked(text)))
    return [
        Hit(title=each.title, path=f"/models/{quote(each.name)}", told=", ".join(str(it.label) for it in each.labels))
        for each in found.cards
    ]


def _datasets(call: Call, text: str) -> list[Hit]:
    found = list_datasets(call, TaggedQuery.model_validate(_asked(text)))
    return [
        Hit(
            title=each.name,
            path=f"/datasets/{each.dataset_id}",
            told=_joined(shown.plural(each.rows, "row"), each.description),
        )
        for each in found.datasets
    ]


def _jobs(call: Call, text: str) -> list[Hit]:
    found = list_jobs(call, JobQuery.model_validate(_asked(text)))
    return [
        Hit(
            title=each.name,
            path=f"/jobs/{each.job_id}",
            told=_joined(each.job_id, each.model_version),
            state=each.state,
        )
        for each in found.jobs
    ]


def _versions(call: Call, text: str) -> list[Hit]:
    found = list_versions(call, VersionQuery.model_validate(_asked(text)))
    return [
        Hit(
            title=each.model_version,
            path=f"/versions/{each.model_version}",
            told=_joined(each.name, f"of {each.base_name}"),
            state=each.state,
        )
        for each in found.versions
    ]


def _sets(call: Call, text: str) -> list[Hit]:
    found = list_version_sets(call, SearchQuery.model_validate(_asked(text)))
    return [
        Hit(
            title=each.name,
            path=f"/version-sets/{each.name}",
            told=_joined(shown.plural(each.versions, "version"), each.description),
        )
        for each in found.version_sets
    ]


def _locations(call: Call, text: str) -> list[Hit]:
    found = list_locations(call, SearchQuery.model_validate(_asked(text)))
    return [Hit(title=each.name, path=f"/admin/locations/{each.name}", told=each.uri) for each in found.locations]


def _projects(call: Call, text: str) -> list[Hit]:
    found = list_projects(call, SearchQuery.model_validate(_asked(text)))
    return [Hit(title=each.name, path=f"/admin/projects/{each.name}", told=each.description) for each in found.projects]


NOUNS = tuple(
    Noun(title=words.FOUND[name], icon=icon, permission=permission, all_path=all_path, find=find)
    for name, icon, permission, all_path, find in (
        ("models", "bot", "model.read", "/models?search=", _models),
        ("datasets", "database", "dataset.read", "/datasets?search=", _datasets),
        ("jobs", "activity", "job.read", "/jobs?search=", _jobs),
        ("versions", "boxes", "version.read", "/versions?search=", _versions),
        ("sets", "boxes", "version.read", "/version-sets?search=", _sets),
        ("locations", "folder", "location.read", "/admin/locations?search=", _locations),
        ("projects", "layers", "project.read", "/admin/projects?search=", _projects),
    )
)


def search_page(call: CallNow, query: Annotated[SearchForm, Query()]) -> View:
    text = query.q.strip()
    groups = [
        (noun, hits)
        for noun in NOUNS
        if text and may(call.principal, noun.permission) and (hits := noun.find(call, text))
    ]
    context = {"searched": text, "groups": groups, "most": SHOWN}
    return View(template="search/found.html" if is_part(call.request) else "search/page.html", context=context)


ROUTES = [page("/search", search_page, permission="project.read", summary="Search everything")]
