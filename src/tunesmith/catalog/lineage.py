"""Where a model version comes from and what went on from it, as a graph: bases, datasets, versions.

In: a version's name. Out: nodes and edges; every edge leads from what was used to what was made with it. Lineage that
names what is no longer in the catalog is kept: such a node has no reference. Before a job has read its inputs, what it
asked for stands there with what the catalog knows of it. Drawing it is not this file's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from tunesmith.bundled import MODEL_NAME
from tunesmith.catalog.models import find_model
from tunesmith.catalog.versions import SHOWN_STATES, resolve
from tunesmith.errors import Unknown
from tunesmith.spec.catalog import Lineage, LineageDataset, LineageEdge, LineageGraph, LineageNode, VersionState
from tunesmith.spec.datasets import Role
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.storage.tables import BASE_MODELS, DATASETS, JOBS, MODEL_VERSIONS

MAXIMUM_ANCESTORS = 12
MAXIMUM_DESCENDANTS = 24
COLUMNS = [MODEL_VERSIONS.c[name] for name in ("model_version", "base_name", "parent", "lineage", "state", "outcome")]


def read_lineage(connection: sa.Connection, name: str, *, project: str) -> LineageGraph:
    """Raises as `versions.find_version`."""
    asked = resolve(connection, name, project=project)
    line, has_older = _ancestors(connection, asked, project=project)
    if not line:
        raise Unknown(
            "UNKNOWN_VERSION", f"There is no model version {asked[:120]!r} here.", field="model_version",
            hint="List the versions; each is named SET:NUMBER.",
        )  # fmt: skip
    later, has_more = _descendants(connection, asked, project=project)
    lineages = {row.model_version: Lineage.model_validate_json(row.lineage) if row.lineage else None for row in line}
    graph = _Graph(connection, project, lineages.values())
    for row in line:
        graph.add_version(row, is_asked=row.model_version == asked)
        lineage = lineages[row.model_version]
        if row.parent is None or row is line[0]:  # a child's base is its parent's
            graph.add_base(row.base_name, lineage, of=row.model_version)
        for dataset in lineage.datasets if lineage is not None else []:
            graph.add_dataset(dataset, of=row.model_version)
        if lineage is None:
            graph.add_asked_datasets(of=row.model_version)
    for row in later:
        graph.add_version(row)
    shown = {row.model_version for row in (*line, *later)}
    for row in (*line, *later):
        if row.parent in shown:
            graph.edges.append(
                LineageEdge(source=f"version {row.parent}", target=f"version {row.model_version}", role="parent")
            )
    return LineageGraph(
        model_version=asked, nodes=list(graph.nodes.values()), edges=graph.edges, is_cut=has_older or has_more
    )


def _ancestors(connection: sa.Connection, asked: str, *, project: str) -> tuple[list[sa.Row[Any]], bool]:
    """The version and those it went on from, the oldest first; whether there are older ones."""
    line: list[sa.Row[Any]] = []
    wanted: str | None = asked
    while wanted is not None and len(line) <= MAXIMUM_ANCESTORS:
        row = connection.execute(
            sa.select(*COLUMNS).where(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.model_version == wanted)
        ).one_or_none()
        if row is None:
            break
        line.append(row)
        wanted = row.parent
    return line[::-1], bool(line) and line[-1].parent is not None and len(line) > MAXIMUM_ANCESTORS


def _descendants(connection: sa.Connection, asked: str, *, project: str) -> tuple[list[sa.Row[Any]], bool]:
    """What went on from it, generation by generation; whether there is more."""
    found: list[sa.Row[Any]] = []
    parents = [asked]
    while parents:
        room = MAXIMUM_DESCENDANTS - len(found)
        rows = connection.execute(
            sa.select(*COLUMNS)
            .where(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.parent.in_(parents))
            .where(MODEL_VERSIONS.c.state != VersionState.DELETED)
            .order_by(MODEL_VERSIONS.c.sequence)
            .limit(room + 1)
        ).all()
        found += rows[:room]
        if len(rows) > room:
            return found, True
        parents = [row.model_version for row in rows]
    return found, False


NOT_READ = "read when its job starts"
HASH_CHARACTERS = 12


class _Graph:
    """Nodes as they are added, each once. What the catalog still has is looked up once for all of them."""

    def __init__(self, connection: sa.Connection, project: str, lineages: Iterable[Lineage | None]) -> None:
        self._connection, self._project = connection, project
        known = [lineage for lineage in lineages if lineage is not None]
        ids = {dataset.dataset_id for lineage in known for dataset in lineage.datasets} - {None}
        datasets = sa.select(DATASETS.c.dataset_id).where(DATASETS.c.project == project, DATASETS.c.dataset_id.in_(ids))
        self._datasets = set(connection.execute(datasets).scalars())
        bases = sa.select(BASE_MODELS.c.name).where(
            BASE_MODELS.c.project == project, BASE_MODELS.c.name.in_({lineage.base_name for lineage in known})
        )
        self._bases = {*connection.execute(bases).scalars(), MODEL_NAME}
        self.nodes: dict[str, LineageNode] = {}
        self.edges: list[LineageEdge] = []

    def add_version(self, row: sa.Row[Any], *, is_asked: bool = False) -> None:
        state = SHOWN_STATES[VersionState(row.state)]
        self._add(
            LineageNode(
                id=f"version {row.model_version}", kind="version", name=row.model_version,
                detail=f"{state}, {row.outcome}" if row.outcome else state, is_asked=is_asked,
                reference=None if row.state == VersionState.DELETED else row.model_version,
            )
        )  # fmt: skip

    def add_base(self, name: str, lineage: Lineage | None, *, of: str) -> None:
        digest = lineage.base_digest if lineage is not None else self._registered_digest(name)
        is_here = name in self._bases or (lineage is None and digest is not None)
        told = [f"digest {digest[:HASH_CHARACTERS]}" if digest is not None else NOT_READ]
        if not is_here:
            told.append("not registered")
        self._add(
            LineageNode(
                id=f"base {name}", kind="base", name=name, is_asked=False, reference=name if is_here else None,
                detail=", ".join(told),
            )
        )  # fmt: skip
        self.edges.append(LineageEdge(source=f"base {name}", target=f"version {of}", role="base"))

    def add_dataset(self, dataset: LineageDataset, *, of: str) -> None:
        node = f"dataset {dataset.dataset_id or dataset.content_hash}"
        is_here = dataset.dataset_id in self._datasets
        rows = _rows(dataset.rows)
        detail = rows if is_here else f"{rows}, {'deleted' if dataset.dataset_id else 'a file of its own'}"
        self._add(
            LineageNode(
                id=node, kind="dataset", is_asked=False, name=dataset.name, detail=detail,
                reference=dataset.dataset_id if is_here else None,
            )
        )  # fmt: skip
        self.edges.append(LineageEdge(source=node, target=f"version {of}", role=dataset.role))

    def add_asked_datasets(self, *, of: str) -> None:
        """What the job of a version asked for, which it has not read yet: the catalog knows the rows of its own."""
        text = self._connection.execute(
            sa.select(JOBS.c.request).where(JOBS.c.project == self._project, JOBS.c.model_version == of)
        ).scalar()
        request = FinetuneRequest.model_validate_json(text) if text is not None else None
        asked: dict[Role, str | None] = {}
        if request is not None:
            asked = {
                "training": request.dataset,
                "validation": request.validation_dataset,
                "test": request.test_dataset,
            }
        for role, named in asked.items():
            if named is None:
                continue
            row = self._connection.execute(
                sa.select(DATASETS.c.name, DATASETS.c.rows, DATASETS.c.sha256).where(
                    DATASETS.c.project == self._project, DATASETS.c.dataset_id == named
                )
            ).one_or_none()
            name, detail = named.rstrip("/").rpartition("/")[2] or named, NOT_READ
            if row is not None:
                name, detail = row.name, f"{_rows(row.rows)}, SHA-256 {row.sha256[:HASH_CHARACTERS]}"
            self._add(
                LineageNode(
                    id=f"dataset {named}", kind="dataset", is_asked=False, name=name, detail=detail,
                    reference=named if row is not None else None,
                )
            )  # fmt: skip
            self.edges.append(LineageEdge(source=f"dataset {named}", target=f"version {of}", role=role))

    def _registered_digest(self, name: str) -> str | None:
        try:
            return find_model(self._connection, name).facts.digest
        except Unknown:
            return None

    def _add(self, node: LineageNode) -> None:
        self.nodes.setdefault(node.id, node)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
