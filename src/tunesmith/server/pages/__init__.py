"""The console's pages, a file a noun. To add one: docs/architecture.md, "The console"."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.server.pages import words
from tunesmith.server.routes import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the navigation. `below`: it is the present one on every path that starts so. any_of: it is there for
    who has one of these permissions; empty: for everybody. text: what one does there, where there is room to say it.
    """

    label: str
    path: str
    icon: str
    below: str
    any_of: tuple[str, ...] = ()
    text: str = ""


def _section(name: str, icon: str, permission: str) -> Entry:
    path, (label, text) = f"/admin/{name}", words.SECTIONS[name]
    return Entry(label=label, path=path, icon=icon, below=path, any_of=(permission,), text=text)


# The pages of Admin, as tabs and on its first page. Rights over single objects belong behind "Who may do what".
ADMIN: tuple[Entry, ...] = (
    _section("tokens", "key", "token.read"),
    _section("projects", "layers", "project.read"),
    _section("policies", "list-checks", "policy.read"),
    _section("permissions", "shield", "permission.read"),
    _section("locations", "cloud", "location.read"),
    _section("logs", "scroll-text", "log.read"),
    _section("networks", "network", "network.read"),
    _section("shapes", "cpu", "shape.read"),
    _section("quotas", "gauge", "quota.read"),
    _section("audit", "history", "audit.read"),
)

# In the order of work, with a gap between the groups.
NAVIGATION: tuple[tuple[Entry, ...], ...] = (
    (
        Entry(label=words.MENU["home"], path="/", icon="house", below="/"),
        Entry(label=words.MENU["models"], path="/models", icon="bot", below="/model", any_of=("model.read",)),
        Entry(
            label=words.MENU["datasets"], path="/datasets", icon="database", below="/datasets", any_of=("dataset.read",)
        ),
        Entry(label=words.MENU["jobs"], path="/jobs", icon="activity", below="/jobs", any_of=("job.read",)),
        Entry(label=words.MENU["versions"], path="/versions", icon="boxes", below="/version", any_of=("version.read",)),
    ),
    (
        Entry(
            label=words.MENU["admin"],
            path="/admin",
            icon="settings",
            below="/admin",
            any_of=tuple(permission for section in ADMIN for permission in section.any_of),
        ),
    ),
)


def page_routes() -> list[Route]:
    """In the order in which they are matched."""
    # they declare themselves with `page`, which stands beside us
    from tunesmith.server.pages import (
        access,
        admin,
        compare,
        datasets,
        fine_tune,
        home,
        hub,
        jobs,
        locations,
        models,
        networks,
        policies,
        search,
        session,
        version_sets,
        versions,
    )

    nouns = (
        session,
        home,
        search,
        models,
        hub,
        datasets,
        fine_tune,
        jobs,
        compare,
        versions,
        version_sets,
        admin,
        access,
        locations,
        networks,
        policies,
    )
    return [route for noun in nouns for route in noun.ROUTES]
