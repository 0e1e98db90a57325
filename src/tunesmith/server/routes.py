"""Routes as data: method, path, handler, permission, models, statuses, example. None without a permission.

In: `Route` values of `api/`. Out: routes of a FastAPI application. The order at each request is fixed here: token,
permission, size and type of the body, strict JSON, fields, handler. A handler returns a model or its own response.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Message, Receive

from tunesmith.errors import REFERENCE, TunesmithError, UsageFault
from tunesmith.server.auth import ANYBODY, PUBLIC, Principal, require
from tunesmith.server.errors import error_response
from tunesmith.server.forms import Form, read_form
from tunesmith.server.guard import OWN_USER
from tunesmith.server.json_body import read_json
from tunesmith.server.policies import OPENAI_PROJECT_HEADER, PROJECT_HEADER
from tunesmith.server.service import Call, Service
from tunesmith.server.sessions import (
    CSRF_FIELD,
    CSRF_HEADER,
    authorization_of,
    chosen_project,
    require_csrf,
    require_own_page,
    session_secret,
)
from tunesmith.spec.api import ErrorAnswer, OpenAIErrorAnswer
from tunesmith.spec.faults import invalid, shown

JSON_BODY_BYTES = 1 << 20
BODY_SECONDS = 60.0  # for the whole of a JSON body
REFUSALS = {
    400: "The path is not well-formed.",
    401: "No token, or a wrong one.",
    403: "No policy allows it, or the request comes from another site.",
    404: "There is no such object, or no such project for this caller.",
    405: "The path has no such method.",
    408: "The body did not come in time.",
    409: "The object's state, or what uses it, forbids it; or an idempotency key was used for another request.",
    413: "The body is larger than this route reads.",
    415: "The body's type is not what this route reads, or it is compressed.",
    421: "The Host header does not name this server.",
    422: "A field, the data or the configuration is at fault; all faults are named.",
    431: "The headers are too large.",
    500: "A fault of ours, with the number under which the server's log has the details.",
    503: "The machine cannot do it now: busy, out of disk, or a store that does not answer.",
}
ALWAYS = (400, 401, 403, 404, 405, 421, 422, 431, 500, 503)
WITH_BODY = (408, 413, 415)
PROGRAMS = ("/api/", "/v1/", "/static/", "/healthz", "/openapi.json")  # nobody looks at these paths
BODY_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """answer: the model of a success, or None for an answer that `content` describes (media type -> schema).

    refusals: statuses beside those that every route has. body: what the handler reads. in_thread: the handler is a
    plain function that may wait for a disk or a network; others are `async`. is_page: for people, not in the OpenAPI
    document; its refusals are pages, and who is not signed in is sent to sign in.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Callable[..., Any]
    permission: str
    summary: str
    answer: type[BaseModel] | None = None
    status: int = 200
    statuses: tuple[int, ...] = ()  # other successes, such as 200 for what was made before
    refusals: tuple[int, ...] = ()
    example: dict[str, Any] | None = None
    request_example: dict[str, Any] | None = None
    content: dict[str, Any] = field(default_factory=dict[str, Any])
    body: Literal["none", "json", "stream", "form"] = "none"
    body_limit: int = JSON_BODY_BYTES
    request_content: dict[str, Any] = field(default_factory=dict[str, Any])  # of a stream
    is_page: bool = False


def register(app: FastAPI, route: Route) -> None:
    """Raises TunesmithError for a route without a permission: the server does not start."""
    if not route.permission or (route.permission != PUBLIC and route.permission.count(".") != 1):
        raise TunesmithError(
            "ROUTE_WITHOUT_PERMISSION", f"The route {route.method} {route.path} declares no permission.",
            field="permission",
        )  # fmt: skip
    form = OpenAIErrorAnswer if route.path.startswith("/v1/") else ErrorAnswer
    success: dict[str, Any] = {"description": "Success"}
    if route.answer is not None:
        success["model"] = route.answer
        if route.example is not None:
            success["content"] = {"application/json": {"example": route.example}}
    if route.content:
        success["content"] = success.get("content", {}) | route.content
    statuses = {*ALWAYS, *route.refusals, *(WITH_BODY if route.body != "none" else ())}
    if route.permission == PUBLIC:
        statuses -= {401, 404} - set(route.refusals)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": "Done; nothing to tell."} if status == 204 else success
        for status in (route.status, *route.statuses)
    }
    for status in sorted(statuses):
        # by reference: a `model` here would build the same schema some 700 times, which takes a second at each start
        responses[status] = {
            "description": REFUSALS[status],
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{form.__name__}"}}},
        }
    extra: dict[str, Any] = {}
    if route.permission == PUBLIC:
        extra["security"] = []
    else:
        extra["x-permission"] = route.permission
    if route.body == "stream":
        extra["requestBody"] = {"required": True, "content": route.request_content}
    elif route.request_example is not None:
        extra["requestBody"] = {"content": {"application/json": {"example": route.request_example}}}
    app.router.add_api_route(
        route.path,
        _answering(route.handler, route.status),
        methods=[route.method],
        status_code=route.status,
        summary=route.summary,
        description=inspect.getdoc(route.handler) or route.summary,
        response_model=None,
        responses=responses,
        tags=[route.path.split("/")[2] if route.path.count("/") > 1 else "service"],
        operation_id=route.handler.__name__,
        openapi_extra=extra,
        include_in_schema=not route.is_page,
        route_class_override=_route_class(route),
    )


def _answering(handler: Callable[..., Any], status: int) -> Callable[..., Any]:
    """The handler with its model written as JSON once: FastAPI's own way validates and encodes it a second time."""
    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def answer_async(*args: Any, **kwargs: Any) -> Response:
            return _response(await handler(*args, **kwargs), status)

        return answer_async

    @functools.wraps(handler)
    def answer(*args: Any, **kwargs: Any) -> Response:
        return _response(handler(*args, **kwargs), status)

    return answer


def _response(value: Any, status: int) -> Response:
    if isinstance(value, Response):
        return value
    if value is None:
        return Response(status_code=204)
    assert isinstance(value, BaseModel)
    return Response(value.model_dump_json(), status, media_type="application/json")


def created(made: BaseModel, *, is_new: bool) -> Response:
    """201 for what this request made, 200 for what an earlier one with its key made."""
    return Response(made.model_dump_json(), 201 if is_new else 200, media_type="application/json")


def _route_class(route: Route) -> type[APIRoute]:
    """FastAPI's route, with ours in front: decided on the matched route, never on the text of a URL."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()
            known = _query_names(self)

            async def handle(request: Request) -> Response:
                try:
                    admitted = _admitted(request, route, known)
                    if route.body == "json":
                        await admitted.load_json()
                    elif route.body == "form":
                        await admitted.load_form(route.permission)
                    return await inner(admitted)
                except RequestValidationError as error:
                    return refusal(request, invalid(error.errors(), hint=REFERENCE), is_page=route.is_page)
                except TunesmithError as error:
                    return refusal(request, error, is_page=route.is_page)

            return handle

    return GuardedRoute


def refusal(request: Request, error: TunesmithError, *, is_page: bool) -> Response:
    """The answer in the form that the route's callers read. Without a console there are no pages."""
    console = request.app.state.console
    if is_page and console is not None:
        return console.refusal(request, error)
    return error_response(error, path=request.url.path)


def wants_page(request: Request) -> bool:
    """Whether a fault that no route claims is a person's."""
    return not request.url.path.startswith(PROGRAMS) and "text/html" in (request.headers.get("accept") or "")


def _admitted(request: Request, route: Route, known: frozenset[str]) -> StrictRequest:
    """The request with its caller, within the route's limits. Raises what refuses it."""
    service: Service = request.app.state.service
    principal = ANYBODY if route.permission == PUBLIC else _caller(request, route, service)
    request.state.actor = principal.actor
    require(principal, route.permission)
    if request.scope["query_string"]:
        _check_query(request, known)
    wanted = BODY_TYPES.get(route.body)
    found = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if wanted is not None and found != wanted:
        raise UsageFault(
            "CONTENT_TYPE", f"The body's type is {shown(request.headers.get('content-type') or 'not named')}.",
            field="Content-Type", hint=f"This route reads {wanted}.",
        )  # fmt: skip
    if route.body == "form":
        require_own_page(request)
    admitted = StrictRequest(request.scope, _limited(request, route))
    admitted.state.call = Call(service=service, principal=principal, request=admitted)
    return admitted


def _caller(request: Request, route: Route, service: Service) -> Principal:
    """By the token of a program, or by the session of a browser; one that names a token is taken at its word."""
    client = request.client.host if request.client else None
    authorization = authorization_of(request)
    secret = session_secret(request) if authorization is None else None
    if secret is None:
        return _placed(request, service.tokens.principal(authorization, client=client), service)
    principal = service.sessions.principal(secret, client=client, is_own_user=OWN_USER in request.scope)
    principal = _placed(request, principal, service)
    if request.method != "GET":
        require_own_page(request)
        if route.body != "form":  # there the token may stand in the body, which is not read yet
            told = request.headers.get(CSRF_HEADER)
            require_csrf(secret, told, principal=principal, permission=route.permission)
    return principal


def _placed(request: Request, principal: Principal, service: Service) -> Principal:
    """In the project that a header names, or that a browser's session has chosen."""
    asked = request.headers.get(PROJECT_HEADER)
    if asked is None and request.url.path.startswith("/v1/"):
        asked = request.headers.get(OPENAI_PROJECT_HEADER)
    preferred = None
    if authorization_of(request) is None and session_secret(request) is not None:
        preferred = chosen_project(request)
    return service.policies.placed(principal, asked=asked or None, preferred=preferred)


class StrictRequest(Request):
    """FastAPI asks it for the body's JSON, which was read before: in FastAPI's own hands our refusals get lost."""

    form_values: Form

    async def load_form(self, permission: str) -> None:
        """The fields of a page's form, and with a session its CSRF token, from the header or the form."""
        self.form_values = read_form(await self.body())
        secret = session_secret(self) if authorization_of(self) is None else None
        principal = self.state.call.principal
        if secret is not None and principal is not ANYBODY:
            told = self.headers.get(CSRF_HEADER) or self.form_values.text(CSRF_FIELD)
            require_csrf(secret, told, principal=principal, permission=permission)

    async def load_json(self) -> None:
        body = await self.body()
        # what a model wrote may hold a NUL, and goes back into a conversation; nothing of /v1 is stored
        may_hold_nul = self.url.path.startswith("/v1/")
        self._strict_json: Any = read_json(body, may_hold_nul=may_hold_nul) if body else None

    async def json(self) -> Any:
        return self._strict_json


def _limited(request: Request, route: Route) -> Receive:
    """`receive` with the route's cap, before a byte is kept."""
    limit = route.body_limit if route.body != "none" else 0
    length = request.headers.get("content-length", "")
    if limit and length.isdecimal() and int(length[:20]) > limit:
        raise too_large(limit)
    receive = request.receive
    taken = 0
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS if route.body in BODY_TYPES else None

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if limit and taken > limit:
            raise too_large(limit)
        if deadline is not None and message.get("more_body") and asyncio.get_running_loop().time() > deadline:
            raise UsageFault("REQUEST_TIMEOUT", f"The body did not come within {BODY_SECONDS:g} seconds.")
        return message

    return limited


def too_large(limit: int) -> UsageFault:
    return UsageFault(
        "BODY_TOO_LARGE", f"The body is larger than the {limit:,} bytes that this route reads.",
        hint="Send less at a time." if limit <= JSON_BODY_BYTES else (
            "Split the file, or register it where it lies in a declared location."
        ),
    )  # fmt: skip


def _query_names(route: APIRoute) -> frozenset[str]:
    names: set[str] = set()
    for parameter in route.dependant.query_params:
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names |= {each.alias or name for name, each in annotation.model_fields.items()}
        else:
            names.add(parameter.alias)
    return frozenset(names)


def _check_query(request: Request, known: frozenset[str]) -> None:
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        if name not in known:
            allowed = f"It takes {', '.join(sorted(known))}." if known else "It takes none."
            raise UsageFault(
                "UNKNOWN_FIELD", f"{shown(name)} is no parameter of this route.", field=name[:60], hint=allowed
            )
        if name in seen:
            raise UsageFault("INVALID_FIELD", f"{name} stands twice.", field=name, hint="Name it once.")
        if "\0" in value:
            raise UsageFault("INVALID_FIELD", f"{name} holds a NUL character.", field=name)
        seen.add(name)
