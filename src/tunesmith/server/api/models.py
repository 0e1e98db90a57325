"""Base models: list, register a folder, show, change, forget."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy as sa
from fastapi import Body, Query
from starlette.responses import Response

from tunesmith.catalog import models
from tunesmith.jobs.buckets import bucket_model
from tunesmith.jobs.inputs import in_location, location_of, results_uri
from tunesmith.jobs.inspection import Inspection
from tunesmith.server.inputs import check_path, check_place, inspecting
from tunesmith.server.once import IdempotencyKey, once
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import ModelPage, TaggedQuery
from tunesmith.spec.catalog import BaseModelChange, BaseModelView, NewBaseModel
from tunesmith.spec.datasets import InspectRequest
from tunesmith.storage.locations import is_bucket, local_path


def list_models(call: CallNow, query: Annotated[TaggedQuery, Query()]) -> ModelPage:
    """The newest first; the bundled model leads."""
    with call.database.read() as connection:
        page = models.list_models(connection, search=query.search, tag=query.tag, after=query.after, limit=query.limit)
    return ModelPage(models=page.items, next=page.next)


def register_model(
    call: CallNow, new: Annotated[NewBaseModel, Body()], idempotency_key: IdempotencyKey = None
) -> Response:
    """Give a model a name: a folder of the service's machine, or what lies in a declared location or a bucket.

    It is inspected first, which takes some seconds; what lies in a bucket is fetched into the cache for that.
    """
    new = new.model_copy(update={"path": _place(call, new.path)})
    if is_bucket(new.path):
        location = location_of(new.path, state=call.state)
        path = bucket_model(location, home=call.state.home, environment=call.service.environment).path
    else:
        path = local_path(new.path, field="path")
    question = InspectRequest(model_name=new.name, model_path=str(path))
    with (
        inspecting(call),
        Inspection(question, home=call.state.home, environment=call.service.environment) as inspection,
    ):
        facts = inspection.answer().facts
    assert facts is not None, "a folder alone is answered by its facts or an error"

    def make(connection: sa.Connection) -> str:
        return models.register_model(connection, new, facts=facts, actor=call.actor).name

    name, is_new = once(call, idempotency_key, new, route="POST /api/models", make=make)
    return created(show_model(call, name), is_new=is_new)


def _place(call: Call, text: str) -> str:
    """The local path, or the URI in a bucket, of what a caller may name. Raises what `check_path` raises, Unknown."""
    if in_location(text) is None:
        check_path(call, text, field="path")
        return text
    check_place(call, text, field="path")
    uri = results_uri(text, state=call.state, field="path")
    return uri if is_bucket(uri) else str(local_path(uri, field="path"))


def show_model(call: CallNow, name: str) -> BaseModelView:
    """A base model with what its inspection found."""
    with call.database.read() as connection:
        return models.find_model(connection, name)


def change_model(call: CallNow, name: str, change: Annotated[BaseModelChange, Body()]) -> BaseModelView:
    """Change its description or its tags."""
    return call.database.write_grouped(
        lambda connection: models.change_model(connection, name, change, actor=call.actor)
    )


def delete_model(call: CallNow, name: str) -> None:
    """Take it out of the catalog; its folder stays as it is. 409 while versions need it."""
    call.database.write_grouped(
        lambda connection: models.delete_model(connection, name, project=call.project, actor=call.actor)
    )


MODEL = "/api/models/{name:path}"
ROUTES = [
    Route(
        method="GET", path="/api/models", handler=list_models, permission="model.read", summary="List base models",
        answer=ModelPage,
    ),
    Route(
        method="POST", path="/api/models", handler=register_model, permission="model.register",
        summary="Register a base model", answer=BaseModelView, status=201, statuses=(200,), refusals=(404, 409),
        body="json", request_example={"name": "my-base", "path": "/srv/models/my-base", "description": "7B, chat"},
    ),
    Route(
        method="GET", path=MODEL, handler=show_model, permission="model.read", summary="Show a base model",
        answer=BaseModelView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=MODEL, handler=change_model, permission="model.change", summary="Change a base model",
        answer=BaseModelView, refusals=(404, 409), body="json", request_example={"tags": {"team": "support"}},
    ),
    Route(
        method="DELETE", path=MODEL, handler=delete_model, permission="model.delete", summary="Forget a base model",
        status=204, refusals=(404, 409),
    ),
]  # fmt: skip
