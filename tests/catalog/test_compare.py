from __future__ import annotations

from tests.catalog import make
from tests.catalog.conftest import PROJECT, State
from tunesmith.catalog.compare import compare_versions
from tunesmith.spec.catalog import Comparison


def compare(state: State, left: str, right: str) -> Comparison:
    with state.database.read() as connection:
        return compare_versions(connection, left, right, project=PROJECT)


def test_only_what_differs_is_told_and_scores_are_of_the_best_epochs(state: State) -> None:
    left = state.version(lineage=make.lineage(), metrics=make.metrics(3.0, 2.0, 2.5))
    right = state.version(
        lineage=make.lineage(epochs=5, learning_rate=1e-3), metrics=make.metrics(3.0, 2.0, 1.5, best_epoch=2)
    )
    found = compare(state, left, right)
    assert {each.name: (each.left, each.right) for each in found.settings} == {
        "epochs": (3, 5),
        "learning_rate": (2e-4, 1e-3),
    }
    assert found.data == []
    loss = next(score for score in found.scores if score.name == "loss")
    assert (loss.left, loss.right, loss.difference) == (2.0, 1.5, -0.5)
    assert found.same_validation_rows is True
    assert found.notices == []


def test_scores_on_different_validation_rows_are_said_not_to_compare(state: State) -> None:
    left = state.version(lineage=make.lineage(), metrics=make.metrics(3.0, 2.0))
    for other in (make.lineage(content_hash="e" * 64), make.lineage(seed=1), make.lineage(validation_fraction=0.2)):
        right = state.version(lineage=other, metrics=make.metrics(3.0, 1.0))
        found = compare(state, left, right)
        assert found.same_validation_rows is False
        assert [notice.code for notice in found.notices] == ["SCORES_NOT_COMPARABLE"]
    assert "training content_hash" in {each.name for each in compare(state, "bot:1", "bot:2").data}


def test_a_version_without_lineage_is_said_to_have_none(state: State) -> None:
    found = compare(state, state.version(), state.version(lineage=make.lineage(), metrics=make.metrics(3.0, 1.0)))
    assert found.same_validation_rows is None
    assert [notice.code for notice in found.notices] == ["LINEAGE_UNKNOWN"]
    assert [score.difference for score in found.scores] == [None, None, None]
