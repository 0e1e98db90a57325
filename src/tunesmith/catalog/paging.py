"""Pages of a list: keyset paging by a column that orders it, search in texts, filter by tag.

In: a query and what the reader asked for. Out: at most 200 rows and the cursor of the page after them. A page costs the
same at the end of a list as at its start, and a row that is added meanwhile shifts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from tunesmith.errors import UsageFault
from tunesmith.spec.catalog import DEFAULT_PAGE, MAXIMUM_PAGE

Item = TypeVar("Item")
MAXIMUM_SEARCH_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    items: list[Item]
    next: str | None  # for `after` of the next call; None on the last page


def read_page(
    connection: sa.Connection,
    query: sa.Select[Any],
    *,
    key: sa.Column[Any],
    after: str | None,
    limit: int | None,
    make: Callable[[Sequence[sa.Row[Any]]], list[Item]],
) -> Page[Item]:
    """A page by `key`, a unique column: a number newest first, a name in its order. Raises UsageFault (BAD_CURSOR)."""
    limit = DEFAULT_PAGE if limit is None else limit
    if not 1 <= limit <= MAXIMUM_PAGE:
        raise UsageFault(
            "BAD_OPTION", f"limit is {limit}; a page has 1 to {MAXIMUM_PAGE} entries.", field="limit", hint="Page on."
        )
    is_number = isinstance(key.type, sa.Integer)
    if after is not None:
        if is_number and not (after.isascii() and after.isdecimal() and len(after) < 19):
            raise UsageFault(
                "BAD_CURSOR",
                f"after: {after[:60]!r} is no cursor of this list.",
                field="after",
                hint="Take `next` of the page before, unchanged.",
            )
        query = query.where(key < int(after) if is_number else key > after)
    rows = connection.execute(query.order_by(key.desc() if is_number else key).limit(limit + 1)).all()
    kept = rows[:limit]
    following = str(getattr(kept[-1], key.name)) if len(rows) > limit else None
    return Page(items=make(kept), next=following)


def matching(search: str | None, *columns: sa.Column[str]) -> sa.ColumnElement[bool]:
    """Every word of `search` stands in one of the columns, whatever its case."""
    words = (search or "")[:MAXIMUM_SEARCH_CHARACTERS].split()
    return sa.and_(
        sa.true(), *(sa.or_(*(column.icontains(word, autoescape=True) for column in columns)) for word in words)
    )


def tags_text(tags: dict[str, str]) -> str:
    return json.dumps(dict(sorted(tags.items())), ensure_ascii=False, separators=(",", ":"))


def has_tag(tag: str, tags: dict[str, str]) -> bool:
    """The same as `tagged`, of tags in hand."""
    key, equals, value = tag.partition("=")
    return key in tags and (not equals or tags[key] == value)


def tagged(tag: str | None, column: sa.Column[str]) -> sa.ColumnElement[bool]:
    """`key` or `key=value`, in the text of `tags_text`. replace() minds the case on every database, LIKE not."""
    if not tag:
        return sa.true()
    key, equals, value = tag.partition("=")
    wanted = json.dumps(key, ensure_ascii=False) + ":" + (json.dumps(value, ensure_ascii=False) if equals else "")
    return sa.func.replace(column, wanted, "") != column
