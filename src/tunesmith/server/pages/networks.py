"""Admin: named logs and networks, which jobs share: their lists, making, changing and deleting one, what uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from tunesmith.errors import TunesmithError, UsageFault
from tunesmith.server.api import administration as routes
from tunesmith.server.errors import status_of
from tunesmith.server.pages.page import View, action, done, page, redirect
from tunesmith.server.service import Call, CallNow
from tunesmith.spec.api import CURSOR_CHARACTERS, SearchQuery
from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import LogChange, NetworkChange, NewLog, NewNetwork
from tunesmith.spec.faults import checked

MEGABYTE = 1 << 20  # the limits of a log's size are such
NEW_LOG = {"name": "", "retention_days": "30", "maximum_bytes": "1024", "description": ""}
NEW_NETWORK = {"name": "", "cidr": "", "interface": "", "description": ""}


class ListQuery(Spec):
    after: str | None = Field(None, max_length=CURSOR_CHARACTERS)


def _asked(query: ListQuery) -> SearchQuery:
    return SearchQuery.model_validate({"after": query.after or None})


# ---- logs


def log_list(call: CallNow, query: Annotated[ListQuery, Query()]) -> View:
    return _logs(call, query)


def _logs(call: Call, query: ListQuery | None = None, **more: Any) -> View:
    found = routes.list_logs(call, _asked(query or ListQuery.model_validate({})))
    context = {"logs": found.logs, "next": found.next, "values": NEW_LOG, "error": None}
    return View(template="admin/logs.html", context=context | more, status=_status(more.get("error")))


def add_log(call: CallNow) -> View | Response:
    given = call.form.texts()
    try:
        routes.add_log(call, checked(NewLog, _name(given) | _log_fields(given)))
    except TunesmithError as error:
        return _logs(call, error=error, values=NEW_LOG | _kept(given, NEW_LOG))
    return redirect(LOGS)


def _log_fields(given: Mapping[str, str]) -> dict[str, Any]:
    """As REST takes them: the form's size is in mebibytes."""
    fields: dict[str, Any] = {"description": given.get("description", "")}
    for name, label, unit in (("retention_days", "Days", 1), ("maximum_bytes", "Size", MEGABYTE)):
        text = given.get(name, "").strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 12):
            raise UsageFault("INVALID_FIELD", f"{label}: {text[:40]!r} is no whole number.", field=name)
        fields[name] = int(text) * unit
    return fields


def _name(given: Mapping[str, str]) -> dict[str, Any]:
    return {"name": given["name"].strip()} if "name" in given else {}


def _status(error: TunesmithError | None) -> int:
    return 200 if error is None else status_of(error)


def _kept(given: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    """The form as it was sent."""
    return {name: given.get(name, "") for name in fields}


def log_page(call: CallNow, name: str) -> View:
    return _log(call, name)


def _log(call: Call, name: str, **more: Any) -> View:
    it = routes.show_named_log(call, name)
    values = {
        "retention_days": str(it.retention_days), "maximum_bytes": str(it.maximum_bytes // MEGABYTE),
        "description": it.description,
    }  # fmt: skip
    context = {"it": it, "uses": routes.show_log_uses(call, name), "values": values, "error": None}
    return View(template="admin/log.html", context=context | more, status=_status(more.get("error")))


def change_log(call: CallNow, name: str) -> View | Response:
    given = call.form.texts()
    try:
        routes.change_log(call, name, checked(LogChange, _log_fields(given)))
    except TunesmithError as error:
        return _log(call, name, error=error, values=_kept(given, NEW_LOG))
    return redirect(f"{LOGS}/{quote(name)}")


def delete_log(call: CallNow, name: str) -> Response:
    routes.remove_log(call, name)
    return done(call, LOGS)


# ---- networks


def network_list(call: CallNow, query: Annotated[ListQuery, Query()]) -> View:
    return _networks(call, query)


def _networks(call: Call, query: ListQuery | None = None, **more: Any) -> View:
    found = routes.list_networks(call, _asked(query or ListQuery.model_validate({})))
    context = {"networks": found.networks, "next": found.next, "values": NEW_NETWORK, "error": None}
    return View(template="admin/networks.html", context=context | more, status=_status(more.get("error")))


def add_network(call: CallNow) -> View | Response:
    given = call.form.texts()
    try:
        routes.add_network(call, checked(NewNetwork, _name(given) | _network_fields(given)))
    except TunesmithError as error:
        return _networks(call, error=error, values=_kept(given, NEW_NETWORK))
    return redirect(NETWORKS)


def _network_fields(given: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"description": given.get("description", "")}
    return fields | {name: given[name].strip() for name in ("cidr", "interface") if name in given}


def network_page(call: CallNow, name: str) -> View:
    return _network(call, name)


def _network(call: Call, name: str, **more: Any) -> View:
    it = routes.show_network(call, name)
    values = {"cidr": it.cidr, "interface": it.interface or "", "description": it.description}
    context = {"it": it, "uses": routes.show_network_uses(call, name), "values": values, "error": None}
    return View(template="admin/network.html", context=context | more, status=_status(more.get("error")))


def change_network(call: CallNow, name: str) -> View | Response:
    given = call.form.texts()
    try:
        routes.change_network(call, name, checked(NetworkChange, {"interface": ""} | _network_fields(given)))
    except TunesmithError as error:
        return _network(call, name, error=error, values=_kept(given, NEW_NETWORK))
    return redirect(f"{NETWORKS}/{quote(name)}")


def delete_network(call: CallNow, name: str) -> Response:
    routes.remove_network(call, name)
    return done(call, NETWORKS)


LOGS, NETWORKS = "/admin/logs", "/admin/networks"
LOG, NETWORK = f"{LOGS}/{{name}}", f"{NETWORKS}/{{name}}"
ROUTES = [
    page(LOGS, log_list, permission="log.read", summary="Logs"),
    action(LOGS, add_log, permission="log.add", summary="Make a log"),
    page(LOG, log_page, permission="log.read", summary="A log"),
    action(LOG, change_log, permission="log.change", summary="Change a log"),
    action(f"{LOG}/delete", delete_log, permission="log.remove", summary="Delete a log"),
    page(NETWORKS, network_list, permission="network.read", summary="Networks"),
    action(NETWORKS, add_network, permission="network.add", summary="Declare a network"),
    page(NETWORK, network_page, permission="network.read", summary="A network"),
    action(NETWORK, change_network, permission="network.change", summary="Change a network"),
    action(f"{NETWORK}/delete", delete_network, permission="network.remove", summary="Delete a network"),
]
