"""Sign in and out. A GET changes nothing: a one-use link opens a page whose button uses it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tunesmith.errors import NotPermitted
from tunesmith.server.auth import PUBLIC
from tunesmith.server.pages.page import View, action, page, redirect
from tunesmith.server.service import CallNow
from tunesmith.server.sessions import clear_cookie, session_secret, set_cookie

Next = Annotated[str, Query(max_length=2000)]


def sign_in_page(call: CallNow, code: Annotated[str, Query(max_length=200)] = "", next: Next = "/") -> View:
    return _form(code=code, target=_own(next))


def sign_in(call: CallNow) -> View | Response:
    form = call.form
    code, target = form.text("code"), _own(form.text("next") or "/")
    before = session_secret(call.request)
    sessions = call.service.sessions
    try:
        if code is not None:
            secret = sessions.sign_in(call.service.links.use(code), secret=None, instead_of=before)
        else:
            secret = sessions.sign_in(None, secret=(form.text("token") or "").strip(), instead_of=before)
    except NotPermitted as error:
        return _form(code="", target=target, error=error)
    response = redirect(target)
    set_cookie(response, call.request, secret)
    return response


def sign_out(call: CallNow) -> Response:
    secret = session_secret(call.request)
    if secret is not None:
        call.service.sessions.sign_out(secret)
    response = redirect("/sign-in")
    clear_cookie(response, call.request)
    return response


def _form(*, code: str, target: str, error: NotPermitted | None = None) -> View:
    context = {"code": code, "next": target, "error": error}
    return View(template="sign_in.html", context=context, status=403 if error is not None else 200)


def _own(path: str) -> str:
    """A path of this server, or its start: what a link says must not lead elsewhere."""
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_own else "/"


ROUTES = [
    page("/sign-in", sign_in_page, permission=PUBLIC, summary="Sign in"),
    action("/sign-in", sign_in, permission=PUBLIC, summary="Sign in with a token or a one-use link"),
    action("/sign-out", sign_out, permission="session.end", summary="Sign out"),
]
