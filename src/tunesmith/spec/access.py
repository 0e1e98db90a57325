"""Projects, and policies: who may do what in which of them.

What an entry of a policy stands for is `server/auth.py`'s; here is how it is written.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from tunesmith.spec.base import Spec
from tunesmith.spec.catalog import DEFAULT_PROJECT, Description, TokenRole
from tunesmith.spec.datasets import Notice
from tunesmith.spec.names import GRANT, NAME, ROLE_PREFIX, Name
from tunesmith.spec.requests import one_clean_line

ANY = "*"  # every token, every project
USERS = f"{ROLE_PREFIX}{TokenRole.USER}"


def _who(text: str) -> str:
    if text in (ANY, USERS):
        return text
    if text == f"{ROLE_PREFIX}{TokenRole.ADMIN}":
        raise ValueError(f"{text} needs no policy: an administrator may do everything")
    if text.startswith(ROLE_PREFIX):
        raise ValueError(f"{text[:80]!r} is no role here; {USERS} is every token of the role user")
    return one_clean_line(text)


def _project(text: str) -> str:
    return text if text == ANY else NAME.check(text)


def _once(entries: list[str]) -> list[str]:
    return list(dict.fromkeys(entries))


Who = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_who)]
Grant = Annotated[str, GRANT]
ProjectEntry = Annotated[str, Field(max_length=63), AfterValidator(_project)]
WhoList = Annotated[
    list[Who],
    Field(
        min_length=1,
        max_length=500,
        description=f"Names of tokens; `{USERS}`: every token of that role; `{ANY}`: every token.",
    ),
    AfterValidator(_once),
]
GrantList = Annotated[
    list[Grant],
    Field(
        min_length=1,
        max_length=200,
        description="Permissions (`job.submit`); `job.*`: all of a noun that users have; `read`: to see all; "
        "`use`: all that fine-tuning takes. What administers is granted only by its whole name.",
    ),
    AfterValidator(_once),
]
ProjectList = Annotated[
    list[ProjectEntry],
    Field(min_length=1, max_length=500, description=f"Names of projects; `{ANY}`: every project, later ones too."),
    AfterValidator(_once),
]


class NewProject(Spec):
    name: Name
    description: Description = ""


class ProjectChange(Spec):
    description: Description | None = None


class ProjectView(Spec):
    name: str
    description: str
    created_at: str
    jobs: int = Field(description="Jobs that have not ended.")
    datasets: int
    versions: int = Field(description="Model versions that were not deleted.")


class NewPolicy(Spec):
    name: Name
    description: Description = ""
    who: WhoList
    may: GrantList
    projects: ProjectList = Field(default_factory=lambda: [DEFAULT_PROJECT])


class PolicyChange(Spec):
    """What is absent stays as it is; a list replaces the one that was there."""

    description: Description | None = None
    who: WhoList | None = None
    may: GrantList | None = None
    projects: ProjectList | None = None


class PolicyView(Spec):
    name: str
    description: str
    who: list[str]
    may: list[str]
    projects: list[str]
    created_at: str
    changed_at: str
    notices: list[Notice] = Field(default_factory=list[Notice], description="Names that no token carries.")


class Right(Spec):
    """One permission of one caller in one project."""

    permission: str
    is_allowed: bool
    by: list[str] = Field(description="The policies that allow it; `role:admin`; `*`: what every token may.")


class Rights(Spec):
    """What one may do in a project."""

    who: str
    role: TokenRole
    project: str
    rights: list[Right]
    notices: list[Notice]
