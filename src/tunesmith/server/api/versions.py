"""Model versions, version sets, aliases, comparison, files and export."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy as sa
from fastapi import Body, Query
from starlette.responses import Response

from tunesmith.catalog import compare, lineage, sets, versions
from tunesmith.catalog.artifacts import remove_bytes
from tunesmith.errors import Conflict, Unknown
from tunesmith.jobs.adapters import add_adapter, publish_adapter
from tunesmith.server.artifacts import artifact_file, artifact_zip, manifest_file
from tunesmith.server.inputs import check_place, inspecting
from tunesmith.server.once import IdempotencyKey, made_before, once
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    CompareQuery,
    DeleteQuery,
    FileList,
    SearchQuery,
    SetChange,
    SetNumber,
    VersionPage,
    VersionQuery,
    VersionSetPage,
)
from tunesmith.spec.artifacts import MANIFEST_NAME, Manifest
from tunesmith.spec.catalog import (
    AliasView,
    Comparison,
    LineageGraph,
    NewVersion,
    NounChange,
    VersionDetail,
    VersionMetrics,
    VersionSetView,
    VersionView,
)
from tunesmith.spec.faults import shown

# ---- versions


def list_versions(call: CallNow, query: Annotated[VersionQuery, Query()]) -> VersionPage:
    """The newest first; deleted ones only where `state` asks for them."""
    with call.database.read() as connection:
        page = versions.list_versions(
            connection, project=call.project, search=query.search, version_set=query.set, state=query.state,
            tag=query.tag, after=query.after, limit=query.limit,
        )  # fmt: skip
    return VersionPage(versions=page.items, next=page.next)


def register_version(
    call: CallNow, new: Annotated[NewVersion, Body()], idempotency_key: IdempotencyKey = None
) -> Response:
    """An adapter in PEFT's format that was trained elsewhere becomes a version of a set.

    It is copied, held against its base (by the digest that its file names, else by every matrix's shape), and is ACTIVE
    when this answers. What it was measured on is taken over where it is told.
    """
    route = "POST /api/versions"
    if (before := made_before(call, idempotency_key, new, route=route)) is not None:
        return created(show_version(call, before), is_new=False)
    for field in ("path", "results"):
        text = getattr(new, field)
        if text is not None:
            check_place(call, text, field=field)
    with inspecting(call):
        found = publish_adapter(
            new, state=call.state, environment=call.service.environment, project=call.project
        )  # fmt: skip
    above = call.state.highest_result(new.version_set, project=call.project)

    def make(connection: sa.Connection) -> str:
        return add_adapter(connection, found, project=call.project, actor=call.actor, above=above)

    name, is_new = once(call, idempotency_key, new, route=route, make=make)
    return created(show_version(call, name), is_new=is_new)


def show_version(call: CallNow, version: str) -> VersionDetail:
    """By `set:number` or `set@alias`: lineage, metrics, verdict, files."""
    with call.database.read() as connection:
        return versions.describe_version(connection, version, project=call.project)


def change_version(call: CallNow, version: str, change: Annotated[NounChange, Body()]) -> VersionView:
    """Change its name, description or tags."""
    return call.database.write_grouped(
        lambda connection: versions.change_version(connection, version, change, project=call.project, actor=call.actor)
    )


def delete_version(call: CallNow, version: str, query: Annotated[DeleteQuery, Query()]) -> None:
    """Delete it, with `bytes=true` its files too. 409 while an alias points at it or a job uses it.

    Where its store does not answer, the version is deleted and its files are not yet: the same request goes on.
    """

    def delete(connection: sa.Connection) -> VersionView:
        return versions.delete_version(
            connection, version, with_bytes=query.bytes, project=call.project, actor=call.actor
        )

    deleted = call.database.write_grouped(delete)
    if query.bytes:
        remove_bytes(
            call.database, deleted.model_version, project=call.project, environment=call.service.environment
        )  # fmt: skip


def show_metrics(call: CallNow, version: str) -> VersionMetrics:
    """Per epoch, while its job trains too; epoch 0 is the base."""
    with call.database.read() as connection:
        return versions.read_metrics(connection, version, project=call.project)


def list_files(call: CallNow, version: str) -> FileList:
    """The files of an ACTIVE version, with their sizes and hashes."""
    return FileList(files=_published(call, version)[1].files)


def download_file(call: CallNow, version: str, path: str) -> Response:
    """One file of an ACTIVE version, by its path in the list, or `manifest.json`, which lists them."""
    uri, manifest, _ = _published(call, version)
    if path == MANIFEST_NAME:
        return manifest_file(manifest)
    file = next((file for file in manifest.files if file.path == path), None)
    if file is None:
        raise Unknown(
            "UNKNOWN_FILE", f"{shown(path)} is no file of {shown(version)}.", field="path", hint="List its files."
        )
    return artifact_file(call, uri, file)


def export_version(call: CallNow, version: str) -> Response:
    """All files of an ACTIVE version as one zip."""
    uri, manifest, name = _published(call, version)
    return artifact_zip(call, uri, manifest, name=name)


def show_lineage(call: CallNow, version: str) -> LineageGraph:
    """Its base, its datasets, the versions it went on from, and those that went on from it."""
    with call.database.read() as connection:
        return lineage.read_lineage(connection, version, project=call.project)


def _published(call: Call, version: str) -> tuple[str, Manifest, str]:
    with call.database.read() as connection:
        manifest = versions.read_manifest(connection, version, project=call.project)
        found = versions.find_version(connection, version, project=call.project)
    if found.artifact_uri is None:
        raise Conflict("VERSION_NOT_ACTIVE", f"{found.model_version} has no files.", field="model_version")
    return found.artifact_uri, manifest, found.model_version.replace(":", "-")


def compare_versions(call: CallNow, query: Annotated[CompareQuery, Query()]) -> Comparison:
    """Settings, data and scores of two versions; only what differs."""
    with call.database.read() as connection:
        return compare.compare_versions(connection, query.left, query.right, project=call.project)


# ---- sets and aliases


def list_version_sets(call: CallNow, query: Annotated[SearchQuery, Query()]) -> VersionSetPage:
    """By name, with their aliases."""
    with call.database.read() as connection:
        page = sets.list_sets(
            connection, project=call.project, search=query.search, after=query.after, limit=query.limit
        )
    return VersionSetPage(version_sets=page.items, next=page.next)


def show_version_set(call: CallNow, version_set: str) -> VersionSetView:
    """A version set with its aliases."""
    with call.database.read() as connection:
        return sets.find_set(connection, version_set, project=call.project)


def change_version_set(call: CallNow, version_set: str, change: Annotated[SetChange, Body()]) -> VersionSetView:
    """Change its description."""
    return call.database.write_grouped(
        lambda connection: sets.describe_set(
            connection, version_set, change.description, project=call.project, actor=call.actor
        )
    )


def set_alias(call: CallNow, version_set: str, alias: str, target: Annotated[SetNumber, Body()]) -> AliasView:
    """Let an alias name a version of the set, or move it to another one."""
    return call.database.write_grouped(
        lambda connection: sets.set_alias(
            connection, version_set, alias, number=target.number, project=call.project, actor=call.actor
        )
    )


def remove_alias(call: CallNow, version_set: str, alias: str) -> None:
    """Take an alias away; its version stays."""
    call.database.write_grouped(
        lambda connection: sets.remove_alias(connection, version_set, alias, project=call.project, actor=call.actor)
    )


VERSION = "/api/versions/{version}"
SET = "/api/version-sets/{version_set}"
BINARY = {"schema": {"type": "string", "format": "binary"}}
ROUTES = [
    Route(
        method="GET", path="/api/versions", handler=list_versions, permission="version.read",
        summary="List model versions", answer=VersionPage,
    ),
    Route(
        method="POST", path="/api/versions", handler=register_version, permission="version.register",
        summary="Register an adapter that was trained elsewhere", answer=VersionDetail, status=201, statuses=(200,),
        refusals=(404, 409), body="json",
        request_example={"path": "adapters:support/final", "version_set": "support-bot", "base": "our-base"},
    ),
    Route(
        method="GET", path=VERSION, handler=show_version, permission="version.read", summary="Show a model version",
        answer=VersionDetail, refusals=(404,),
    ),
    Route(
        method="PATCH", path=VERSION, handler=change_version, permission="version.change",
        summary="Change a model version", answer=VersionView, refusals=(404, 409), body="json",
        request_example={"description": "The one that answers in French", "tags": {"stage": "trial"}},
    ),
    Route(
        method="DELETE", path=VERSION, handler=delete_version, permission="version.delete",
        summary="Delete a model version", status=204, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{VERSION}/metrics", handler=show_metrics, permission="version.read",
        summary="Metrics of a model version", answer=VersionMetrics, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{VERSION}/lineage", handler=show_lineage, permission="version.read",
        summary="Where a model version comes from", answer=LineageGraph, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{VERSION}/files", handler=list_files, permission="version.download",
        summary="Files of a model version", answer=FileList, refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{VERSION}/files/{{path:path}}", handler=download_file, permission="version.download",
        summary="Download a file of a model version", content={"application/octet-stream": BINARY},
        refusals=(404, 409),
    ),
    Route(
        method="GET", path=f"{VERSION}/export", handler=export_version, permission="version.download",
        summary="Download a model version as a zip", content={"application/zip": BINARY}, refusals=(404, 409),
    ),
    Route(
        method="GET", path="/api/compare", handler=compare_versions, permission="version.read",
        summary="Compare two model versions", answer=Comparison, refusals=(404,),
    ),
    Route(
        method="GET", path="/api/version-sets", handler=list_version_sets, permission="version.read",
        summary="List version sets", answer=VersionSetPage,
    ),
    Route(
        method="GET", path=SET, handler=show_version_set, permission="version.read", summary="Show a version set",
        answer=VersionSetView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=SET, handler=change_version_set, permission="version.change",
        summary="Change a version set", answer=VersionSetView, refusals=(404,), body="json",
        request_example={"description": "Answers for the help desk"},
    ),
    Route(
        method="PUT", path=f"{SET}/aliases/{{alias}}", handler=set_alias, permission="alias.set",
        summary="Set or move an alias", answer=AliasView, refusals=(404, 409), body="json",
        request_example={"number": 3},
    ),
    Route(
        method="DELETE", path=f"{SET}/aliases/{{alias}}", handler=remove_alias, permission="alias.remove",
        summary="Remove an alias", status=204, refusals=(404,),
    ),
]  # fmt: skip
