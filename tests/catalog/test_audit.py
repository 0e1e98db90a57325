from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from tests.catalog.conftest import State
from tunesmith.catalog import audit
from tunesmith.storage.tables import AUDIT


def test_what_is_undone_leaves_no_trace_and_what_stands_is_told_newest_first(state: State) -> None:
    with state.database.write() as connection:
        audit.record(connection, "ada", "job.submit", "job-1")
        connection.rollback()
    with state.database.write() as connection:
        audit.record(connection, "ada", "job.submit", "job-2", {"priority": 3})
        audit.record(connection, "bob", "version.delete", "bot:1")
    with state.database.read() as connection:
        every = audit.list_audit(connection).items
        assert [(each.actor, each.object, each.detail) for each in every] == [
            ("bob", "bot:1", None),
            ("ada", "job-2", {"priority": 3}),
        ]
        assert [each.object for each in audit.list_audit(connection, action="job").items] == ["job-2"]
        assert [each.object for each in audit.list_audit(connection, actor="bob").items] == ["bot:1"]
        assert audit.list_audit(connection, object="nothing").items == []


@pytest.mark.parametrize("change", [AUDIT.update().values(actor="nobody"), AUDIT.delete()])
def test_nothing_in_the_log_is_changed_or_removed(state: State, change: sa.Executable) -> None:
    with state.database.write() as connection:
        audit.record(connection, "ada", "job.submit", "job-1")
    with state.database.write() as connection, pytest.raises(IntegrityError, match="append-only"):
        connection.execute(change)
