"""The cards of the model explorer: what is here and what is known, merged, filtered, sorted, in pages."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from tests.catalog import make
from tests.catalog.conftest import PROJECT, State
from tunesmith.bundled import MODEL_NAME
from tunesmith.catalog.explorer import explore, find_card
from tunesmith.catalog.known import known_models
from tunesmith.catalog.models import register_model
from tunesmith.errors import Unknown, UsageFault
from tunesmith.spec.catalog import NewBaseModel, VersionState
from tunesmith.spec.explorer import ExplorerPage, ExplorerQuery, Label

EIGHT = "Qwen/Qwen3-8B"


def asked(connection: sa.Connection, **query: Any) -> ExplorerPage:
    return explore(connection, ExplorerQuery.model_validate({"limit": 200} | query), project=PROJECT)


def names(connection: sa.Connection, **query: Any) -> list[str]:
    return [card.name for card in asked(connection, **query).cards]


def register(connection: sa.Connection, name: str, **fields: Any) -> None:
    hub = {key: fields.pop(key) for key in ("hub_id", "revision") if key in fields}
    new = NewBaseModel.model_validate({"name": name, "path": f"/models/{name}"} | fields)
    register_model(connection, new, facts=make.facts(name), actor="me", **hub)


def test_before_anything_is_registered_it_shows_the_bundled_model_and_all_known_ones(
    connection: sa.Connection,
) -> None:
    page = asked(connection)
    assert page.cards[0].name == MODEL_NAME and page.cards[0].is_here
    assert page.total == len(page.cards) == 1 + len(known_models().models)
    assert page.choices.labels[Label.READY_TO_REGISTER] == len(known_models().models)
    assert sum(page.choices.families.values()) == len(known_models().models)


def test_a_downloaded_model_takes_the_place_of_its_known_card(connection: sa.Connection) -> None:
    register(connection, "our-eight", hub_id=EIGHT, revision="b" * 40)
    cards = {card.name: card for card in asked(connection).cards}
    assert EIGHT not in cards
    ours = cards["our-eight"]
    assert (ours.hub_id, ours.revision, ours.publisher, ours.family) == (EIGHT, "b" * 40, "Alibaba Cloud", "Qwen3")
    assert ours.is_size_measured and ours.parameters == 1000 and ours.has(Label.READY_TO_DEPLOY)


def test_a_registered_model_of_a_known_name_is_that_model(connection: sa.Connection) -> None:
    register(connection, EIGHT)
    [card] = asked(connection, search="qwen3-8b").cards
    assert card.is_here and card.family == "Qwen3" and card.revision is None, "whose commit is not known"


def test_versions_are_counted_and_labelled(state: State) -> None:
    for kind in (VersionState.ACTIVE, VersionState.ACTIVE, VersionState.FAILED):
        state.version(base_name=EIGHT, state=kind)
    with state.database.read() as connection:
        card, registered = find_card(connection, EIGHT, project=PROJECT)
        assert registered is None and card.versions == 2 and card.has(Label.FINE_TUNED)
        assert names(connection, label=Label.FINE_TUNED) == [EIGHT]


@pytest.mark.parametrize(
    ("query", "check"),
    [
        ({"search": "llama instruct 3.2"}, lambda card: "Llama-3.2" in card.name and "Instruct" in card.name),
        ({"family": "gemma 2"}, lambda card: card.family == "Gemma 2"),
        ({"publisher": "Mistral AI"}, lambda card: card.publisher == "Mistral AI"),
        ({"kind": "code"}, lambda card: card.kind == "code"),
        ({"licence": "apache-2.0"}, lambda card: card.licence == "apache-2.0"),
        ({"label": "Not yet"}, lambda card: card.has(Label.NOT_YET) and not card.has(Label.READY_TO_FINE_TUNE)),
        ({"here": "false"}, lambda card: not card.is_here),
        ({"minimum_parameters": 10**10}, lambda card: (card.parameters or 0) >= 10**10),
        ({"maximum_parameters": 10**9}, lambda card: (card.parameters or 0) <= 10**9),
    ],
)
def test_a_filter_keeps_what_it_names_and_all_of_it(connection: sa.Connection, query: Any, check: Any) -> None:
    everything = asked(connection).cards
    kept = asked(connection, **query)
    assert kept.cards and len(kept.cards) < len(everything)
    assert {card.name for card in kept.cards} == {card.name for card in everything if check(card)}
    assert kept.choices == asked(connection).choices, "what else could be chosen stays in sight"


def test_tags_are_searched_and_filtered(connection: sa.Connection) -> None:
    register(connection, "tagged", tags={"team": "support"})
    register(connection, "plain")
    assert names(connection, tag="team=support") == names(connection, tag="team") == ["tagged"]
    assert names(connection, search="support") == ["tagged"]
    assert names(connection, tag="team=other") == []


def test_orders(connection: sa.Connection) -> None:
    register(connection, "a-small-one")
    register(connection, "z-newest")
    assert names(connection)[0] == MODEL_NAME, "what is here leads, the bundled one first"
    assert names(connection, sort="name")[0] == "a-small-one"
    assert names(connection, sort="newest", here="true")[-1] == MODEL_NAME
    sizes = [card.parameters for card in asked(connection, sort="largest").cards if card.parameters]
    assert sizes == sorted(sizes, reverse=True)
    sizes = [card.parameters for card in asked(connection, sort="smallest").cards if card.parameters]
    assert sizes == sorted(sizes)
    contexts = [card.context_length for card in asked(connection, sort="context").cards if card.context_length]
    assert contexts == sorted(contexts, reverse=True)
    ready = [card.has(Label.READY_TO_FINE_TUNE) for card in asked(connection, here="false").cards]
    assert ready == sorted(ready, reverse=True), "what can be tuned comes before what cannot"


@pytest.mark.parametrize("sort", ["relevance", "name", "largest"])
def test_pages_hold_everything_once(connection: sa.Connection, sort: str) -> None:
    seen: list[str] = []
    after = None
    while True:
        page = asked(connection, limit=7, after=after, sort=sort)
        seen += [card.name for card in page.cards]
        after = page.next
        if after is None:
            break
    assert seen == names(connection, sort=sort)
    with pytest.raises(UsageFault, match="no cursor"):
        asked(connection, after="nobody")


def test_a_name_that_nobody_knows_is_unknown(connection: sa.Connection) -> None:
    with pytest.raises(Unknown, match="nobody/knows"):
        find_card(connection, "nobody/knows", project=PROJECT)


def test_quantisation_is_found_by_its_label_and_told_in_bytes(connection: sa.Connection) -> None:
    found = {card.name: card for card in asked(connection, label=Label.SUPPORTS_QUANTISATION).cards}
    eight = found[EIGHT]
    assert eight.quantised_bytes is not None and eight.weight_bytes is not None
    assert 0.25 < eight.quantised_bytes / eight.weight_bytes < 0.5
    everything = asked(connection).cards
    without = [card for card in everything if card.name not in found]
    assert without and all(card.quantised_bytes is None for card in without)
    assert not any(card.has(Label.READY_TO_FINE_TUNE) and card.weight_bytes for card in without)
