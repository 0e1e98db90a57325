"""The console: pages for people over the same functions that REST calls. See `docs/architecture.md`, "The console".

In: a service whose application serves it. Out: routes (pages, their actions, static files), rendered templates, and
refusals as pages. Templates escape everything; the Content-Security-Policy allows our own files and nothing inline.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from tunesmith import __version__
from tunesmith.errors import NotPermitted, TunesmithError
from tunesmith.server import auth
from tunesmith.server.auth import ANYBODY, PUBLIC, Principal
from tunesmith.server.errors import status_of
from tunesmith.server.guard import OWN_USER
from tunesmith.server.pages import ADMIN, NAVIGATION, Entry, page_routes, shown, words
from tunesmith.server.pages.page import View, is_part, redirect
from tunesmith.server.policies import PROJECT_HEADER
from tunesmith.server.prefix import prefix_of, with_prefix
from tunesmith.server.routes import Route
from tunesmith.server.sessions import chosen_project, csrf_token, session_secret, set_project
from tunesmith.server.static_files import StaticFiles
from tunesmith.text import visible

TEMPLATES = Path(__file__).parent / "templates"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
# `no-referrer` would make browsers send `Origin: null` with our own forms
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
THEMES = ("light", "dark")
THEME_COOKIE = "tunesmith_theme"
SIGN_IN_CODES = frozenset({"TOKEN_MISSING", "SESSION_OVER"})


class Console:
    """routes: pages, actions and static files, in the order in which they are matched."""

    def __init__(self) -> None:
        self.static = StaticFiles()
        self.routes = [*page_routes(), self._static_route()]

    def _static_route(self) -> Route:
        def static_file(request: Request, digest: str, path: str) -> Response:
            return self.static.answer(request, digest, path)

        return Route(
            method="GET", path="/static/{digest}/{path:path}", handler=static_file, permission=PUBLIC, is_page=True,
            summary="Styles, scripts, fonts and icons",
        )  # fmt: skip

    @cached_property
    def _templates(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False, finalize=_shown,
        )  # fmt: skip
        named = {"static": self.static.url, "icon": self._icon, "version": __version__, "words": words.WORDS}
        untyped = cast(Any, environment)
        untyped.filters.update(shown.FILTERS)
        untyped.globals.update(named)
        return environment

    def _icon(self, name: str, label: str | None = None) -> Markup:
        """label: what it means, where no word stands beside it."""
        told = Markup(' role="img" aria-label="{}"').format(label) if label else Markup(' aria-hidden="true"')
        return Markup('<svg class="icon" viewBox="0 0 24 24"{}>{}</svg>').format(told, Markup(self.static.icon(name)))  # noqa: S704  # vendored drawings

    def render(self, request: Request, view: View, *, principal: Principal = ANYBODY) -> Response:
        secret = session_secret(request)
        theme = request.cookies.get(THEME_COOKIE)
        context: dict[str, Any] = {
            "path": request.url.path,
            "principal": principal,
            "is_signed_in": principal is not ANYBODY,
            "is_own_user": OWN_USER in request.scope,
            "prefix": prefix_of(request),
            "csrf": csrf_token(secret, principal.project) if secret is not None else "",
            "theme": theme if theme in THEMES else "",
            "navigation": [permitted for group in NAVIGATION if (permitted := _permitted(group, principal))],
            "admin_sections": _permitted(ADMIN, principal),
            "may": partial(auth.may, principal),
            "is_tunable": auth.may(principal, "job.submit"),
            "swap": False,
            **view.context,
        }
        text = with_prefix(self._templates.get_template(view.template).render(context), prefix_of(request))
        headers = HEADERS | dict(view.headers)
        response = Response(text.encode("utf-8", "backslashreplace"), view.status, headers, "text/html; charset=utf-8")
        if principal is not ANYBODY and PROJECT_HEADER not in request.headers:
            _keep_project(response, request, principal.project)
        return response

    def refusal(self, request: Request, error: TunesmithError) -> Response:
        """Who is not signed in goes to sign in; a part of a page gets a message; all else is a page of its own."""
        if error.code in SIGN_IN_CODES:
            here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            if is_part(request):
                return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
            target = f"/sign-in?next={quote(here)}" if request.method == "GET" and here != "/" else "/sign-in"
            return redirect(target)
        status = status_of(error)
        told = {"error": error, "status": status}
        if is_part(request):
            headers = {"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"}
            return self.render(request, View(template="parts/toast.html", context=told, status=status, headers=headers))
        return self.render(request, View(template="error.html", context=told, status=status), principal=_known(request))


def _keep_project(response: Response, request: Request, project: str) -> None:
    """Where the browser is, it stays: a policy that lets in somewhere else moves nobody."""
    if chosen_project(request) != project:
        set_project(response, request, project)


def _permitted(entries: Sequence[Entry], principal: Principal) -> list[Entry]:
    """Those that lead somewhere for this caller."""
    return [
        entry for entry in entries if not entry.any_of or any(auth.may(principal, action) for action in entry.any_of)
    ]


def _known(request: Request) -> Principal:
    """Who looks at an error page, if that is known: its frame is theirs."""
    secret = session_secret(request)
    try:
        if secret is not None:
            known = request.app.state.service.sessions
            principal = known.principal(secret, client=None, is_own_user=OWN_USER in request.scope)
            policies = request.app.state.service.policies
            return policies.placed(principal, asked=None, preferred=chosen_project(request))
    except (NotPermitted, TunesmithError):
        pass
    return ANYBODY


def _shown(value: Any) -> Any:
    """Every value of a template passes here: text keeps no character that acts (hazards S38, S39)."""
    if isinstance(value, str) and not isinstance(value, Markup) and not value.isprintable():
        return visible(value, keep_newlines=True)
    return value
