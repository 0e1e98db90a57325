"""The whole service as one ASGI application: the guard around FastAPI with the routes of `api/`.

In: an open `Service`. Out: an application for uvicorn, or for a client in the same process. Faults that the framework
finds itself (no such route, a method that a path does not have) get our form here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from tunesmith import __version__
from tunesmith.errors import REFERENCE, TunesmithError, Unknown, UsageFault
from tunesmith.server.api import (
    access,
    administration,
    answers,
    datasets,
    explorer,
    hub,
    jobs,
    locations,
    models,
    openai_chat,
    plan,
    system,
    versions,
)
from tunesmith.server.auth import PUBLIC
from tunesmith.server.errors import disk_full, error_response, fault_of_ours
from tunesmith.server.guard import Guard
from tunesmith.server.routes import Route, refusal, register, wants_page
from tunesmith.server.service import Service
from tunesmith.spec.api import ErrorAnswer, OpenAIErrorAnswer
from tunesmith.spec.faults import invalid, shown

if TYPE_CHECKING:
    from tunesmith.server.console import Console  # with Jinja2, which a client's own process does without

DESCRIPTION = """The REST interface of Tunesmith. Send `Authorization: Bearer TOKEN` with every request; the server's
first token stands in its state folder, file `token`. The header
`X-Tunesmith-Project` says whose jobs, datasets and versions are meant; without it the project `default`.
Lists are pages: pass `next` as `after` to get the next one.
Every refusal has one form: `{"error": {"code", "message", "field", "hint"}}`, under `/v1` OpenAI's. A POST that makes
something takes an `Idempotency-Key`: the same key and body again give the object that the first request made."""


def all_routes() -> list[Route]:
    """In the order in which they are matched."""
    nouns = (
        system,
        jobs,
        plan,
        datasets,
        models,
        explorer,
        hub,
        versions,
        locations,
        administration,
        access,
        answers,
        openai_chat,
    )
    return [*(route for noun in nouns for route in noun.ROUTES), OPENAPI]


def create_app(
    service: Service,
    *,
    allowed_hosts: Collection[str] = (),
    routes: Sequence[Route] | None = None,
    console: Console | None = None,
) -> ASGIApp:
    """console: its pages are served, too. Raises TunesmithError for a route that declares no permission."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await app.state.service.feed.close()
        await asyncio.to_thread(app.state.service.serving.stop)

    app = FastAPI(
        title="Tunesmith", version=__version__, description=DESCRIPTION, lifespan=lifespan,
        openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    app.state.console = console
    app.state.routes = list(all_routes() if routes is None else routes)
    for route in app.state.routes:
        register(app, route)
    for route in console.routes if console is not None else ():
        register(app, route)
    app.add_exception_handler(HTTPException, _framework_refusal)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(TunesmithError, _ours)
    app.add_exception_handler(Exception, _fault)
    return Guard(app, allowed_hosts=allowed_hosts)


async def show_openapi(request: Request) -> Response:
    """This description, for people and generators of clients."""
    app: FastAPI = request.app
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return Response(json.dumps(app.openapi_schema, ensure_ascii=False), media_type="application/json")


def _document(app: FastAPI) -> dict[str, Any]:
    document = app.openapi()
    document["components"].setdefault("securitySchemes", {})["token"] = {"type": "http", "scheme": "bearer"}
    document["security"] = [{"token": []}]
    schemas: dict[str, Any] = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for form in (ErrorAnswer, OpenAIErrorAnswer):  # the routes name them by reference
        schema = form.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[form.__name__] = schema
    return document


OPENAPI = Route(
    method="GET", path="/openapi.json", handler=show_openapi, permission=PUBLIC, summary="The OpenAPI document",
    content={"application/json": {"schema": {"type": "object"}}},
)  # fmt: skip


async def _framework_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    told: TunesmithError
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request)))
        told = UsageFault(
            "METHOD_NOT_ALLOWED", f"{shown(path)} does not take {request.method}.", hint=f"It takes {allowed}."
        )
        response = refusal(request, told, is_page=wants_page(request))
        response.headers["Allow"] = allowed
        return response
    if error.status_code == 404:
        told = Unknown("UNKNOWN_ROUTE", f"There is no {shown(path)} here.", hint="GET /openapi.json lists every path.")
    else:
        told = UsageFault("BAD_HTTP", "The request could not be read.")
    return refusal(request, told, is_page=wants_page(request))


def _methods(request: Request) -> set[str]:
    """Of every route with this path; the framework tells those of the first one."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    path = request.scope["path"]
    return {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid(error.errors(), hint=REFERENCE), path=request.url.path)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, TunesmithError)
    return error_response(error, path=request.url.path)


async def _fault(request: Request, error: Exception) -> Response:
    """The framework raises the error once more after this answer; the guard writes it to the log."""
    told = disk_full(error) or fault_of_ours(request.state.request_id)
    return refusal(request, told, is_page=wants_page(request))
