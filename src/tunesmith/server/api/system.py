"""Is it up, and what does it run on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import sqlalchemy as sa

from tunesmith import __version__
from tunesmith.jobs.home import Home
from tunesmith.jobs.queue import HIDDEN_JOB, Slot
from tunesmith.jobs.slots import gpu_name
from tunesmith.plan.machine import LEAST_DISK_BYTES, Machine, machine_notices
from tunesmith.server.api.jobs import own_jobs
from tunesmith.server.auth import PUBLIC
from tunesmith.server.routes import Route
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    DeviceView,
    GpuView,
    Health,
    MachineView,
    ShapeDevice,
    ShapePage,
    ShapeView,
    SystemView,
)
from tunesmith.spec.jobs import FINAL_STATES, JobState
from tunesmith.spec.requests import LOCAL_SHAPE
from tunesmith.storage.database import FILE_NAME
from tunesmith.storage.tables import JOBS


async def health() -> Health:
    """Answers as soon as the server serves. Needs no token and tells nothing else."""
    return Health(status="ok", version=__version__)


def show_system(call: CallNow) -> SystemView:
    """Release, disk, memory, GPUs, unfinished jobs, and what somebody should see to."""
    disk = shutil.disk_usage(call.state.home.root)
    machine = call.service.devices.machine()
    unfinished = [state for state in JobState if state not in FINAL_STATES]
    slots = call.service.devices.slots(_where(call))
    named = _named(call, slots)
    with call.database.read() as connection:
        rows = connection.execute(
            sa.select(JOBS.c.state, sa.func.count()).where(JOBS.c.state.in_(unfinished)).group_by(JOBS.c.state)
        ).all()
    return SystemView(
        version=__version__,
        started_at=call.service.started_at,
        state_folder=str(call.state.home.root),
        disk_warning_bytes=LEAST_DISK_BYTES,
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
        database_bytes=_database_bytes(call.state.home),
        machine=_machine(machine),
        devices=[DeviceView(name=slot.name, free_bytes=slot.free_bytes, jobs=named[slot.name]) for slot in slots],
        jobs=dict.fromkeys(unfinished, 0) | {JobState(state): count for state, count in rows},
        answering=call.service.serving.loaded(),
        notices=machine_notices(machine, free_disk_bytes=disk.free),
    )


def list_shapes(call: CallNow) -> ShapePage:
    """Machines that jobs may run on, with what is free now. Today that is the service's own, called `local`."""
    machine = call.service.devices.machine()
    gpus = {gpu_name(gpu.index): gpu for gpu in machine.gpus}
    slots = call.service.devices.slots(_where(call))
    named = _named(call, slots)
    devices = [
        ShapeDevice(
            name=slot.name, free_bytes=slot.free_bytes, jobs=named[slot.name],
            model=gpus[slot.name].name if slot.name in gpus else machine.processor,
            total_bytes=gpus[slot.name].total_bytes if slot.name in gpus else machine.total_memory_bytes,
        )
        for slot in slots
    ]  # fmt: skip
    local = ShapeView(
        name=LOCAL_SHAPE, is_discovered=True, system=machine.system, processor=machine.processor, cores=machine.cores,
        memory_bytes=machine.total_memory_bytes, free_memory_bytes=machine.free_memory_bytes,
        accelerator=machine.device_name if machine.device == "cuda" else None, devices=devices, maximum_replicas=1,
    )  # fmt: skip
    return ShapePage(shapes=[local], next=None)


def _database_bytes(home: Home) -> int:
    """With what stands in its write-ahead log."""
    files = (home.root / f"{FILE_NAME}{ending}" for ending in ("", "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def _machine(machine: Machine) -> MachineView:
    return MachineView(
        system=machine.system, processor=machine.processor, cores=machine.cores,
        total_memory_bytes=machine.total_memory_bytes, free_memory_bytes=machine.free_memory_bytes,
        gpus=[
            GpuView(
                index=gpu.index, name=gpu.name, total_bytes=gpu.total_bytes, free_bytes=gpu.free_bytes,
                driver=gpu.driver,
            )
            for gpu in machine.gpus
        ],
        torch_version=machine.torch_version,
        trains_on="GPU" if machine.device == "cuda" else "CPU",
    )  # fmt: skip


def _where(call: Call) -> dict[str, str]:
    running = call.service.queue.running() if call.service.queue is not None else {}
    return {job_id: slot for job_id, slot in running.items() if slot is not None}


def _named(call: Call, slots: Sequence[Slot]) -> dict[str, list[str]]:
    """By slot, the jobs on it: those of the caller's project by their ids, others as what they are."""
    own = own_jobs(call, {job_id for slot in slots for job_id in slot.users})
    return {slot.name: [job_id if job_id in own else HIDDEN_JOB for job_id in slot.users] for slot in slots}


ROUTES = [
    Route(
        method="GET", path="/healthz", handler=health, permission=PUBLIC, summary="Is the server up",
        answer=Health, example={"status": "ok", "version": __version__},
    ),
    Route(
        method="GET", path="/api/system", handler=show_system, permission="system.read",
        summary="Release, disk, devices and queue", answer=SystemView,
    ),
    Route(
        method="GET", path="/api/shapes", handler=list_shapes, permission="shape.read",
        summary="List the shapes that jobs may run on", answer=ShapePage,
    ),
]  # fmt: skip
