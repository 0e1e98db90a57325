"""What a job would do and cost; starts nothing."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body

from tunesmith.jobs.finetune import prepare_job
from tunesmith.server.inputs import check_places, inspecting
from tunesmith.server.routes import Route
from tunesmith.server.service import CallNow
from tunesmith.spec.api import JobSubmission, PlanView


def make_plan(call: CallNow, submission: Annotated[JobSubmission, Body()]) -> PlanView:
    """The body of a submission to its plan: every setting resolved with its reason, memory, time, what must be said."""
    request, settings = submission.parts()
    check_places(call, request)
    with inspecting(call):
        prepared = prepare_job(
            request, settings, state=call.state, environment=call.service.environment, progress=_unsaid,
            project=call.project, with_previews=True,
        )  # fmt: skip
    return PlanView(
        plan=prepared.plan, notices=prepared.notices(), preparation=prepared.preparation, reports=prepared.reports,
        version_set=prepared.version_set,
    )  # fmt: skip


def _unsaid(_what: str) -> None:
    """The answer says it all."""


ROUTES = [
    Route(
        method="POST", path="/api/plan", handler=make_plan, permission="job.plan", summary="Plan a job",
        answer=PlanView, refusals=(404, 409), body="json",
        request_example={"model": "tunesmith/demo", "dataset": "ds-0123456789abcdef", "epochs": 3},
    ),
]  # fmt: skip
