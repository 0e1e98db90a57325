"""The first page: what runs, what came of it, what the machine has; where there is nothing yet, how to begin."""

from __future__ import annotations

from tunesmith.server.api.jobs import list_jobs
from tunesmith.server.api.system import show_system
from tunesmith.server.api.versions import list_versions
from tunesmith.server.auth import may
from tunesmith.server.pages.jobs import new_key
from tunesmith.server.pages.page import View, page, seen
from tunesmith.server.service import CallNow
from tunesmith.spec.api import JobQuery, VersionQuery
from tunesmith.spec.jobs import FINAL_STATES

SHOWN_JOBS = 8
SHOWN_VERSIONS = 6


def home(call: CallNow) -> View:
    asked = JobQuery.model_validate({"limit": SHOWN_JOBS})
    wanted = VersionQuery.model_validate({"limit": SHOWN_VERSIONS})
    jobs = seen(call, "job.read", lambda: list_jobs(call, asked).jobs)
    versions = seen(call, "version.read", lambda: list_versions(call, wanted).versions)
    running = [job for job in jobs if job.state not in FINAL_STATES]
    context = {
        "running": running,
        "finished": [job for job in jobs if job.state in FINAL_STATES][:5],
        "versions": versions,
        "system": show_system(call) if may(call.principal, "system.read") else None,
        "is_first_run": not jobs and not versions and may(call.principal, "job.submit"),
        "key": new_key(),
    }
    return View(template="home.html", context=context)


ROUTES = [page("/", home, permission="project.read", summary="Home")]
