"""How a page is declared: a route with its permission, and what its handler returns.

`page` answers a GET with a template. `action` takes a form, does one thing by the same function that REST calls, and
redirects (or answers a part of a page to htmx). Neither exists without a permission, as every route.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.server import auth
from tunesmith.server.routes import Route
from tunesmith.server.service import Call

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a page's handler returns: a template of `server/templates` and what it shows."""

    template: str
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def page(path: str, handler: Callable[..., Any], *, permission: str, summary: str) -> Route:
    """handler: takes `call` (CallNow) and what its path and query hold, as those of `api/` do; a plain function."""
    return _route("GET", path, handler, permission=permission, summary=summary)


def action(path: str, handler: Callable[..., Any], *, permission: str, summary: str) -> Route:
    """A POST of a form: its fields are `call.form`; its CSRF token was checked."""
    return _route("POST", path, handler, permission=permission, summary=summary)


def _route(
    method: Literal["GET", "POST"], path: str, handler: Callable[..., Any], *, permission: str, summary: str
) -> Route:
    return Route(
        method=method, path=path, handler=_rendering(handler), permission=permission, summary=summary, is_page=True,
        body="form" if method == "POST" else "none",
    )  # fmt: skip


def _rendering(handler: Callable[..., Any]) -> Callable[..., Response]:
    """The handler with its view rendered, in the same thread."""
    assert not inspect.iscoroutinefunction(handler), "pages read the database: that is a thread's work"

    @functools.wraps(handler)
    def answer(call: Call, *args: Any, **kwargs: Any) -> Response:
        found = handler(call, *args, **kwargs)
        if isinstance(found, Response):
            return found
        return call.request.app.state.console.render(call.request, found, principal=call.principal)

    return answer


def seen(call: Call, permission: str, find: Callable[[], list[Item]]) -> list[Item]:
    """What a page shows beside its own noun: nothing of it for who may not see it where it has its own page."""
    return find() if auth.may(call.principal, permission) else []


def redirect(path: str) -> Response:
    """To one of our own pages, with GET."""
    return Response(status_code=303, headers={"Location": path})


def done(call: Call, path: str) -> Response:
    """After an action: to the page that shows what came of it, for htmx in its own way."""
    return Response(headers={"HX-Redirect": path}) if is_part(call.request) else redirect(path)


def query_text(**fields: str) -> str:
    """A list's filters as they stand in the addresses of its other pages."""
    return urlencode({name: value for name, value in fields.items() if value})


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of the page, not for the whole of it."""
    return request.headers.get("hx-request") == "true"
