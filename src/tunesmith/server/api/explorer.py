"""The model explorer: cards of what is here and what is known, one model's page, its chat template at work."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import Query

from tunesmith.catalog.explorer import explore, find_card
from tunesmith.catalog.known import find_known, known_models
from tunesmith.catalog.versions import list_versions
from tunesmith.errors import Conflict
from tunesmith.jobs.inputs import registered_folder
from tunesmith.jobs.inspection import Inspection
from tunesmith.plan.fit import memory_fits
from tunesmith.server.auth import may
from tunesmith.server.inputs import inspecting
from tunesmith.server.routes import Route
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.catalog import VersionView
from tunesmith.spec.datasets import DatasetInput, InspectRequest, InspectResponse, PreviewWish
from tunesmith.spec.explorer import (
    ExplorerPage,
    ExplorerQuery,
    ModelDetail,
    NamedSource,
    TemplatePreview,
    missing_part,
)
from tunesmith.spec.training import TrainingSettings

SHOWN_VERSIONS = 20
EXAMPLE = [
    {"role": "user", "content": "When does the shop open on Sundays?"},
    {"role": "assistant", "content": "At ten o'clock."},
]


def explore_models(call: CallNow, query: Annotated[ExplorerQuery, Query()]) -> ExplorerPage:
    """Cards of the base models that are here and of well-known ones, labelled; filtered, sorted, in pages."""
    with call.database.read() as connection:
        return explore(connection, query, project=_counted(call))


def _counted(call: Call) -> str | None:
    """The project whose versions are counted: a base model is everybody's, what was tuned on it is not."""
    return call.project if may(call.principal, "version.read") else None


def show_model_detail(call: CallNow, name: str) -> ModelDetail:
    """One model: facts with their sources, the memory that fine-tuning needs here, its fine-tuned versions."""
    with call.database.read() as connection:
        card, registered = find_card(connection, name, project=_counted(call))
    known = find_known(card.hub_id)
    with call.database.read() as connection:
        tuned: list[VersionView] = []
        if may(call.principal, "version.read"):
            tuned = list_versions(connection, project=call.project, base_name=card.name, limit=SHOWN_VERSIONS).items
    sizes = registered.facts if registered is not None else known.sizes() if known is not None else None
    lacking = missing_part(card.model_type or "", has_experts=known is not None and known.experts is not None)
    return ModelDetail(
        card=card,
        known=known,
        sources=[
            NamedSource(facts=facts, source=known_models().sources[key])
            for facts, key in (known.sources.as_json().items() if known is not None else ())
        ],
        facts=registered.facts if registered is not None else None,
        path=registered.path if registered is not None and call.principal.is_local else None,
        licence_note=registered.licence_note if registered is not None else "",
        memory=memory_fits(sizes, call.service.devices.machine()) if sizes is not None else [],
        memory_note=None if sizes is not None else f"No estimate: fine-tuning it lacks {lacking}.",
        tuned=tuned,
    )


def preview_template(call: CallNow, name: str) -> TemplatePreview:
    """A short conversation as the model reads it; of a model without a template, as plain text."""
    with call.database.read() as connection:
        _, registered = find_card(connection, name, project=_counted(call))
    if registered is None:
        raise Conflict(
            "MODEL_NOT_HERE", f"The weights and the tokenizer of {name} are not here.", field="name",
            hint="Download the model, or register a folder that holds it.",
        )  # fmt: skip
    folder = registered_folder(
        registered.name, registered.path, state=call.state, environment=call.service.environment
    ).path
    facts = registered.facts
    if facts.has_chat_template:
        row: object = {"messages": EXAMPLE}
    else:
        row = {"prompt": EXAMPLE[0]["content"] + "\n", "completion": EXAMPLE[1]["content"]}
    with tempfile.TemporaryDirectory(dir=call.state.home.uploads, ignore_cleanup_errors=True) as temporary:
        rows = Path(temporary) / "rows.jsonl"
        rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
        question = InspectRequest(
            model_name=registered.name,
            model_path=str(folder),
            datasets=[DatasetInput(role="training", path=str(rows), name="example", columns={})],
            settings=TrainingSettings.model_validate({"validation_fraction": 0}),
            cache_folder=str(call.state.home.cache),
            preview=PreviewWish(),
        )
        answer = _inspected(call, question)
    assert answer.preparation is not None
    return TemplatePreview(has_template=facts.has_chat_template, pieces=answer.preparation.previews[0].pieces)


def _inspected(call: Call, question: InspectRequest) -> InspectResponse:
    with (
        inspecting(call),
        Inspection(question, home=call.state.home, environment=call.service.environment) as inspection,
    ):
        return inspection.answer()


ROUTES = [
    Route(
        method="GET", path="/api/explorer", handler=explore_models, permission="model.read",
        summary="Explore base models", answer=ExplorerPage,
    ),
    Route(
        method="GET", path="/api/explorer/model/{name:path}", handler=show_model_detail, permission="model.read",
        summary="All about one base model", answer=ModelDetail, refusals=(404,),
    ),
    Route(
        method="GET", path="/api/explorer/template/{name:path}", handler=preview_template, permission="model.read",
        summary="A conversation as the model reads it", answer=TemplatePreview, refusals=(404, 409),
    ),
]  # fmt: skip
