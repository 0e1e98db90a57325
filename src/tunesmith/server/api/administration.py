"""What an administrator looks after: named logs, networks, tokens, quotas, the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import sqlalchemy as sa
from fastapi import Body, Query
from fastapi import Path as PathParameter
from starlette.responses import Response

from tunesmith.catalog import audit, logs, networks, quotas, tokens
from tunesmith.jobs.records import JobFolder
from tunesmith.server.api.jobs import own_jobs
from tunesmith.server.log_lines import download_all, lines_of_all
from tunesmith.server.once import IdempotencyKey, once
from tunesmith.server.routes import Route, created
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import (
    AuditPage,
    AuditQuery,
    LogPage,
    LogQuery,
    NamedLogLines,
    NetworkPage,
    PageQuery,
    QuotaPage,
    SearchQuery,
    TokenPage,
    TokenWithSecret,
    Uses,
)
from tunesmith.spec.catalog import (
    MAXIMUM_PAGE,
    Label,
    LogChange,
    LogView,
    NetworkChange,
    NetworkView,
    NewLog,
    NewNetwork,
    NewToken,
    TokenRole,
    TokenView,
)
from tunesmith.spec.quotas import QuotaChange, QuotaView

Principal = Annotated[Label, PathParameter(description="A token's name; `*`: everybody without quotas of his own.")]

# ---- logs


def list_logs(call: CallNow, query: Annotated[SearchQuery, Query()]) -> LogPage:
    """By name."""
    with call.database.read() as connection:
        page = logs.list_logs(connection, search=query.search, after=query.after, limit=query.limit)
    return LogPage(logs=page.items, next=page.next)


def add_log(call: CallNow, new: Annotated[NewLog, Body()], idempotency_key: IdempotencyKey = None) -> Response:
    """A named log keeps its jobs' output for as long, and as much of it, as it says."""

    def make(connection: sa.Connection) -> str:
        return logs.add_log(connection, new, actor=call.actor).name

    name, is_new = once(call, idempotency_key, new, route="POST /api/logs", make=make)
    return created(show_named_log(call, name), is_new=is_new)


def show_named_log(call: CallNow, name: str) -> LogView:
    """A named log with its limits."""
    with call.database.read() as connection:
        return logs.find_log(connection, name)


def change_log(call: CallNow, name: str, change: Annotated[LogChange, Body()]) -> LogView:
    """Change its limits or its description."""
    return call.database.write_grouped(lambda connection: logs.change_log(connection, name, change, actor=call.actor))


def show_log_lines(call: CallNow, name: str, query: Annotated[LogQuery, Query()]) -> NamedLogLines:
    """The newest lines of all its jobs together, or those of them that hold a text."""
    return NamedLogLines(log=name, lines=lines_of_all(_files_of_log(call, name), query))


def download_named_log(call: CallNow, name: str) -> Response:
    """What it keeps of all its jobs, in one file: each job's lines below its id."""
    return download_all(_files_of_log(call, name), name=f"{name}.log")


def _files_of_log(call: Call, name: str) -> list[tuple[str, Path]]:
    with call.database.read() as connection:
        jobs = logs.all_jobs_of_log(connection, name, project=call.project)
    return [(job_id, JobFolder(path=call.state.home.jobs / job_id).worker_log) for job_id in jobs]


def show_log_uses(call: CallNow, name: str) -> Uses:
    """Unfinished jobs that write to it."""
    with call.database.read() as connection:
        jobs = logs.jobs_of_log(connection, name)
    return _uses(call, jobs)


def _uses(call: Call, jobs: list[str]) -> Uses:
    own = own_jobs(call, jobs)
    return Uses(jobs=[each for each in jobs if each in own][:MAXIMUM_PAGE], of_other_projects=len(jobs) - len(own))


def remove_log(call: CallNow, name: str) -> None:
    """Finished jobs keep their own files. 409 while an unfinished job writes to it."""
    call.database.write_grouped(lambda connection: logs.remove_log(connection, name, actor=call.actor))


# ---- networks


def list_networks(call: CallNow, query: Annotated[SearchQuery, Query()]) -> NetworkPage:
    """By name."""
    with call.database.read() as connection:
        page = networks.list_networks(connection, search=query.search, after=query.after, limit=query.limit)
    return NetworkPage(networks=page.items, next=page.next)


def add_network(call: CallNow, new: Annotated[NewNetwork, Body()], idempotency_key: IdempotencyKey = None) -> Response:
    """Declare a network that replicas of a job could talk over."""

    def make(connection: sa.Connection) -> str:
        return networks.add_network(connection, new, actor=call.actor).name

    name, is_new = once(call, idempotency_key, new, route="POST /api/networks", make=make)
    return created(show_network(call, name), is_new=is_new)


def show_network(call: CallNow, name: str) -> NetworkView:
    """A network with its addresses and interface."""
    with call.database.read() as connection:
        return networks.find_network(connection, name)


def change_network(call: CallNow, name: str, change: Annotated[NetworkChange, Body()]) -> NetworkView:
    """Change its addresses, its interface or its description; what is absent stays as it is."""
    return call.database.write_grouped(
        lambda connection: networks.change_network(connection, name, change, actor=call.actor)
    )


def show_network_uses(call: CallNow, name: str) -> Uses:
    """Unfinished jobs that name it."""
    with call.database.read() as connection:
        jobs = networks.jobs_of_network(connection, name)
    return _uses(call, jobs)


def remove_network(call: CallNow, name: str) -> None:
    """409 while an unfinished job names it."""
    call.database.write_grouped(lambda connection: networks.remove_network(connection, name, actor=call.actor))


# ---- tokens


def list_tokens(call: CallNow, query: Annotated[PageQuery, Query()]) -> TokenPage:
    """Every token with its state; never its text."""
    with call.database.read() as connection:
        page = tokens.list_tokens(connection, after=query.after, limit=query.limit)
    return TokenPage(tokens=[_with_policies(call, each) for each in page.items], next=page.next)


def _with_policies(call: Call, token: TokenView) -> TokenView:
    if token.role is TokenRole.ADMIN:
        return token
    naming = [each.name for each in call.service.policies.rules().policies if each.names(token.name, token.role)]
    return token.model_copy(update={"policies": naming})


def create_token(call: CallNow, new: Annotated[NewToken, Body()], idempotency_key: IdempotencyKey = None) -> Response:
    """A new token. Its text stands in this answer alone: the database keeps a hash; a repeated request gets none."""
    told: list[str] = []

    def make(connection: sa.Connection) -> str:
        view, secret = tokens.create_token(connection, new, actor=call.actor)
        told.append(secret)
        return view.token_id

    token_id, is_new = once(call, idempotency_key, new, route="POST /api/tokens", make=make)
    with call.database.read() as connection:
        view = _with_policies(call, tokens.find_token(connection, token_id))
    return created(TokenWithSecret(**view.model_dump(), token=told[0] if is_new else None), is_new=is_new)


def revoke_token(call: CallNow, token_id: str) -> None:
    """It opens nothing from now on; it stays in the list."""
    call.database.write_grouped(lambda connection: tokens.revoke_token(connection, token_id, actor=call.actor))
    call.service.tokens.forget()
    call.service.sessions.forget()


# ---- quotas


def list_quotas(call: CallNow, query: Annotated[PageQuery, Query()]) -> QuotaPage:
    """Everybody's first (`*`), then each principal that uses something or has quotas of his own."""
    with call.database.read() as connection:
        page = quotas.list_quotas(connection, after=query.after, limit=query.limit)
    return QuotaPage(quotas=page.items, next=page.next)


def show_quotas(call: CallNow, principal: Principal) -> QuotaView:
    """What a principal may take up, and what it does."""
    with call.database.read() as connection:
        return quotas.find_quotas(connection, principal)


def change_quotas(call: CallNow, principal: Principal, change: Annotated[QuotaChange, Body()]) -> QuotaView:
    """Set limits of one principal, or everybody's (`*`). One below what is used refuses more and takes nothing away."""
    return call.database.write_grouped(
        lambda connection: quotas.change_quotas(connection, principal, change, actor=call.actor)
    )


def reset_quotas(call: CallNow, principal: Principal) -> None:
    """Back to everybody's limits; everybody's (`*`) go back to the defaults."""
    call.database.write_grouped(lambda connection: quotas.reset_quotas(connection, principal, actor=call.actor))


# ---- audit


def list_audit(call: CallNow, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """Who did what to which object; the newest first."""
    with call.database.read() as connection:
        page = audit.list_audit(
            connection, actor=query.actor, action=query.action, object=query.object, after=query.after,
            limit=query.limit,
        )  # fmt: skip
    return AuditPage(audit=page.items, next=page.next)


LOG, NETWORK = "/api/logs/{name}", "/api/networks/{name}"
QUOTA = "/api/quotas/{principal:path}"  # a token's name may hold a slash
ROUTES = [
    Route(
        method="GET", path="/api/logs", handler=list_logs, permission="log.read", summary="List named logs",
        answer=LogPage,
    ),
    Route(
        method="POST", path="/api/logs", handler=add_log, permission="log.add", summary="Add a named log",
        answer=LogView, status=201, statuses=(200,), refusals=(409,), body="json",
        request_example={"name": "support", "retention_days": 30, "maximum_bytes": 1 << 30},
    ),
    Route(
        method="GET", path=LOG, handler=show_named_log, permission="log.read", summary="Show a named log",
        answer=LogView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=LOG, handler=change_log, permission="log.change", summary="Change a named log",
        answer=LogView, refusals=(404,), body="json", request_example={"retention_days": 90},
    ),
    Route(
        method="GET", path=f"{LOG}/lines", handler=show_log_lines, permission="job.read",
        summary="The newest lines of a named log", answer=NamedLogLines, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{LOG}/download", handler=download_named_log, permission="job.read",
        summary="All that a named log keeps", content={"text/plain": {"schema": {"type": "string"}}}, refusals=(404,),
    ),
    Route(
        method="GET", path=f"{LOG}/uses", handler=show_log_uses, permission="log.read", summary="What uses a named log",
        answer=Uses, refusals=(404,),
    ),
    Route(
        method="DELETE", path=LOG, handler=remove_log, permission="log.remove", summary="Remove a named log",
        status=204, refusals=(404, 409),
    ),
    Route(
        method="GET", path="/api/networks", handler=list_networks, permission="network.read",
        summary="List networks", answer=NetworkPage,
    ),
    Route(
        method="POST", path="/api/networks", handler=add_network, permission="network.add",
        summary="Declare a network", answer=NetworkView, status=201, statuses=(200,), refusals=(409,), body="json",
        request_example={"name": "fabric", "cidr": "10.0.0.0/24", "interface": "eth0"},
    ),
    Route(
        method="GET", path=NETWORK, handler=show_network, permission="network.read", summary="Show a network",
        answer=NetworkView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=NETWORK, handler=change_network, permission="network.change", summary="Change a network",
        answer=NetworkView, refusals=(404,), body="json", request_example={"cidr": "10.0.1.0/24"},
    ),
    Route(
        method="GET", path=f"{NETWORK}/uses", handler=show_network_uses, permission="network.read",
        summary="What uses a network", answer=Uses, refusals=(404,),
    ),
    Route(
        method="DELETE", path=NETWORK, handler=remove_network, permission="network.remove",
        summary="Remove a network", status=204, refusals=(404, 409),
    ),
    Route(
        method="GET", path="/api/tokens", handler=list_tokens, permission="token.read", summary="List tokens",
        answer=TokenPage,
    ),
    Route(
        method="POST", path="/api/tokens", handler=create_token, permission="token.create", summary="Make a token",
        answer=TokenWithSecret, status=201, statuses=(200,), refusals=(409,), body="json",
        request_example={"name": "continuous integration", "days": 90},
    ),
    Route(
        method="DELETE", path="/api/tokens/{token_id}", handler=revoke_token, permission="token.revoke",
        summary="Revoke a token", status=204, refusals=(404,),
    ),
    Route(
        method="GET", path="/api/quotas", handler=list_quotas, permission="quota.read", summary="List quotas",
        answer=QuotaPage,
    ),
    Route(
        method="GET", path=QUOTA, handler=show_quotas, permission="quota.read",
        summary="Show the quotas of a principal", answer=QuotaView, refusals=(404,),
    ),
    Route(
        method="PATCH", path=QUOTA, handler=change_quotas, permission="quota.change",
        summary="Change the quotas of a principal", answer=QuotaView, refusals=(404,), body="json",
        request_example={"queued_jobs": 5000},
    ),
    Route(
        method="DELETE", path=QUOTA, handler=reset_quotas, permission="quota.change",
        summary="Give a principal everybody's quotas", status=204, refusals=(404,),
    ),
    Route(
        method="GET", path="/api/audit", handler=list_audit, permission="audit.read", summary="Read the audit log",
        answer=AuditPage,
    ),
]  # fmt: skip
