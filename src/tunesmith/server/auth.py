"""Who calls, and what they may do: the one place for tokens and roles.

In: the Authorization header of a matched route. Out: a `Principal`, or a refusal. The database holds only the SHA-256
of a token; the home's own token stands in `$TUNESMITH_HOME/token` (mode 0600) for clients of the same user.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from tunesmith.catalog import tokens
from tunesmith.catalog.clock import now
from tunesmith.errors import NotPermitted
from tunesmith.files import fsync_folder, temporary_beside
from tunesmith.jobs.home import Home
from tunesmith.spec.catalog import LOCAL_USER, TokenRole
from tunesmith.storage.database import Database
from tunesmith.storage.tables import TOKENS

ADMINISTRATOR = "admin"
PUBLIC = "public"  # the permission of a route that needs no token
# What fine-tuning takes, on anybody's objects: a server is one team's. Whatever is not named is an administrator's, so
# that a new permission is refused until somebody decides.
USER_MAY = frozenset({
    "alias.remove", "alias.set",
    "dataset.add", "dataset.change", "dataset.delete", "dataset.read",
    "download.cancel", "download.read",
    "hub.read",
    "job.cancel", "job.delete", "job.pause", "job.plan", "job.read", "job.resume", "job.submit",
    "location.browse", "location.read",
    "log.read",
    "model.change", "model.delete", "model.download", "model.read", "model.register", "model.use",
    "network.read",
    "permission.read",
    "session.end",
    "shape.read",
    "system.read",
    "version.change", "version.delete", "version.download", "version.read", "version.register",
})  # fmt: skip
HOME_TOKEN_ID = "home"  # noqa: S105  # an id, no secret
REMEMBERED_SECONDS = 1.0  # how long another process's revocation may take to count
REMEMBERED_TOKENS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The caller of one request. is_local: the home's own token, from this machine: may name paths of it."""

    token_id: str
    name: str
    role: str
    is_local: bool = False

    @property
    def actor(self) -> str:
        """As it stands in `submitted_by`, in the audit and in idempotency keys."""
        return self.name

    def seen_from(self, client: str | None) -> Principal:
        """The same caller as one request's: from this machine, and with its own token, it is local."""
        return replace(self, is_local=self.token_id == HOME_TOKEN_ID and _is_loopback(client))


ANYBODY = Principal(token_id="-", name="-", role="none")  # noqa: S106  # nobody's


def require(principal: Principal, action: str, object: str | None = None) -> None:
    """Raises NotPermitted unless the caller may do `action` (`noun.verb`) to `object` (an id; None: the noun as such).

    Decided here and nowhere else.
    """
    if may(principal, action):
        return
    raise NotPermitted(
        "NOT_PERMITTED",
        f"The role {principal.role} does not allow {action}" + (f" of {object}." if object else "."),
        hint="Ask an administrator for a token with that right.",
    )


def may(principal: Principal, action: str) -> bool:
    """What `require` decides, for what is shown or left out."""
    return allows(principal.role, action)


def who_may(action: str) -> list[str]:
    """The roles that `require` lets do an action."""
    return ["anybody"] if action == PUBLIC else [role.value for role in TokenRole if allows(role.value, action)]


def allows(role: str, action: str) -> bool:
    """The one rule that `require`, `may` and the table of who may do what go by."""
    return action == PUBLIC or role == ADMINISTRATOR or (role == TokenRole.USER and action in USER_MAY)


class Tokens:
    """Tokens to principals. What was found is remembered for a second: most requests come in bursts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: dict[str, tuple[float, Principal]] = {}

    def principal(self, authorization: str | None, *, client: str | None) -> Principal:
        """Raises NotPermitted (TOKEN_MISSING, TOKEN_WRONG)."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise NotPermitted(
                "TOKEN_MISSING", "This request carries no token.", field="Authorization",
                hint="Send `Authorization: Bearer TOKEN`; the server's own token is in its state folder, file `token`.",
            )  # fmt: skip
        digest = tokens.hash_of(token)
        remembered = self._remembered.get(digest)
        if remembered is None or remembered[0] < time.monotonic():
            remembered = (time.monotonic() + REMEMBERED_SECONDS, self._look_up(token))
            if len(self._remembered) >= REMEMBERED_TOKENS:
                self._remembered.clear()
            self._remembered[digest] = remembered
        return remembered[1].seen_from(client)

    def forget(self) -> None:
        """Called after a revocation: it counts at once."""
        self._remembered.clear()

    def _look_up(self, token: str) -> Principal:
        with self._database.read() as connection:
            found = tokens.token_of_secret(connection, token)
        if found is None:
            raise NotPermitted(
                "TOKEN_WRONG", "The token is not known here, was revoked, or has expired.", field="Authorization",
                hint="Is it the token of this server? A token's text is shown once, when it is made.",
            )  # fmt: skip
        return Principal(token_id=found.token_id, name=found.name, role=found.role)


def _is_loopback(client: str | None) -> bool:
    try:
        return client is not None and ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


def ensure_home_token(home: Home, database: Database) -> None:
    """The first administrator's token: made at the first start, and again where it was lost or revoked.

    The file is written first: a start that dies between the two registers the same token at the next.
    """
    path = home.root / "token"
    try:
        secret = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        secret = ""
    with database.read() as connection:
        known = connection.execute(
            sa.select(TOKENS.c.sha256, TOKENS.c.revoked_at).where(TOKENS.c.token_id == HOME_TOKEN_ID)
        ).one_or_none()
    if secret and known is not None and known.sha256 == tokens.hash_of(secret) and known.revoked_at is None:
        path.chmod(0o600)
        return
    if not secret or (known is not None and known.sha256 == tokens.hash_of(secret)):
        secret = tokens.PREFIX + secrets.token_urlsafe(32)
        _write_private(path, secret + "\n")
    path.chmod(0o600)
    with database.write() as connection:
        connection.execute(TOKENS.delete().where(TOKENS.c.token_id == HOME_TOKEN_ID))
        connection.execute(
            TOKENS.insert().values(
                token_id=HOME_TOKEN_ID, name=LOCAL_USER, role=TokenRole.ADMIN, sha256=tokens.hash_of(secret),
                created_at=now(), expires_at=None, revoked_at=None,
            )
        )  # fmt: skip


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not for a moment."""
    temporary = temporary_beside(path)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
