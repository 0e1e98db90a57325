"""Who calls, and what they may do: the one place for tokens, roles and the rule of policies.

In: the Authorization header of a matched route. Out: a `Principal`, or a refusal. The database holds only the SHA-256
of a token; the home's own token stands in `$TUNESMITH_HOME/token` (mode 0600) for clients of the same user.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from tunesmith.catalog import tokens
from tunesmith.catalog.clock import now
from tunesmith.errors import NotPermitted
from tunesmith.files import fsync_folder, temporary_beside
from tunesmith.jobs.home import Home
from tunesmith.spec.access import ANY
from tunesmith.spec.catalog import DEFAULT_PROJECT, LOCAL_USER, TokenRole
from tunesmith.spec.names import ROLE_PREFIX
from tunesmith.storage.database import Database
from tunesmith.storage.tables import TOKENS

ADMINISTRATOR = "admin"
PUBLIC = "public"  # the permission of a route that needs no token
# What fine-tuning takes, and what a policy means by `use`. Whatever is not named administers, so that a new permission
# is refused until somebody decides: a policy grants it by its whole name alone.
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
    "project.read",
    "session.end",
    "shape.read",
    "system.read",
    "version.change", "version.delete", "version.download", "version.read", "version.register",
})  # fmt: skip
READS = frozenset(each for each in USER_MAY if each.endswith((".read", ".browse")))  # what a policy means by `read`
# Of every token, whatever the policies: to end one's session, to see one's own projects and one's own rights.
OF_EVERY_TOKEN = frozenset({"permission.read", "project.read", "session.end"})
NEVER_GRANTED = frozenset({"policy", "token"})  # nouns: who may do these is an administrator
# Nouns whose objects are of a project; and answers, which are a version's as often as a base's. All else is of the
# whole server: who may do it in one project may do it.
OF_PROJECTS = frozenset({"alias", "dataset", "job", "version"})
ANSWERING = "model.use"
HOME_TOKEN_ID = "home"  # noqa: S105  # an id, no secret
REMEMBERED_SECONDS = 1.0  # how long another process's revocation may take to count
REMEMBERED_TOKENS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The caller of one request. is_local: the home's own token, from this machine: may name paths of it.

    project: the one that the request means; projects: those that he sees; allowed: what policies let him do in that
    project, once `Policies.placed` has looked.
    """

    token_id: str
    name: str
    role: str
    is_local: bool = False
    project: str = DEFAULT_PROJECT
    projects: tuple[str, ...] = ()
    allowed: frozenset[str] = frozenset()

    @property
    def actor(self) -> str:
        """As it stands in `submitted_by`, in the audit and in idempotency keys."""
        return self.name

    def seen_from(self, client: str | None) -> Principal:
        """The same caller as one request's: from this machine, and with its own token, it is local."""
        return replace(self, is_local=self.token_id == HOME_TOKEN_ID and _is_loopback(client))


ANYBODY = Principal(token_id="-", name="-", role="none")  # noqa: S106  # nobody's


def require(principal: Principal, action: str, object: str | None = None) -> None:
    """Raises NotPermitted unless the caller may do `action` (`noun.verb`) to `object` (an id; None: the noun)."""
    if may(principal, action):
        return
    where = f" in the project {principal.project}" if is_of_project(action) else ""
    raise NotPermitted(
        "NOT_PERMITTED",
        f"No policy lets {principal.name} do {action}" + (f" of {object}" if object else "") + f"{where}.",
        hint="Ask an administrator for a policy that allows it.",
    )


def may(principal: Principal, action: str) -> bool:
    """What `require` decides, for what is shown or left out."""
    return allows(principal, action)


def allows(principal: Principal, action: str) -> bool:
    """An administrator may do everything; others what `grants` found."""
    return action == PUBLIC or principal.role == ADMINISTRATOR or action in principal.allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy as the rule reads it. may: whole permissions; projects: None for all."""

    name: str
    who: frozenset[str]
    may: frozenset[str]
    projects: frozenset[str] | None

    def names(self, name: str, role: str) -> bool:
        return not self.who.isdisjoint((name, f"{ROLE_PREFIX}{role}", ANY))

    def covers(self, project: str) -> bool:
        return self.projects is None or project in self.projects


def grants(policies: Iterable[Policy], *, name: str, role: str, project: str) -> dict[str, list[str]]:
    """What one who is no administrator may do in a project: each permission, with the policies that allow it.

    The one rule: requests, what pages show, the table of who may do what and `policy check` all go by it.
    """
    found: dict[str, list[str]] = {permission: [ANY] for permission in OF_EVERY_TOKEN}
    for policy in policies:
        if not policy.names(name, role):
            continue
        for permission in policy.may:
            if policy.covers(project) or not is_of_project(permission):
                found.setdefault(permission, []).append(policy.name)
    return found


def is_of_project(permission: str) -> bool:
    return permission.partition(".")[0] in OF_PROJECTS or permission == ANSWERING


def granted(entry: str) -> frozenset[str]:
    """The permissions that an entry of a policy's `may` stands for: `use`, `read`, `noun.*`, `noun.verb`."""
    if entry in ("use", "read"):
        return USER_MAY if entry == "use" else READS
    noun, _, verb = entry.partition(".")
    if noun in NEVER_GRANTED:
        return frozenset()
    if verb == ANY:
        return frozenset(each for each in USER_MAY if each.startswith(f"{noun}."))
    return frozenset({entry})


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
