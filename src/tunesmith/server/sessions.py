"""Sessions of the console: the cookie, what a page's request must prove, and one-use links to sign in.

In: a request with a cookie. Out: the `Principal` of the token that its session stands for, or a refusal. A request that
changes something needs three things that another site's page cannot bring together: the cookie (SameSite=Strict), our
own Origin, and the session's CSRF token in a header or a field of the form. A secret is never logged, never in a URL.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.catalog import sessions
from tunesmith.catalog.tokens import hash_of, token_of_secret
from tunesmith.errors import NotPermitted
from tunesmith.server.auth import HOME_TOKEN_ID, REMEMBERED_SECONDS, REMEMBERED_TOKENS, Principal, is_of_project
from tunesmith.server.guard import OWN_USER
from tunesmith.server.prefix import prefix_of
from tunesmith.spec.catalog import TokenView
from tunesmith.storage.database import Database

CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf"
LINK_SECONDS = 3600.0
OWN_SITES = ("same-origin", "none")
LOOPBACK = "127.0.0.1"


def cookie_name(request: Request) -> str:
    """Cookies know no ports: two servers of one machine must not sign each other's browsers out."""
    return f"tunesmith_session_{request.url.port or 80}"


def session_secret(request: Request) -> str | None:
    """Of its cookie, or of the state folder's socket: that needs no signing in."""
    return request.scope.get(OWN_USER) or request.cookies.get(cookie_name(request)) or None


def authorization_of(request: Request) -> str | None:
    """The header, where it is meant for us: over the state folder's socket it is the proxy's own."""
    return None if OWN_USER in request.scope else request.headers.get("authorization")


def own_user_secret(token: str) -> str:
    """Of the session that requests over the state folder's socket have. It follows from the home's token, so that pages
    outlive a restart; as a cookie it is worth nothing.
    """
    return hashlib.sha256(f"own user:{token}".encode()).hexdigest()


def project_cookie(request: Request) -> str:
    return f"tunesmith_project_{request.url.port or 80}"


def chosen_project(request: Request) -> str:
    """What the browser's user chose last; empty: nothing. It gives no right: what he may do there is looked up."""
    return request.cookies.get(project_cookie(request), "")


def csrf_token(secret: str, project: str) -> str:
    """What pages of this session carry that show a project. It follows from the cookie, which scripts and other sites
    cannot read.
    """
    return hashlib.sha256(f"csrf:{project}:{secret}".encode()).hexdigest()


def require_own_page(request: Request) -> None:
    """Raises NotPermitted unless the browser says that one of our own pages asks (the guard refuses other origins)."""
    if request.headers.get("origin") is None and request.headers.get("sec-fetch-site") not in OWN_SITES:
        raise NotPermitted(
            "ORIGIN_NOT_ALLOWED", "The request does not say from which page it comes.", field="Origin",
            hint="Use the pages of this server, or call /api with a token.",
        )  # fmt: skip


def require_csrf(secret: str, told: str | None, *, principal: Principal, permission: str) -> None:
    """Raises NotPermitted (CSRF_TOKEN_WRONG; PROJECT_CHANGED: the page shows another project than the session's)."""
    given = (told or "").encode(errors="replace")
    shown = [
        project
        for project in (principal.project, *principal.projects)
        if hmac.compare_digest(given, csrf_token(secret, project).encode())
    ]
    if not shown:
        raise NotPermitted(
            "CSRF_TOKEN_WRONG", "This form is not of your present session.", field=CSRF_FIELD,
            hint="Reload the page and try again.",
        )  # fmt: skip
    if shown[0] != principal.project and is_of_project(permission):
        raise NotPermitted(
            "PROJECT_CHANGED",
            f"This page shows the project {shown[0]}, and you have gone to {principal.project} since: in another tab, "
            "perhaps.",
            field="project", hint=f"Go back to {shown[0]} by the switch in the header, and try again.",
        )  # fmt: skip


class Sessions:
    """Cookies to principals. What was found is remembered for a second, as in `Tokens`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: dict[str, tuple[float, Principal]] = {}

    def principal(self, secret: str, *, client: str | None, is_own_user: bool = False) -> Principal:
        """is_own_user: the request came over the state folder's socket. Who can connect there can read the home's
        token, and is taken for it. Raises NotPermitted (SESSION_OVER).
        """
        key = OWN_USER if is_own_user else hash_of(secret)
        remembered = self._remembered.get(key)
        if remembered is None or remembered[0] < time.monotonic():
            with self._database.read() as connection:
                if is_own_user:
                    token = sessions.active_token(connection, HOME_TOKEN_ID)
                else:
                    token = sessions.token_of_session(connection, secret)
            if token is None:
                self._remembered.pop(key, None)
                raise NotPermitted("SESSION_OVER", "This session is over.", hint="Sign in again.")
            remembered = (time.monotonic() + REMEMBERED_SECONDS, _principal(token))
            if len(self._remembered) >= REMEMBERED_TOKENS:
                self._remembered.clear()
            self._remembered[key] = remembered
        return remembered[1].seen_from(LOOPBACK if is_own_user else client)

    def sign_in(self, token_id: str | None, *, secret: str | None, instead_of: str | None) -> str:
        """A new session's secret, for a token's own text or for a link's token. `instead_of`: a session that ends.

        Raises NotPermitted (TOKEN_WRONG).
        """
        with self._database.write() as connection:
            token = token_of_secret(connection, secret) if secret is not None else None
            if token_id is not None:
                token = sessions.active_token(connection, token_id)
            if token is None:
                raise NotPermitted(
                    "TOKEN_WRONG", "The token is not known here, was revoked, or has expired.", field="token",
                    hint="The server's own token is in its state folder, file `token`.",
                )  # fmt: skip
            if instead_of is not None:
                sessions.end_session(connection, instead_of)
            made = sessions.start_session(connection, token)
        self.forget()
        return made

    def sign_out(self, secret: str) -> None:
        with self._database.write() as connection:
            sessions.end_session(connection, secret)
        self.forget()

    def forget(self) -> None:
        """Called after a sign-out or a token's revocation: it counts at once."""
        self._remembered.clear()


class SignInLinks:
    """Codes that sign in once, for the link that `serve` prints. Kept in memory: they end with the server."""

    def __init__(self) -> None:
        self._codes: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def make(self, token_id: str = HOME_TOKEN_ID) -> str:
        code = secrets.token_urlsafe(24)
        with self._lock:
            self._codes = {digest: kept for digest, kept in self._codes.items() if kept[0] > time.monotonic()}
            self._codes[hash_of(code)] = (time.monotonic() + LINK_SECONDS, token_id)
        return code

    def use(self, code: str) -> str:
        """The id of the token that it stands for. Raises NotPermitted (LINK_USED)."""
        with self._lock:
            ends, token_id = self._codes.pop(hash_of(code), (0.0, ""))
        if ends <= time.monotonic():
            raise NotPermitted(
                "LINK_USED", "This link was used before, or is too old.", field="code",
                hint="Sign in with a token; `tunesmith serve` prints a new link at its start.",
            )  # fmt: skip
        return token_id


def set_cookie(response: Response, request: Request, secret: str) -> None:
    response.set_cookie(
        cookie_name(request), secret, max_age=sessions.DAYS * 24 * 3600, path=_cookie_path(request), httponly=True,
        samesite="strict",
        secure=(request.headers.get("origin") or "").startswith("https://"),
    )  # fmt: skip


def set_project(response: Response, request: Request, project: str) -> None:
    response.set_cookie(
        project_cookie(request), project, max_age=365 * 24 * 3600, path=_cookie_path(request), httponly=True,
        samesite="strict",
        secure=(request.headers.get("origin") or "").startswith("https://"),
    )  # fmt: skip


def clear_cookie(response: Response, request: Request) -> None:
    response.delete_cookie(cookie_name(request), path=_cookie_path(request), httponly=True, samesite="strict")


def _cookie_path(request: Request) -> str:
    """Below a prefix the cookie is not for what else the proxy serves."""
    return f"{prefix_of(request)}/"


def _principal(token: TokenView) -> Principal:
    return Principal(token_id=token.token_id, name=token.name, role=token.role)
