"""Is it up, and what does it run on."""

from __future__ import annotations

import shutil

import sqlalchemy as sa

from tunesmith import __version__
from tunesmith.server.auth import PUBLIC
from tunesmith.server.routes import Route
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import DeviceView, Health, SystemView
from tunesmith.spec.jobs import FINAL_STATES, JobState
from tunesmith.storage.tables import JOBS


async def health() -> Health:
    """Answers as soon as the server serves. Needs no token and tells nothing else."""
    return Health(status="ok", version=__version__)


def show_system(call: CallNow) -> SystemView:
    disk = shutil.disk_usage(call.state.home.root)
    unfinished = [state for state in JobState if state not in FINAL_STATES]
    with call.database.read() as connection:
        rows = connection.execute(
            sa.select(JOBS.c.state, sa.func.count()).where(JOBS.c.state.in_(unfinished)).group_by(JOBS.c.state)
        ).all()
    return SystemView(
        version=__version__,
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        devices=[
            DeviceView(name=slot.name, free_bytes=slot.free_bytes, jobs=list(slot.users))
            for slot in call.service.devices.slots(_where(call))
        ],
        jobs=dict.fromkeys(unfinished, 0) | {JobState(state): count for state, count in rows},
    )


def _where(call: Call) -> dict[str, str]:
    running = call.service.queue.running() if call.service.queue is not None else {}
    return {job_id: slot for job_id, slot in running.items() if slot is not None}


ROUTES = [
    Route(
        method="GET", path="/healthz", handler=health, permission=PUBLIC, summary="Is the server up",
        answer=Health, example={"status": "ok", "version": __version__},
    ),
    Route(
        method="GET", path="/api/system", handler=show_system, permission="system.read",
        summary="Version, disk, devices and queue", answer=SystemView,
    ),
]  # fmt: skip
