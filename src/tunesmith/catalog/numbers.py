"""Gives a new model version its number, and moves it through its lifecycle. Both inside a caller's transaction.

A number is never given twice in a version set, also when its job never started or its version was deleted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tunesmith.errors import TunesmithError
from tunesmith.spec.catalog import VERSION_MOVES, VersionState
from tunesmith.storage.tables import MODEL_VERSIONS, VERSION_SETS

ADD = MODEL_VERSIONS.insert()
ABOVE = sa.bindparam("above", type_=sa.Integer)
# One statement takes the number: two transactions that meet here wait for each other.
TAKE_NUMBER = (
    VERSION_SETS.update()
    .where(VERSION_SETS.c.project == sa.bindparam("of_project"), VERSION_SETS.c.name == sa.bindparam("of_set"))
    .values(last_number=sa.case((VERSION_SETS.c.last_number > ABOVE, VERSION_SETS.c.last_number), else_=ABOVE) + 1)
    .returning(VERSION_SETS.c.set_id, VERSION_SETS.c.last_number)
)


def add_version(
    connection: sa.Connection, *, project: str, version_set: str, above: int, created_at: str, **fields: Any
) -> str:
    """A new version in state CREATING, its set made if need be. Returns its name, `set:number`.

    above: a number that is taken although the database does not know it (results of a lost database).
    fields: name, description, base_name, results_uri and the other columns of `model_versions`.
    """
    set_id, number = _next_number(connection, project=project, version_set=version_set, above=above, now=created_at)
    model_version = f"{version_set}:{number}"
    connection.execute(
        ADD,
        {"tags": "{}", "description": ""}
        | fields
        | {
            "set_id": set_id,
            "number": number,
            "project": project,
            "model_version": model_version,
            "state": VersionState.CREATING,
            "is_losing_bytes": False,
            "created_at": created_at,
            "changed_at": created_at,
        },
    )
    return model_version


def _next_number(connection: sa.Connection, *, project: str, version_set: str, above: int, now: str) -> tuple[int, int]:
    taken = {"of_project": project, "of_set": version_set, "above": above}
    row = connection.execute(TAKE_NUMBER, taken).one_or_none()
    if row is None:
        row = connection.execute(
            VERSION_SETS.insert()
            .values(
                project=project,
                name=version_set,
                description="",
                created_at=now,
                last_number=above + 1,
                alias_changes=0,
            )
            .returning(VERSION_SETS.c.set_id, VERSION_SETS.c.last_number)
        ).one()
    return row.set_id, row.last_number


def move_version(
    connection: sa.Connection, *, project: str, model_version: str, state: VersionState, now: str, **fields: Any
) -> None:
    """Change the state along the table of moves. Raises TunesmithError for a move that it does not hold."""
    allowed = [before for before, moves in VERSION_MOVES.items() if state in moves]
    changed = connection.execute(
        MODEL_VERSIONS.update()
        .where(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.model_version == model_version)
        .where(MODEL_VERSIONS.c.state.in_(allowed))
        .values(fields | {"state": state, "changed_at": now})
    )
    if changed.rowcount != 1:
        raise TunesmithError(
            "FORBIDDEN_MOVE", f"Model version {model_version} cannot become {state} from its state.", field="state"
        )
