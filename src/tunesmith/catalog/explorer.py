"""The model explorer's cards: registered models and known ones, merged, labelled, filtered, sorted and paged.

In: a query, in a caller's transaction. Out: a page of cards, or one model's card. A registered model is the same as a
known one where it was downloaded from the hub under that id, or bears its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from tunesmith.catalog.known import find_known, known_models, known_quantised
from tunesmith.catalog.models import all_models, find_model
from tunesmith.catalog.paging import has_tag
from tunesmith.errors import Unknown, UsageFault
from tunesmith.spec.catalog import BaseModelView, VersionState
from tunesmith.spec.explorer import (
    Choices,
    ExplorerPage,
    ExplorerQuery,
    Label,
    ModelCard,
    Sort,
    labels_of,
    quantised_size,
)
from tunesmith.spec.known_models import KnownModel
from tunesmith.storage.tables import MODEL_VERSIONS


def explore(connection: sa.Connection, query: ExplorerQuery, *, project: str | None) -> ExplorerPage:
    """project: whose versions are counted; None: none. Raises UsageFault (BAD_CURSOR)."""
    cards = _all_cards(connection, project=project)
    wanted = [card for card in cards if _matches(card, query)]
    wanted.sort(key=_order(query.sort, query.search))
    names = [card.name for card in wanted]
    start = 0
    if query.after is not None:
        if query.after not in names:
            raise UsageFault(
                "BAD_CURSOR",
                f"after: {query.after[:60]!r} is no cursor of this list.",
                field="after",
                hint="Take `next` of the page before, unchanged.",
            )
        start = names.index(query.after) + 1
    page = wanted[start : start + query.limit]
    following = page[-1].name if page and start + query.limit < len(wanted) else None
    return ExplorerPage(cards=page, total=len(wanted), choices=_choices(cards), next=following)


def find_card(connection: sa.Connection, name: str, *, project: str | None) -> tuple[ModelCard, BaseModelView | None]:
    """The card of a registered or a known model, with its registration. Raises Unknown (UNKNOWN_MODEL)."""
    counts = _version_counts(connection, project=project)
    try:
        registered = find_model(connection, name)
    except Unknown:
        known = find_known(name)
        if known is None:
            raise
        return _known_card(known, counts.get(known.name, 0)), None
    return _registered_card(registered, counts.get(registered.name, 0)), registered


# ---- cards


def _all_cards(connection: sa.Connection, *, project: str | None) -> list[ModelCard]:
    counts = _version_counts(connection, project=project)
    here = [_registered_card(model, counts.get(model.name, 0)) for model in all_models(connection)]
    held = {card.hub_id.lower() for card in here if card.hub_id}
    return [
        *here,
        *(_known_card(known, counts.get(known.name, 0)) for known in known_models().models
          if known.name.lower() not in held),
    ]  # fmt: skip


def _version_counts(connection: sa.Connection, *, project: str | None) -> dict[str, int]:
    if project is None:
        return {}
    columns = MODEL_VERSIONS.c
    rows = connection.execute(
        sa.select(columns.base_name, sa.func.count())
        .where(columns.project == project, columns.state == VersionState.ACTIVE)
        .group_by(columns.base_name)
    )
    return {row[0]: row[1] for row in rows}


def _registered_card(model: BaseModelView, versions: int) -> ModelCard:
    facts = model.facts
    known = find_known(model.hub_id or model.name)
    quantised = quantised_size(facts, facts.weight_bytes)
    return ModelCard(
        name=model.name,
        title=model.name,
        hub_id=model.hub_id or (known.name if known else None),
        family=known.family if known else None,
        publisher=known.publisher if known else None,
        kind=known.kind if known else None,
        model_type=facts.model_type,
        architecture=facts.architecture,
        parameters=facts.parameters,
        weight_bytes=facts.weight_bytes,
        quantised_bytes=quantised.quantised_bytes if quantised else None,
        is_size_measured=True,
        dtype=facts.dtype,
        context_length=facts.context_length,
        licence=facts.licence or (known.licence if known else None),
        is_gated=known.is_gated if known else False,
        revision=model.revision,
        is_here=True,
        is_bundled=model.is_bundled,
        description=model.description,
        tags=model.tags,
        labels=labels_of(
            facts.model_type,
            facts.architecture,
            has_experts=False,
            is_here=True,
            versions=versions,
            quantised=quantised,
        ),
        versions=versions,
        created_at=model.created_at,
    )


def _known_card(known: KnownModel, versions: int) -> ModelCard:
    quantised = known_quantised(known.name)
    return ModelCard(
        name=known.name,
        title=known.title,
        hub_id=known.name,
        family=known.family,
        publisher=known.publisher,
        kind=known.kind,
        model_type=known.model_type,
        architecture=known.architecture,
        parameters=known.parameters,
        weight_bytes=known.weight_bytes,
        quantised_bytes=quantised.quantised_bytes if quantised else None,
        is_size_measured=False,
        dtype=known.dtype,
        context_length=known.context_length,
        licence=known.licence,
        is_gated=known.is_gated,
        revision=known.revision,
        is_here=False,
        is_bundled=False,
        description=known.note or "",
        tags={},
        labels=labels_of(
            known.model_type, known.architecture, has_experts=known.experts is not None, is_here=False,
            versions=versions, quantised=quantised,
        ),
        versions=versions,
        created_at=None,
    )  # fmt: skip


# ---- filters and orders


def _matches(card: ModelCard, query: ExplorerQuery) -> bool:
    told = [card.name, card.title, card.publisher, card.family, card.model_type, card.licence, card.description]
    text = " ".join([*filter(None, told), *card.tags, *card.tags.values()]).lower()
    pairs: list[tuple[str | None, str | None]] = [
        (query.family, card.family),
        (query.publisher, card.publisher),
        (query.kind, card.kind),
        (query.task, card.task),
        (query.licence, card.licence),
    ]
    return (
        all(word in text for word in (query.search or "").lower().split())
        and all(not wanted or (found or "").lower() == wanted.lower() for wanted, found in pairs)
        and (query.label is None or card.has(query.label))
        and (query.here is None or query.here == card.is_here)
        and (query.tag is None or has_tag(query.tag, card.tags))
        and (query.minimum_parameters is None or (card.parameters or 0) >= query.minimum_parameters)
        and (query.maximum_parameters is None or (card.parameters or 0) <= query.maximum_parameters)
    )


def _order(sort: Sort, search: str | None) -> Callable[[ModelCard], Any]:
    """What is here leads where relevance counts: the bundled model, then what begins with the search."""
    text = (search or "").lower()
    orders: dict[Sort, Callable[[ModelCard], Any]] = {
        Sort.RELEVANCE: lambda card: (
            not card.is_here,
            text not in card.name.lower(),
            not card.has(Label.READY_TO_FINE_TUNE),
            not card.is_bundled,
        ),
        Sort.NAME: lambda card: (),
        Sort.SMALLEST: lambda card: (card.parameters is None, card.parameters),
        Sort.LARGEST: lambda card: -(card.parameters or 0),
        Sort.CONTEXT: lambda card: -(card.context_length or 0),
        Sort.NEWEST: lambda card: (card.created_at is None, _reversed(card.created_at or "")),
    }
    return lambda card: (orders[sort](card), card.name.lower(), card.name)


def _reversed(text: str) -> tuple[int, ...]:
    """A key that puts later times first."""
    return tuple(-ord(character) for character in text)


def _choices(cards: Iterable[ModelCard]) -> Choices:
    labels: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("family", "publisher", "kind", "licence")}
    for card in cards:
        labels.update(each.label for each in card.labels)
        for name, counter in counts.items():
            value = getattr(card, name)
            if value is not None:
                counter[str(value)] += 1
    return Choices(
        labels={label: labels[label] for label in Label if labels[label]},
        families=dict(sorted(counts["family"].items())),
        publishers=dict(sorted(counts["publisher"].items())),
        kinds=dict(sorted(counts["kind"].items())),
        licences=dict(sorted(counts["licence"].items())),
    )
