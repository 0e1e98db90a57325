"""Jobs: the list, and one job with its curves, metrics, verdict, timeline, log and settings.

The page of a job is whole when it comes, and readable without a script. `static/js/job.js` draws the curves and follows
the events; on each that is no step it asks for the parts anew (`/jobs/{job_id}/parts`), so that what a person sees is
rendered in one place.
"""

from __future__ import annotations

import shlex
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlencode

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import Unknown
from tunesmith.jobs.events import OTHER_KINDS, History
from tunesmith.jobs.inputs import dataset_name
from tunesmith.jobs.records import JobFolder, read_plan, read_preparation
from tunesmith.jobs.settings import option_name
from tunesmith.server.api import jobs as api
from tunesmith.server.pages import words
from tunesmith.server.pages.page import View, action, done, is_part, page, redirect
from tunesmith.server.pages.pictures import epoch_charts
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, JobQuery, JobView, LogQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import VersionMetrics
from tunesmith.spec.jobs import FINAL_STATES, JobState
from tunesmith.spec.metrics import (
    AnyEvent,
    AttemptEvent,
    CheckpointEvent,
    FailureEvent,
    FinishedEvent,
    NoticeEvent,
    PhaseEvent,
    StateEvent,
    overfits_from,
)
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings

LOG_LINES = 500
# Events that only tell what a chart or a tile shows already.
UNTOLD_NOTICES = frozenset({"MODEL"})


# ---- the list


class JobListQuery(Spec):
    """The list's own form; a field that was left empty is absent."""

    search: str = Field("", max_length=200)
    state: JobState | Literal[""] = ""
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def job_list(call: CallNow, query: Annotated[JobListQuery, Query()]) -> View:
    asked = {"search": query.search.strip() or None, "state": query.state or None, "after": query.after or None}
    found = api.list_jobs(call, JobQuery.model_validate(asked))
    kept = {name: value for name, value in (("search", query.search), ("state", query.state)) if value}
    context = {
        "jobs": found.jobs,
        "next": found.next,
        "query": query,
        "states": list(JobState),
        "is_live": query.after is None and any(job.state not in FINAL_STATES for job in found.jobs),
        "kept": urlencode(kept),
    }
    return View(template="jobs/table.html" if is_part(call.request) else "jobs/list.html", context=context)


# ---- one job


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One line of the timeline."""

    time: str
    tone: str
    icon: str
    title: str
    text: str = ""


def job_page(call: CallNow, job_id: str) -> View:
    return View(template="jobs/job.html", context=overview(call, job_id) | {"tab": "overview"})


def job_parts(call: CallNow, job_id: str) -> View:
    return View(template="jobs/parts.html", context=overview(call, job_id))


def overview(call: Call, job_id: str, *, parts_address: str | None = None) -> dict[str, Any]:
    """What a job's page shows, and its version's while that is made. parts_address: where the page's parts are."""
    job = api.read_view(call, job_id)
    history, moments = History(), list[Moment]()
    for each in call.state.jobs.events(job_id, kinds=OTHER_KINDS):
        history.add(each.event)
        told = _moment(each.event, job)
        if told is not None and (not moments or (told.title, told.text) != (moments[-1].title, moments[-1].text)):
            moments.append(told)
    epochs = [history.epochs[number] for number in sorted(history.epochs)]
    request, settings = call.state.jobs.asked(job_id)
    metrics = VersionMetrics(epochs=epochs, best_epoch=_best_epoch(history, epochs))
    return _frame(job) | {
        "request": request,
        "dataset_name": _dataset_name(call, request.dataset),
        "asked_epochs": settings.epochs,
        "parts_address": parts_address or f"/jobs/{job_id}/parts",
        **metrics_panel(metrics, of=job.model_version, asked_epochs=settings.epochs),
        "verdict": history.verdict,
        "samples": history.samples,
        "notices": [notice for notice in history.notices if notice.code not in UNTOLD_NOTICES],
        "moments": moments[::-1],
        "finished": history.finished,
        "last_step": _last_step(call, job_id),
        "command": f"tunesmith job watch {job.job_id}",
    }


def metrics_panel(metrics: VersionMetrics, *, of: str, asked_epochs: int = 0) -> dict[str, Any]:
    """What `parts/metrics.html` needs. of: the model version. asked_epochs: how many there will be, if known."""
    from_epoch = overfits_from(metrics.epochs)
    charts = epoch_charts(metrics, of=of, asked_epochs=asked_epochs, overfits_from=from_epoch)
    return {"metrics": metrics, "overfits_from": from_epoch, "charts": charts}


def _frame(job: JobView) -> dict[str, Any]:
    return {
        "job": job,
        "is_final": job.state in FINAL_STATES,
        "phase_words": words.WORDS["phases"].get(job.phase or "", ""),
        "is_paused": job.is_paused,
    }


def _dataset_name(call: Call, text: str) -> str:
    """What its owner calls it; one that was deleted since, or a path, is told as it was asked for."""
    try:
        return dataset_name(text, state=call.state, project=call.project) or text
    except Unknown:
        return text


def _last_step(call: Call, job_id: str) -> Any:
    found = call.state.jobs.events(job_id, kinds=("step",), newest=True, limit=1)
    return found[0].event if found else None


def _best_epoch(history: History, epochs: list[Any]) -> int | None:
    """As the run will choose it, also before it ended."""
    if history.finished is not None:
        return history.finished.best_epoch
    measured = [each for each in epochs if each.epoch > 0 and each.validation is not None]
    return min(measured, key=lambda each: each.validation.loss).epoch if measured else None


def _moment(event: AnyEvent, job: JobView) -> Moment | None:
    match event:
        case StateEvent():
            tone = {"SUCCEEDED": "good", "FAILED": "bad", "CANCELED": "off", "CANCELING": "warn"}.get(
                event.state, "live"
            )
            symbol = {"SUCCEEDED": "circle-check", "FAILED": "circle-x", "CANCELED": "ban"}.get(
                event.state, "circle-play"
            )
            text = job.failure["message"] if event.state == "FAILED" and job.failure else ""
            return Moment(time=event.time, tone=tone, icon=symbol, title=words.STATE_MOVES[event.state], text=text)
        case AttemptEvent():
            resumed = words.MOMENTS["resumed"].format(step=event.resumed_at) if event.resumed_at else ""
            title = words.MOMENTS["attempt"].format(number=event.attempt)
            return Moment(time=event.time, tone="live", icon="rocket", title=title, text=resumed)
        case PhaseEvent():
            title = words.WORDS["phases"].get(event.phase, event.phase)
            tone = "warn" if event.phase == "waiting" else "off"
            if event.done is not None:
                return None  # how far a phase is stands at the top
            symbol = "clock" if event.phase == "waiting" else "chevron-right"
            return Moment(time=event.time, tone=tone, icon=symbol, title=title, text=event.detail or "")
        case CheckpointEvent():
            title = words.MOMENTS["checkpoint"].format(step=event.after_steps)
            return Moment(time=event.time, tone="off", icon="lock", title=title)
        case NoticeEvent():
            return Moment(time=event.time, tone="warn", icon="info", title=event.message, text=event.hint or "")
        case FailureEvent():
            title = words.MOMENTS["failed_retried" if event.retry else "failed"]
            return Moment(time=event.time, tone="bad", icon="circle-alert", title=title, text=event.error["message"])
        case FinishedEvent():
            title = words.MOMENTS["finished"].format(epoch=event.best_epoch)
            return Moment(time=event.time, tone="good", icon="check", title=title)
        case _:
            return None


# ---- log and settings


class LogPageQuery(Spec):
    search: str = Field("", max_length=200)


def job_log(call: CallNow, job_id: str, query: Annotated[LogPageQuery, Query()]) -> View:
    job = api.read_view(call, job_id)
    asked = LogQuery.model_validate({"lines": LOG_LINES, "search": query.search or None})
    lines = api.show_log(call, job_id, asked).lines
    context = _frame(job) | {"lines": lines, "query": query, "limit": LOG_LINES, "tab": "log"}
    return View(template="jobs/log_lines.html" if is_part(call.request) else "jobs/log.html", context=context)


def job_settings(call: CallNow, job_id: str) -> View:
    job = api.read_view(call, job_id)
    request, asked = call.state.jobs.asked(job_id)
    folder = JobFolder(path=call.state.home.jobs / job_id)
    plan = read_plan(folder) if folder.plan.exists() else None
    preparation = read_preparation(folder) if folder.preparation.exists() else None
    context = _frame(job) | {
        "request": request,
        "settings": setting_lines(
            plan.settings if plan is not None else asked, plan.reasons if plan is not None else {}
        ),
        "plan": plan,
        "preparation": preparation,
        "command": command_line(request, asked),
        "tab": "settings",
    }
    return View(template="jobs/settings.html", context=context)


def setting_lines(settings: TrainingSettings, reasons: dict[str, str]) -> list[tuple[str, str, str]]:
    """Name, value, and why: the plan's reason, else what the setting is."""
    lines: list[tuple[str, str, str]] = []
    for name, field in TrainingSettings.model_fields.items():
        lines.append((name, _as_typed(getattr(settings, name)), reasons.get(name) or field.description or ""))
    return lines


def command_line(request: FinetuneRequest, settings: TrainingSettings) -> str:
    """The command that submits the same job: what differs from the defaults."""
    options: list[str] = []
    for model in (request, settings):
        for name, field in type(model).model_fields.items():
            value: Any = getattr(model, name)
            if name in ("model", "dataset") or value == field.get_default(call_default_factory=True):
                continue
            options += [option_name(name), shlex.quote(_as_typed(value))]
    return " ".join(["tunesmith job submit", shlex.quote(request.model), shlex.quote(request.dataset), *options])


def _as_typed(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{ours}={theirs}" for ours, theirs in cast(dict[str, str], value).items())
    return ",".join(cast(tuple[str, ...], value)) if isinstance(value, tuple) else str(value)


# ---- acts


def cancel(call: CallNow, job_id: str) -> Response:
    api.cancel_job(call, job_id)
    return redirect(f"/jobs/{job_id}")


def pause(call: CallNow, job_id: str) -> Response:
    api.pause_job(call, job_id)
    return redirect(f"/jobs/{job_id}")


def resume(call: CallNow, job_id: str) -> Response:
    api.resume_job(call, job_id)
    return redirect(f"/jobs/{job_id}")


def new_key() -> str:
    """For a form that makes something: pressed twice, it makes it once."""
    return str(uuid.uuid4())


def delete_page(call: CallNow, job_id: str) -> View:
    """Asks, and says what goes and what stays. A refusal (it has not ended) is a page of its own."""
    context = {"job": api.read_view(call, job_id), "deletion": api.show_deletion(call, job_id)}
    return View(template="jobs/delete.html", context=context)


def delete(call: CallNow, job_id: str) -> Response:
    api.remove_job(call, job_id)
    return done(call, "/jobs")


JOB = "/jobs/{job_id}"
ROUTES = [
    page("/jobs", job_list, permission="job.read", summary="Jobs"),
    page(JOB, job_page, permission="job.read", summary="One job, live"),
    page(f"{JOB}/parts", job_parts, permission="job.read", summary="The parts of a job's page that change"),
    page(f"{JOB}/log", job_log, permission="job.read", summary="A job's log"),
    page(f"{JOB}/settings", job_settings, permission="job.read", summary="A job's settings and plan"),
    page(f"{JOB}/delete", delete_page, permission="job.delete", summary="Before a job is deleted"),
    action(f"{JOB}/delete", delete, permission="job.delete", summary="Delete a job"),
    action(f"{JOB}/cancel", cancel, permission="job.cancel", summary="Cancel a job"),
    action(f"{JOB}/pause", pause, permission="job.pause", summary="Pause a job"),
    action(f"{JOB}/resume", resume, permission="job.resume", summary="Resume a job"),
]
