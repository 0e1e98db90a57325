"""Fine Tune: the form that makes a job. Every field but the dataset is filled in, with its reason beside it.

Three ways to a dataset lead to an id of the catalog: an upload (`static/js/fine_tune.js` sends it to `/api/datasets`),
a declared bucket, a folder that an administrator declared; both of these are browsed here and read in place, the
version of the object pinned. The plan follows the form as it is typed, from the cached inspection.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from anyio import from_thread
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.bundled import DEMO_SETTINGS, MODEL_NAME, TRAINING_ROWS, VALIDATION_ROWS
from tunesmith.catalog.versions import find_version
from tunesmith.errors import Conflict, TunesmithError, Unknown, UsageFault
from tunesmith.jobs.accept import submission_notices
from tunesmith.server import auth
from tunesmith.server.api import administration, datasets, locations, models, plan, versions
from tunesmith.server.api import jobs as jobs_api
from tunesmith.server.pages import fields, words
from tunesmith.server.pages.jobs import command_line, new_key
from tunesmith.server.pages.page import View, action, page, redirect, seen
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    CURSOR_CHARACTERS,
    BrowseQuery,
    JobSubmission,
    NewLocatedDataset,
    SearchQuery,
    TaggedQuery,
)
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import DatasetView
from tunesmith.spec.faults import checked

SHOWN_DATASETS = 40
ALL = {"limit": 200}
OWN_FIELDS = ("csrf", "key", "results_location", "results_path", "file")  # of the form, not of a submission


class FineTuneQuery(Spec):
    """What a link to the form may fill in."""

    model: str = Field("", max_length=4096)
    dataset: str = Field("", max_length=4096)
    from_version: str = Field("", max_length=140)
    clone: str = Field("", max_length=80, description="A job whose settings are taken over.")


def fine_tune_page(call: CallNow, query: Annotated[FineTuneQuery, Query()]) -> View:
    values: dict[str, str] = {}
    if query.clone:
        auth.require(call.principal, "job.read", query.clone)
        jobs_api.read_view(call, query.clone)
        values = fields.values_of(*call.state.jobs.asked(query.clone))
        values.pop("results", None)  # a place of its own for each
    given = {"model": query.model, "dataset": query.dataset, "from_version": query.from_version}
    values |= {name: text for name, text in given.items() if text}
    if query.from_version:
        auth.require(call.principal, "version.read", query.from_version)
        with call.database.read() as connection:
            values["model"] = find_version(connection, query.from_version, project=call.project).base_name
    return _form(call, values)


def _form(call: Call, values: dict[str, str], *, error: TunesmithError | None = None, status: int = 200) -> View:
    values = {"model": MODEL_NAME} | values
    every = SearchQuery.model_validate(ALL)
    context = {
        "values": defaultdict(str, values),  # a template asks for any field
        "models": _model_names(call, values["model"]),
        **_dataset_choice(call, values.get("dataset", ""), ""),
        "sets": seen(call, "version.read", lambda: versions.list_version_sets(call, every).version_sets),
        "locations": _locations(call),
        "logs": seen(call, "log.read", lambda: administration.list_logs(call, every).logs),
        "networks": seen(call, "network.read", lambda: administration.list_networks(call, every).networks),
        "percent": fields.PERCENT,
        "main": [fields.setting_field(name, values) for name in fields.MAIN],
        "advanced": fields.advanced_fields(values),
        "is_changed": any(
            name in values for _, group in fields.advanced_fields({}) for name in (f.name for f in group)
        ),
        "results_path": values.get("results_path") or f"{datetime.now(UTC):%Y-%m-%d}-{secrets.token_hex(3)}",
        "key": new_key(),
        "error": error,
        "is_local": call.principal.is_local,
    }
    return View(template="fine_tune/form.html", context=context, status=status)


def _model_names(call: Call, chosen: str) -> list[str]:
    every = TaggedQuery.model_validate(ALL)
    names = [model.name for model in seen(call, "model.read", lambda: models.list_models(call, every).models)]
    return names if chosen in names else [chosen, *names]


def _locations(call: Call) -> list[Any]:
    every = SearchQuery.model_validate(ALL)
    return seen(call, "location.read", lambda: locations.list_locations(call, every).locations)


# ---- choosing a dataset


class ChoiceQuery(Spec):
    chosen: str = Field("", max_length=4096)
    search: str = Field("", max_length=200)


def dataset_choice(call: CallNow, query: Annotated[ChoiceQuery, Query()]) -> View:
    return View(template="fine_tune/datasets.html", context=_dataset_choice(call, query.chosen, query.search))


def _dataset_choice(call: Call, chosen: str, search: str) -> dict[str, Any]:
    asked = TaggedQuery.model_validate({"limit": SHOWN_DATASETS, "search": search or None})
    listed = seen(call, "dataset.read", lambda: datasets.list_datasets(call, asked).datasets)
    present: list[DatasetView] = [each for each in listed if each.dataset_id == chosen]
    if chosen and not present and chosen.startswith("ds-") and auth.may(call.principal, "dataset.read"):
        try:
            present = [datasets.show_dataset(call, chosen)]
        except Unknown:
            chosen = ""
    others = [each for each in listed if each.dataset_id != chosen]
    return {
        "datasets": [*present, *others],
        "chosen": chosen,
        "search": search,
        "chosen_path": chosen if chosen and not present else "",
    }


class BrowseForm(Spec):
    location: str = Field(max_length=63)
    path: str = Field("", max_length=1024)
    after: str = Field("", max_length=4 * CURSOR_CHARACTERS)


def browse(call: CallNow, query: Annotated[BrowseForm, Query()]) -> View:
    asked = BrowseQuery.model_validate({"path": query.path, "after": query.after or None})
    found = locations.browse_location(call, query.location, asked)
    steps = [step for step in query.path.split("/") if step]
    crumbs = [("/".join(steps[: place + 1]), step) for place, step in enumerate(steps)]
    context = {"location": query.location, "entries": found.entries, "next": found.next, "crumbs": crumbs}
    return View(template="fine_tune/browse.html", context=context | {"path": query.path})


def register(call: CallNow) -> View:
    """Pin what lies there now as a dataset of the catalog, and choose it."""
    given = call.form.texts()
    new = checked(NewLocatedDataset, {name: given.get(name) for name in ("location", "path")})
    chosen = datasets.known_or_registered(call, new)
    return View(template="fine_tune/datasets.html", context=_dataset_choice(call, chosen, ""))


def example(call: CallNow) -> View:
    """The bundled rows as a dataset, and choose it."""
    return View(
        template="fine_tune/datasets.html", context=_dataset_choice(call, _bundled(call, "training").dataset_id, "")
    )


def _bundled(call: Call, role: str) -> DatasetView:
    name = words.EXAMPLE_ROWS.format(role=role)
    known = datasets.list_datasets(call, TaggedQuery.model_validate({"search": name, "limit": 1})).datasets
    path = TRAINING_ROWS if role == "training" else VALIDATION_ROWS
    return known[0] if known else datasets.add_file(call, path, name=name)


def check_results(call: CallNow) -> View:
    """Whether a location answers, can be written and keeps versions: what the job would meet."""
    name = call.form.text("results_location")
    if name is None:
        return View(template="fine_tune/results.html", context={"check": None, "error": None})
    try:
        check = locations.check_location(call, name)
    except TunesmithError as error:
        return View(template="fine_tune/results.html", context={"check": None, "error": error})
    return View(template="fine_tune/results.html", context={"check": check, "error": None})


# ---- plan and start


def show_plan(call: CallNow) -> View:
    """A part: the plan of the form as it is, what was understood of the rows, and each field's reason."""
    context: dict[str, Any] = {"view": None, "error": None, "command": None, "notices": []}
    try:
        submission = _submission(call)
        if not submission.dataset:
            raise UsageFault("MISSING_FIELD", "No dataset is chosen yet.", field="dataset")
        request, settings = submission.parts()
        context["command"] = command_line(request, settings)
        context["view"] = found = plan.make_plan(call, submission)
        context["notices"] = [*submission_notices(request), *found.notices]
    except TunesmithError as error:
        context["error"] = fields.in_form_words(error)
    return View(template="fine_tune/plan.html", context=context)


def start(call: CallNow) -> View | Response:
    form = call.form.texts()
    try:
        submission = _submission(call)
        address = _submitted(call, submission, form.get("key"))
    except Conflict as error:
        if error.code != "IDEMPOTENCY_KEY_REUSED":
            return _again(call, error)
        told = Conflict(
            error.code,
            "This form started a job before, and was changed since.",
            hint="Press Start to start another one.",
        )
        return _again(call, told)
    except TunesmithError as error:
        return _again(call, fields.in_form_words(error))
    return redirect(address)


def _again(call: Call, error: TunesmithError) -> View:
    """The form as it was sent, with what is wrong."""
    return _form(call, call.form.texts(), error=error, status=422)


def _submission(call: Call) -> JobSubmission:
    values = call.form.texts()
    place = values.get("results_location")
    if place is not None:
        values["results"] = f"{place}:{values.get('results_path', '')}"
    given = {name: text for name, text in values.items() if name not in OWN_FIELDS}
    if not given.get("dataset"):
        raise UsageFault("MISSING_FIELD", "No dataset is chosen yet.", field="dataset", hint="Choose one above.")
    return fields.submission_of(given)


def _submitted(call: Call, submission: JobSubmission, key: str | None) -> str:
    """The page of the model version to be; REST's own handler, of the event loop, is asked from this thread."""
    answer = from_thread.run(jobs_api.submit_job, call, submission, key)
    return f"/versions/{quote(orjson.loads(answer.body)['model_version'], safe=':')}"


def run_demo(call: CallNow) -> Response:
    """What `tunesmith demo` does, as a job of the service."""
    wanted: dict[str, Any] = {
        "model": MODEL_NAME,
        "dataset": _bundled(call, "training").dataset_id,
        "validation_dataset": _bundled(call, "validation").dataset_id,
        "name": "Demo",
        "version_set": "demo",
        **{name: value for name, value in DEMO_SETTINGS.items() if name != "validation_fraction"},
    }
    return redirect(_submitted(call, JobSubmission.model_validate(wanted), call.form.text("key")))


FORM = "/fine-tune"
ROUTES = [
    page(FORM, fine_tune_page, permission="job.submit", summary="Fine Tune"),
    action(FORM, start, permission="job.submit", summary="Start a job"),
    action(f"{FORM}/plan", show_plan, permission="job.plan", summary="The plan of the form as it is"),
    page(f"{FORM}/datasets", dataset_choice, permission="dataset.read", summary="Datasets to choose from"),
    page(f"{FORM}/browse", browse, permission="location.browse", summary="What lies in a location"),
    action(f"{FORM}/register", register, permission="dataset.add", summary="Take an object of a location as dataset"),
    action(f"{FORM}/example", example, permission="dataset.add", summary="Take the bundled rows as dataset"),
    action(f"{FORM}/results", check_results, permission="location.check", summary="Check a results location"),
    action("/demo", run_demo, permission="job.submit", summary="Run the demo"),
]
