"""How names are spelled, and what is told of one that is refused: the same words over REST, commands and the client."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from tests.cli.conftest import Done, home, state, tunesmith
from tunesmith.client import Client
from tunesmith.errors import UsageFault
from tunesmith.spec.catalog import NewLocation
from tunesmith.spec.names import ALIAS, NAME, SPELLINGS, Spelling, words_of

__all__ = ["home", "state", "tunesmith"]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda each: each.what)
def test_an_example_is_right_and_the_schema_means_the_words(spelling: Spelling) -> None:
    assert spelling.check(spelling.example) == spelling.example
    assert words_of(f"^{spelling.pattern}$") == spelling.words


@pytest.mark.parametrize(
    ("spelling", "text", "way_out"),
    [
        (NAME, "Team A", "'team-a' would do"),
        (NAME, " -x ", "'x' would do"),
        (NAME, "", "for example 'team-a'"),
        (NAME, "ü", "for example 'team-a'"),
        (NAME, "a\n", "'a' would do"),
        (ALIAS, "1st", "for example 'prod'"),
    ],
)
def test_what_is_refused_is_told_with_a_way_out(spelling: Spelling, text: str, way_out: str) -> None:
    with pytest.raises(ValueError, match=re.escape(way_out)) as caught:
        spelling.check(text)
    assert spelling.words in str(caught.value) and repr(text) in str(caught.value)


def test_who_makes_a_spec_by_hand_is_told_too() -> None:
    with pytest.raises(ValidationError, match="'team-a' would do"):
        NewLocation(name="Team A", uri="file:///tmp")


COMMANDS: list[tuple[list[str], str]] = [
    (["location", "add", "Bad name", "file:///tmp"], "'bad-name' would do"),
    (["location", "add", "a", "file:///tmp", "--credentials", "my-own"], "env:PREFIX, profile:NAME or file:PATH"),
    (["log", "add", "Bad name"], "'bad-name' would do"),
    (["log", "add", "a" * 64], "1 to 63 lower-case letters"),
    (["log", "add", "a", "--retention-days", "0"], "retention_days is 0. It should be greater than or equal to 1"),
    (["network", "add", "Bad name", "10.0.0.0/24"], "'bad-name' would do"),
    (["network", "add", "a", "10.0.0.0/24", "--interface", "eth 0"], "'eth-0' would do"),
    (["model", "register", "bad name", "/tmp"], "'bad-name' would do"),
    (["model", "register", "a", "/tmp", "--tag", "my team=x"], "'my-team' would do"),
    (["model", "search", "--hub", "--author", "a b"], "'a-b' would do"),
    (["version", "register", "/tmp", "bad set"], "'bad-set' would do"),
    (["version", "list", "--set", "bad set"], "'bad-set' would do"),
    (["version", "alias", "bot@Prod", "1"], "'prod' would do"),
    (["plan", "tunesmith/demo", "x.jsonl", "--version-set", "bad set"], "'bad-set' would do"),
]


@pytest.mark.parametrize(("arguments", "told"), COMMANDS, ids=[" ".join(each[0])[:50] for each in COMMANDS])
def test_commands_tell_what_a_name_may_be(tunesmith: Callable[..., Done], arguments: list[str], told: str) -> None:
    done = tunesmith(*arguments, "--json")
    assert done.code == 2
    message = done.json["error"]["message"]
    assert told in message and "pattern" not in message and "String should" not in message


def test_the_client_refuses_before_it_asks(monkeypatch: pytest.MonkeyPatch, home: Any) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(home.root))
    with Client() as client, pytest.raises(UsageFault, match="'bad-name' would do"):
        client.models.register("bad name", "/tmp")
