from __future__ import annotations

import sqlalchemy as sa

from tunesmith.catalog import audit, tokens
from tunesmith.spec.catalog import NewToken
from tunesmith.storage.tables import TOKENS


def test_a_secret_opens_its_token_and_is_kept_nowhere(connection: sa.Connection) -> None:
    token, secret = tokens.create_token(connection, NewToken(name="laptop"), actor="a")
    assert tokens.token_of_secret(connection, secret) == token
    row = connection.execute(sa.select(TOKENS)).one()
    assert secret not in str(row._asdict()) and secret.removeprefix(tokens.PREFIX) not in str(row._asdict())
    assert secret not in str(audit.list_audit(connection).items)
    for wrong in (secret[:-1], secret + "x", "", row.sha256, token.token_id, "\udcff"):
        assert tokens.token_of_secret(connection, wrong) is None


def test_two_secrets_are_never_equal(connection: sa.Connection) -> None:
    made = {tokens.create_token(connection, NewToken(name="x"), actor="a")[1] for _ in range(50)}
    assert len(made) == 50 and min(map(len, made)) >= 43


def test_a_revoked_token_opens_nothing_and_stays_in_the_list(connection: sa.Connection) -> None:
    token, secret = tokens.create_token(connection, NewToken(name="x"), actor="a")
    first = tokens.revoke_token(connection, token.token_id, actor="a")
    assert tokens.token_of_secret(connection, secret) is None
    assert tokens.revoke_token(connection, token.token_id, actor="a") == first
    assert [each.state for each in tokens.list_tokens(connection).items] == ["revoked"]


def test_an_expired_token_opens_nothing(connection: sa.Connection) -> None:
    token, secret = tokens.create_token(connection, NewToken(name="x", days=1), actor="a")
    assert tokens.token_of_secret(connection, secret) is not None
    connection.execute(TOKENS.update().values(expires_at="2020-01-01T00:00:00.000Z"))
    assert tokens.token_of_secret(connection, secret) is None
    assert tokens.find_token(connection, token.token_id).state == "expired"
