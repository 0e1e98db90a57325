"""A job in the foreground, whoever looks after it: this process, or another one that this process then follows.

In: a job, as `run_job` takes it. Out: the same events and the same `Ending`, whichever process did the work. A follower
holds no lease and touches nothing. Where the process that it follows dies, or gives the job up with its worker running,
it takes the job's place itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tunesmith.errors import MachineCannot, TunesmithError, from_form
from tunesmith.jobs.events import job_result, past_events
from tunesmith.jobs.records import JobFolder, now
from tunesmith.jobs.state import State
from tunesmith.jobs.store import NumberedEvent
from tunesmith.jobs.supervisor import Ended, Ending, StopWish, told_again
from tunesmith.spec.jobs import FINAL_STATES, JobRecord
from tunesmith.spec.metrics import AnyEvent, NoticeEvent

LOOK_SECONDS = 0.2
PAGE = 2000
OnEvent = Callable[[AnyEvent], None]
STOPPED_BY_SOMEBODY = frozenset({"INTERRUPTED", "PAUSED"})


def run_or_follow(
    folder: JobFolder, *, state: State, on_event: OnEvent, wish: StopWish, run: Callable[[int], Ended]
) -> Ended:
    """`run(told)` is `run_job`, told events up to a number; while another process holds the job, that one is followed.

    A stop that is wished while following ends the following alone (Ending.LEFT).
    """
    told = 0
    while True:
        try:
            return run(told)
        except MachineCannot as error:
            if error.code != "JOB_BUSY":
                raise
        ended, told = _follow(folder, told, state=state, on_event=on_event, wish=wish)
        if ended is not None:
            return ended


def _follow(
    folder: JobFolder, told: int, *, state: State, on_event: OnEvent, wish: StopWish
) -> tuple[Ended | None, int]:
    """How the job ended in the hands of another process; None where nobody holds it any more and it can go on."""
    job_id, jobs = folder.job_id, state.jobs

    def tell(events: list[NumberedEvent]) -> None:
        nonlocal told
        for each in events:
            if each.number > told:
                on_event(each.event)
                told = each.number

    begun_with = jobs.read(job_id).num_events
    holder = jobs.holder(job_id)
    if holder is None:  # gone between the two looks
        return None, told
    on_event(_notice(holder))
    if told == 0:
        tell(past_events(jobs, job_id))
    while True:
        # in this order: what is found to be over has said all that it will say
        held, record = jobs.holder(job_id), jobs.read(job_id)
        while page := jobs.events(job_id, after=told, limit=PAGE):
            tell(page)
        if record.state in FINAL_STATES:
            return told_again(folder, state, record), told
        if held is None:
            # one that waited before anything was heard of it is what somebody wants to go on with
            has_waited = record.phase == "waiting" and record.num_events > begun_with
            return (_waiting(folder, state, record) if has_waited else None), told
        if wish.is_wanted:
            return _left(folder, state), told
        time.sleep(LOOK_SECONDS)


def _notice(holder: str) -> NoticeEvent:
    """Told to who listens now, not kept in the job's log."""
    host, pid, _ = holder.rsplit("/", 2)
    message = f"Process {pid} on {host} looks after this job: it is followed from here."
    return NoticeEvent(time=now(), code="FOLLOWING", message=message, hint="Ctrl-C ends the following, not the job.")


def _waiting(folder: JobFolder, state: State, record: JobRecord) -> Ended:
    error = from_form(record.failure, record.failure_family or "") if record.failure else None
    is_stopped = error is not None and error.code in STOPPED_BY_SOMEBODY
    ending = Ending.STOPPED if is_stopped else Ending.WAITING
    return Ended(ending=ending, result=job_result(state.jobs, folder), error=error)


def _left(folder: JobFolder, state: State) -> Ended:
    runs_on = TunesmithError(
        "FOLLOWING_ENDED",
        "The job runs on in the process that looks after it.",
        hint=f"`tunesmith job resume {folder.job_id}` follows it again, `job pause` stops it with a checkpoint.",
    )
    return Ended(ending=Ending.LEFT, result=job_result(state.jobs, folder), error=runs_on)
