"""Jobs in the state database: records, leases, moves, events.

In: a `Database`. Out: records and events as spec models. A state changes through `move` alone: one conditional UPDATE
and its event row in one transaction, with the model version's own state where the job ends. Who looks after a job
holds its lease; each taking of it raises the fence, and a write with an old fence changes nothing and raises LeaseLost.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from tunesmith.catalog import quotas
from tunesmith.catalog.numbers import add_version, move_version
from tunesmith.errors import MachineCannot, TunesmithError, Unknown
from tunesmith.jobs.launcher import is_running, process_started_at
from tunesmith.jobs.records import now
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import Lineage, VersionState
from tunesmith.spec.datasets import Notice
from tunesmith.spec.faults import shown
from tunesmith.spec.jobs import FINAL_STATES, MOVES, JobRecord, JobState
from tunesmith.spec.metrics import EVENT, AnyEvent, NoticeEvent, StateEvent
from tunesmith.spec.requests import FinetuneRequest
from tunesmith.spec.training import TrainingSettings
from tunesmith.storage.database import Database
from tunesmith.storage.tables import EVENTS, JOBS, MODEL_VERSIONS

LEASE_SECONDS = 20.0
READ_BYTES = 1 << 20
AnySelect = sa.Select[*tuple[Any, ...]]
RECORD_COLUMNS = [JOBS.c[name] for name in JobRecord.model_fields]
ONE_RECORD = sa.select(*RECORD_COLUMNS).where(JOBS.c.job_id == sa.bindparam("of_job"))
ADD, ADD_EVENTS = JOBS.insert(), EVENTS.insert()
VERSION_STATES = {
    JobState.SUCCEEDED: VersionState.ACTIVE,
    JobState.FAILED: VersionState.FAILED,
    JobState.CANCELED: VersionState.CANCELED,
}


class LeaseLost(Exception):
    """Somebody else looks after the job now: stop, and touch nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    job_id: str
    owner: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedEvent:
    number: int
    event: AnyEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What a submission gives; the model version's number is given with it."""

    job_id: str
    request: FinetuneRequest
    settings: TrainingSettings
    version_set: str
    results_uri: str | None  # None: under `results_root`, by version set and number
    results_root: Path
    base_name: str
    command: Sequence[str] = ()
    is_foreground: bool = False
    project: str = "default"
    submitted_by: str = "local"
    priority: int = 0
    run_limit_seconds: int | None = None
    parent: str | None = None
    lineage: Lineage | None = None  # None: known once the job was prepared
    notices: Sequence[Notice] = ()  # said with the acceptance


def this_process() -> str:
    """The owner's name of leases that this process takes: host, pid, start time."""
    pid = os.getpid()
    return f"{socket.gethostname()}/{pid}/{process_started_at(pid)}"


def owner_may_live(owner: str) -> bool:
    """False only where the owner ran on this host and its process is gone."""
    host, pid, started_at = owner.rsplit("/", 2)
    if host != socket.gethostname():
        return True
    return is_running(int(pid), started_at=float(started_at) if started_at != "None" else None)


def lease_is_held(owner: str | None, until: float | None, *, now: float) -> bool:
    return owner is not None and until is not None and until > now and owner_may_live(owner)


class JobStore:
    def __init__(self, database: Database) -> None:
        self.database = database

    # ---- submission and reading

    def insert(self, connection: sa.Connection, job: NewJob, *, above: int = 0) -> JobRecord:
        """A new job in state ACCEPTED with its model version in state CREATING; durable with the transaction.

        above: the version number is higher than this one, for results that a lost database no longer knows.
        Raises Conflict (QUOTA_EXCEEDED).
        """
        quotas.take(connection, job.submitted_by, queued_jobs=1, versions=1)
        created_at = now()
        model_version = add_version(
            connection, project=job.project, version_set=job.version_set, above=above, created_at=created_at,
            name=job.request.name or "", description=job.request.description, base_name=job.base_name,
            job_id=job.job_id, results_uri=job.results_uri or "", parent=job.parent, made_by=job.submitted_by,
            lineage=job.lineage.model_dump_json() if job.lineage is not None else None,
        )  # fmt: skip
        number = model_version.rpartition(":")[2]
        results_uri = job.results_uri or (job.results_root / job.version_set / number).as_uri()
        record = JobRecord(
            job_id=job.job_id, project=job.project, submitted_by=job.submitted_by, state=JobState.ACCEPTED,
            is_foreground=job.is_foreground, name=job.request.name or model_version, priority=job.priority,
            model_version=model_version, created_at=created_at, run_limit_seconds=job.run_limit_seconds,
            log=job.request.log, results_uri=results_uri, command=list(job.command), num_events=1 + len(job.notices),
            retry_at=None, worker_started_at=None, run_seconds=0.0,
        )  # fmt: skip
        row = _columns(record.model_dump()) | {
            "fence": 0, "events_read_bytes": 0, "request": job.request.model_dump_json(),
            "settings": job.settings.model_dump_json(),
        }  # fmt: skip
        connection.execute(ADD, row)
        told = [
            NoticeEvent(time=created_at, code=each.code, message=each.message, hint=each.hint) for each in job.notices
        ]
        accepted = StateEvent(time=created_at, state=JobState.ACCEPTED, previous=None)
        _insert_events(connection, job.job_id, 1, [accepted, *told])
        return record

    def read(self, job_id: str, *, connection: sa.Connection | None = None, project: str | None = None) -> JobRecord:
        """project: one of another project is none here. Raises Unknown (UNKNOWN_JOB)."""
        if connection is not None:
            row = connection.execute(ONE_RECORD, {"of_job": job_id}).one_or_none()
        else:
            with self.database.read() as own:
                row = own.execute(ONE_RECORD, {"of_job": job_id}).one_or_none()
        if row is None or (project is not None and row.project != project):
            raise Unknown(
                "UNKNOWN_JOB",
                f"There is no job {shown(job_id)} here.",
                field="JOB",
                hint="`tunesmith job list` shows the jobs.",
            )
        return _record(row)

    def asked(self, job_id: str) -> tuple[FinetuneRequest, TrainingSettings]:
        """What was asked for at submission."""
        with self.database.read() as connection:
            row = connection.execute(sa.select(JOBS.c.request, JOBS.c.settings).where(JOBS.c.job_id == job_id)).one()
        return FinetuneRequest.model_validate_json(row.request), TrainingSettings.model_validate_json(row.settings)

    def records(
        self,
        *,
        states: Sequence[JobState] = (),
        project: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> list[JobRecord]:
        """The newest first. before: a job's id; only jobs submitted before it."""
        query = sa.select(*RECORD_COLUMNS).order_by(JOBS.c.sequence.desc())
        if states:
            query = query.where(JOBS.c.state.in_(states))
        if project is not None:
            query = query.where(JOBS.c.project == project)
        if before is not None:
            query = query.where(
                JOBS.c.sequence < sa.select(JOBS.c.sequence).where(JOBS.c.job_id == before).scalar_subquery()
            )
        if limit is not None:
            query = query.limit(limit)
        with self.database.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    # ---- the lease

    def acquire(self, job_id: str, *, owner: str) -> tuple[Lease, JobRecord]:
        """Take the job's lease, from a dead or silent owner too. Raises MachineCannot (JOB_BUSY), Unknown."""
        with self.database.write() as connection:
            self.read(job_id, connection=connection)
            row = connection.execute(
                sa.select(JOBS.c.lease_owner, JOBS.c.lease_until, JOBS.c.fence).where(JOBS.c.job_id == job_id)
            ).one()
            if lease_is_held(row.lease_owner, row.lease_until, now=time.time()):
                raise MachineCannot(
                    "JOB_BUSY",
                    f"Another tunesmith process is already looking after {job_id}.",
                    field="JOB",
                    hint=f"Follow it with `tunesmith job resume {job_id}`, or stop that process first.",
                )
            lease = Lease(job_id=job_id, owner=owner, fence=row.fence + 1)
            connection.execute(
                JOBS.update()
                .where(JOBS.c.job_id == job_id, JOBS.c.fence == row.fence)
                .values(fence=lease.fence, lease_owner=owner, lease_until=time.time() + LEASE_SECONDS)
            )
            return lease, self.read(job_id, connection=connection)

    def holder(self, job_id: str) -> str | None:
        """The owner's name of the lease that a process holds; None where nobody looks after the job."""
        with self.database.read() as connection:
            query = sa.select(JOBS.c.lease_owner, JOBS.c.lease_until).where(JOBS.c.job_id == job_id)
            owner, until = connection.execute(query).one()
        return owner if lease_is_held(owner, until, now=time.time()) else None

    def renew(self, lease: Lease) -> JobRecord:
        """The heartbeat; returns the record as others left it (a wish to cancel or pause among it)."""
        return self._change(lease, {"lease_until": time.time() + LEASE_SECONDS})

    def release(self, lease: Lease) -> None:
        """Give the lease back; one that was lost already is nothing to give."""
        with self.database.write() as connection:
            connection.execute(JOBS.update().where(_holds(lease)).values(lease_owner=None, lease_until=None))

    # ---- changes

    def update(self, lease: Lease, **changes: Any) -> JobRecord:
        """Change fields of the record; not its state, which only `move` changes."""
        assert "state" not in changes, "a state changes through move()"
        return self._change(lease, changes)

    def _change(self, lease: Lease, changes: dict[str, Any]) -> JobRecord:
        with self.database.write() as connection:
            row = connection.execute(
                JOBS.update().where(_holds(lease)).values(_columns(changes)).returning(*RECORD_COLUMNS)
            ).one_or_none()
        if row is None:
            raise LeaseLost(lease.job_id)
        return _record(row)

    def move(
        self,
        job_id: str,
        state: JobState,
        *,
        lease: Lease | None,
        connection: sa.Connection | None = None,
        version: dict[str, Any] | None = None,
        **changes: Any,
    ) -> JobRecord:
        """Change the state along the table of moves, with its event; a final state also moves the model version.

        lease: of the caller that looks after the job; None for what needs none (cancelling a job that waits).
        version: columns of the model version to set with its final state (artifact_uri, manifest, metrics).
        Raises TunesmithError (FORBIDDEN_MOVE), LeaseLost.
        """
        if connection is None:
            with self.database.write() as own:
                return self.move(job_id, state, lease=lease, connection=own, version=version, **changes)
        record = self.read(job_id, connection=connection)
        if state not in MOVES[record.state]:
            raise TunesmithError(
                "FORBIDDEN_MOVE", f"Job {job_id} cannot go from {record.state} to {state}.", field="state"
            )
        time_now = now()
        if state is JobState.IN_PROGRESS:
            changes = {"started_at": time_now} | changes
        if state in FINAL_STATES:
            nothing_left = {"worker_pid": None, "worker_started_at": None, "phase": None, "waiting_reason": None}
            if state is not JobState.FAILED:  # why it waited before is not why it ended
                nothing_left |= {"failure": None, "failure_family": None}
            changes = {"finished_at": time_now, "retry_at": None} | nothing_left | changes
            if lease is None:  # a clock that jumped makes a lease seem lapsed: whoever holds it starts no worker now
                changes |= {"lease_owner": None, "lease_until": None}
        where = (JOBS.c.job_id == job_id) & (JOBS.c.state == record.state)
        row = connection.execute(
            JOBS.update()
            .where(where if lease is None else where & _holds(lease))
            .values(_columns(changes) | {"state": state, "num_events": JOBS.c.num_events + 1})
            .returning(*RECORD_COLUMNS)
        ).one_or_none()
        if row is None:
            raise LeaseLost(job_id)
        moved = _record(row)
        _insert_events(
            connection, job_id, moved.num_events, [StateEvent(time=time_now, state=state, previous=record.state)]
        )
        if state in FINAL_STATES:
            quotas.give_back(connection, moved.submitted_by, queued_jobs=1)
        if state in VERSION_STATES:
            move_version(
                connection, project=moved.project, model_version=moved.model_version, state=VERSION_STATES[state],
                now=time_now, **(version or {}),
            )  # fmt: skip
        return moved

    # ---- events

    def say(self, lease: Lease, *events: AnyEvent, **changes: Any) -> JobRecord:
        """Events of control's own, with changes of the record in the same transaction."""
        with self.database.write() as connection:
            return self._append(connection, lease, events, changes)

    def describe_version(self, lease: Lease, **columns: Spec) -> None:
        """Set documents of the job's model version (`lineage`, `metrics`) while it is being made."""
        with self.database.write() as connection:
            if connection.execute(sa.select(JOBS.c.job_id).where(_holds(lease))).one_or_none() is None:
                raise LeaseLost(lease.job_id)
            connection.execute(
                MODEL_VERSIONS.update()
                .where(MODEL_VERSIONS.c.job_id == lease.job_id, MODEL_VERSIONS.c.state == VersionState.CREATING)
                .values({name: value.model_dump_json() for name, value in columns.items()} | {"changed_at": now()})
            )

    def take_over(self, lease: Lease, worker_file: Path, *, limit_bytes: int = READ_BYTES) -> list[NumberedEvent]:
        """Move what the worker wrote since the last time into the database; returns it.

        The place in the file moves in the same transaction: each event is taken over once, whoever dies when. A last
        line without its newline is not yet an event; one that a dying worker cut is told as a notice.
        """
        with self.database.read() as connection:
            read_bytes = connection.execute(
                sa.select(JOBS.c.events_read_bytes).where(JOBS.c.job_id == lease.job_id)
            ).scalar_one()
        block = _whole_lines(worker_file, read_bytes, limit_bytes)
        if not block:
            return []
        events = [_event(line) for line in block.split(b"\n") if line.strip()]
        with self.database.write() as connection:
            read = {"events_read_bytes": read_bytes + len(block)}
            record = self._append(connection, lease, events, read)
        first = record.num_events - len(events) + 1
        return [NumberedEvent(number=first + index, event=event) for index, event in enumerate(events)]

    def _append(
        self, connection: sa.Connection, lease: Lease, events: Sequence[AnyEvent], changes: dict[str, Any]
    ) -> JobRecord:
        row = connection.execute(
            JOBS.update()
            .where(_holds(lease))
            .values(_columns(changes) | {"num_events": JOBS.c.num_events + len(events)})
            .returning(*RECORD_COLUMNS)
        ).one_or_none()
        if row is None:
            raise LeaseLost(lease.job_id)
        record = _record(row)
        _insert_events(connection, lease.job_id, record.num_events - len(events) + 1, events)
        return record

    def events(
        self, job_id: str, *, after: int = 0, limit: int | None = None, kinds: Sequence[str] = (), newest: bool = False
    ) -> list[NumberedEvent]:
        """Events with a number above `after`, in order. newest: from the end, still in order."""
        query: AnySelect = sa.select(EVENTS.c.number, EVENTS.c.body)
        query = query.where(EVENTS.c.job_id == job_id, EVENTS.c.number > after)
        if kinds:
            # one walk along the index for each kind: with IN, SQLite reads every event of the job to find a rare one
            each_kind = [
                sa.select(_page(query.where(EVENTS.c.kind == kind), newest=newest, limit=limit).subquery())
                for kind in dict.fromkeys(kinds)
            ]
            query = sa.select(sa.union_all(*each_kind).subquery())
        query = _page(query, newest=newest, limit=limit)
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        found = [NumberedEvent(number=row.number, event=EVENT.validate_json(row.body)) for row in rows]
        return found[::-1] if newest else found


def _page(query: AnySelect, *, newest: bool, limit: int | None) -> AnySelect:
    number = query.selected_columns["number"]
    return query.order_by(number.desc() if newest else number).limit(limit)


def _holds(lease: Lease) -> sa.ColumnElement[bool]:
    return (JOBS.c.job_id == lease.job_id) & (JOBS.c.fence == lease.fence) & (JOBS.c.lease_owner == lease.owner)


def _columns(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in changes.items()}


def _record(row: sa.Row[Any]) -> JobRecord:
    fields: dict[str, Any] = dict(zip(JobRecord.model_fields, row, strict=True))
    fields["command"] = json.loads(fields["command"])
    fields["failure"] = json.loads(fields["failure"]) if fields["failure"] else None
    return JobRecord.model_validate(fields)


def _insert_events(connection: sa.Connection, job_id: str, first: int, events: Sequence[AnyEvent]) -> None:
    if events:
        connection.execute(
            ADD_EVENTS,
            [
                {"job_id": job_id, "number": first + index, "kind": event.kind, "body": event.model_dump_json()}
                for index, event in enumerate(events)
            ],
        )


def _whole_lines(path: Path, start: int, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as handle:
            handle.seek(start)
            block = handle.read(limit_bytes)
            while block and b"\n" not in block:  # a line longer than the limit
                more = handle.read(limit_bytes)
                if not more:
                    return b""
                block += more
    except FileNotFoundError:
        return b""
    return block[: block.rfind(b"\n") + 1]


def _event(line: bytes) -> AnyEvent:
    try:
        return EVENT.validate_json(line)
    except ValidationError:
        return NoticeEvent(
            time=now(),
            code="EVENT_CUT",
            message=f"A line of events.jsonl ({len(line)} bytes) was cut when its worker died; it was skipped.",
        )


def iterate_events(store: JobStore, job_id: str, *, page: int = 2000) -> Iterator[AnyEvent]:
    """Every event of a job, in order."""
    after = 0
    while found := store.events(job_id, after=after, limit=page):
        yield from (each.event for each in found)
        after = found[-1].number
