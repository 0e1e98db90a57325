"""Which job starts next, on which slot, and what the others are told: their place in the queue and why they wait.

In: the jobs that could start, the slots as they are now, and what each project has running. Out: an order and a choice.
Pure: no clock, no database, no machine. Fair between projects (fewest running first, then the one whose last start is
longest ago), then by priority, then by submission; a job that was running before goes on before a new one starts.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

HIDDEN_JOB = "a job of another project"
USABLE_SHARE = 0.9  # of the memory free now; the plan keeps the same reserve (`plan/resolve.py`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A device as it is now: one training worker at a time on a GPU, `capacity` of them on the CPU."""

    name: str  # `CPU`, `GPU 0`
    gpu_index: int | None  # None: the CPU
    free_bytes: int
    capacity: int
    users: tuple[str, ...]  # jobs that run on it

    @property
    def label(self) -> str:
        return self.name if self.gpu_index is not None else f"the {self.name}"

    @property
    def has_room(self) -> bool:
        return len(self.users) < self.capacity

    def fits(self, needed_bytes: int | None) -> bool:
        return needed_bytes is None or needed_bytes <= USABLE_SHARE * self.free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    job_id: str
    project: str
    priority: int
    sequence: int  # order of submission
    has_run: bool = False  # it was interrupted and goes on before new ones start
    needed_bytes: int | None = None  # the plan's peak; None before the job was planned


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlace:
    position: int  # 1: the next to start
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What projects have had of the machine: jobs running now, and the number of the last start (grows with each)."""

    running: Mapping[str, int]
    last_start: Mapping[str, int]


def in_order(jobs: Iterable[QueuedJob], *, load: Load) -> list[QueuedJob]:
    """The order in which jobs would start if slots came free one by one and nothing ended meanwhile."""
    started: list[QueuedJob] = []
    by_project: dict[str, list[QueuedJob]] = defaultdict(list)
    for job in jobs:
        (started if job.has_run else by_project[job.project]).append(job)
    started.sort(key=lambda job: job.sequence)
    running = defaultdict(int, load.running)
    for job in started:
        running[job.project] += 1
    queues = {
        project: deque(sorted(of_it, key=lambda job: (-job.priority, job.sequence)))
        for project, of_it in by_project.items()
    }
    turns = [
        (running[project], load.last_start.get(project, 0), queue[0].sequence, project)
        for project, queue in queues.items()
    ]
    heapq.heapify(turns)
    turn = max(load.last_start.values(), default=0)
    order = started
    while turns:
        count, _, _, project = heapq.heappop(turns)
        order.append(queues[project].popleft())
        turn += 1
        if queues[project]:
            heapq.heappush(turns, (count + 1, turn, queues[project][0].sequence, project))
    return order


def choose(order: Sequence[QueuedJob], slots: Sequence[Slot]) -> list[tuple[QueuedJob, Slot]]:
    """What starts now, and where: each job in its order on the free slot with the most memory that holds it.

    A job that no free slot holds is passed over: what it waits for may be another program's memory, and the others
    would stand still for as long as that runs.
    """
    now = {slot.name: slot for slot in slots}
    starts: list[tuple[QueuedJob, Slot]] = []
    for job in order:
        free = [slot for slot in now.values() if slot.has_room]
        if not free:
            break
        fitting = [slot for slot in free if slot.fits(job.needed_bytes)]
        if fitting:
            best = max(fitting, key=lambda slot: slot.free_bytes)
            now[best.name] = replace(best, users=(*best.users, job.job_id))
            starts.append((job, best))
    return starts


def places(order: Sequence[QueuedJob], slots: Sequence[Slot], *, projects: Mapping[str, str]) -> dict[str, QueuePlace]:
    """Each queued job's place and the reason in words. projects: of the running jobs; others' are not named."""
    told = {project: _in_use(slots, project, projects) for project in {job.project for job in order}}
    starting = {job.job_id: slot for job, slot in choose(order, slots)}
    found: dict[str, QueuePlace] = {}
    for index, job in enumerate(order):
        busy = told[job.project]
        if slot := starting.get(job.job_id):
            reason = f"it starts now on {slot.label}"
        elif busy and not any(slot.has_room for slot in slots):
            reason = busy
        else:
            reason = _too_little(job, slots) or busy or "it starts as soon as a device is free"
        before = f"{index} job{'s' if index > 1 else ''} before it; " if index else ""
        found[job.job_id] = QueuePlace(position=index + 1, reason=before + reason)
    return found


def _in_use(slots: Sequence[Slot], project: str, projects: Mapping[str, str]) -> str:
    def named(slot: Slot) -> str:
        return " and ".join(user if projects.get(user) == project else HIDDEN_JOB for user in slot.users)

    return ", ".join(f"{slot.label} is used by {named(slot)}" for slot in slots if slot.users)


def _too_little(job: QueuedJob, slots: Sequence[Slot]) -> str | None:
    if job.needed_bytes is None or any(slot.has_room and slot.fits(job.needed_bytes) for slot in slots):
        return None
    rooms = [slot for slot in slots if slot.has_room]
    if not rooms:
        return None
    best = max(rooms, key=lambda slot: slot.free_bytes)
    return (
        f"needs {gigabytes(job.needed_bytes)}, {gigabytes(best.free_bytes)} are free on {best.label} "
        f"({USABLE_SHARE:.0%} of them count)"
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
