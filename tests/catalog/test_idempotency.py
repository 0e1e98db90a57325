from __future__ import annotations

import pytest
import sqlalchemy as sa

from tunesmith.catalog import idempotency
from tunesmith.errors import Conflict, UsageFault

ASKED = {"actor": "ada", "key": "k", "route": "POST /api/jobs", "body_sha256": "1", "project": "default"}


def test_a_request_again_gets_what_the_first_one_made(connection: sa.Connection) -> None:
    assert idempotency.recall(connection, **ASKED) is None
    idempotency.remember(connection, **ASKED, object_id="job-1")
    assert idempotency.recall(connection, **ASKED) == "job-1"
    assert idempotency.recall(connection, **(ASKED | {"actor": "bob"})) is None
    assert idempotency.recall(connection, **(ASKED | {"project": "other"})) is None, "a key counts in its project"


@pytest.mark.parametrize("change", [{"body_sha256": "2"}, {"route": "POST /api/models"}])
def test_a_key_with_another_request_is_refused(connection: sa.Connection, change: dict[str, str]) -> None:
    idempotency.remember(connection, **ASKED, object_id="job-1")
    with pytest.raises(Conflict) as caught:
        idempotency.recall(connection, **(ASKED | change))
    assert caught.value.code == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "ü", "\0"])
def test_a_key_is_printable_and_short(key: str) -> None:
    with pytest.raises(UsageFault):
        idempotency.check_key(key)
    assert idempotency.check_key("x" * 255)


def test_old_keys_are_forgotten(connection: sa.Connection) -> None:
    idempotency.remember(connection, **ASKED, object_id="job-1")
    assert idempotency.forget(connection, before="2000") == 0
    assert idempotency.forget(connection, before="9999") == 1
    assert idempotency.recall(connection, **ASKED) is None
