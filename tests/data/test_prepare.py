"""From files to examples: counts, policies, notices, ledger, cache."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.families import BUNDLED, CONTROL, dataset, facts_of, write_folder, write_rows
from tunesmith.data.prepare import Prepared, cut, prepare
from tunesmith.data.render import LEARNED_BIT
from tunesmith.errors import InputRefused
from tunesmith.spec.datasets import DatasetInput
from tunesmith.spec.training import TrainingSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), kind="bytes", control=CONTROL, template=BUNDLED)


def some_rows(count: int, *, start: int = 0) -> list[dict[str, object]]:
    return [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(start, start + count)]


def run(
    folder: Path,
    tmp_path: Path,
    *datasets: DatasetInput,
    context_length: int = 2048,
    vocabulary_size: int = 60_000,
    **settings: Any,
) -> Prepared:
    return prepare(
        datasets,
        settings=TrainingSettings(**settings),
        base=facts_of(folder, context_length=context_length, vocabulary_size=vocabulary_size),
        cache_folder=tmp_path / "cache",
    )


def prompt_text(prepared: Prepared, index: int) -> str:
    return prepared.decode(prepared.training.prompt_tokens(index))


def codes(prepared: Prepared) -> list[str]:
    return [notice.code for notice in prepared.summary.notices]


def test_rows_are_counted_split_and_rendered(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", some_rows(100))
    prepared = run(folder, tmp_path, dataset(path))
    assert prepared.validation is not None
    counts = prepared.summary.counts
    assert (counts.training, counts.validation, counts.dropped, counts.cut, counts.duplicates) == (90, 10, 0, 0, 0)
    assert len(prepared.training) == 90 and len(prepared.validation) == 10
    lines = {prepared.training.line(i) for i in range(90)} | {prepared.validation.line(i) for i in range(10)}
    assert lines == set(range(1, 101))
    assert prepared.summary.render == "chat"
    longest = int(max(prepared.training.lengths.max(), prepared.validation.lengths.max()))
    assert prepared.summary.longest_row == prepared.summary.sequence_length == longest
    for index in (0, 89):
        example = prepared.training[index]
        assert len(example.tokens) == prepared.training.lengths[index]
        assert example.learned[1:].sum() == prepared.training.num_learned[index]
        n = example.line - 1
        assert prepared.training.answer_text(index) == f"It is {n}."
        assert prompt_text(prepared, index) == f"<|begin|><|user|>What is {n}?<|end|><|assistant|>"
        assert prepared.training.text(index).completion == f"It is {n}."
    assert prepared.decode(prepared.end_token_ids) == "<|end|>"


def test_summary_adds_up(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", some_rows(200))
    prepared = run(folder, tmp_path, dataset(path), validation_fraction=0)
    summary = prepared.summary.training
    assert summary.total == prepared.training.lengths.sum()
    assert summary.to_learn == prepared.training.num_learned.sum()
    assert sum(rows for _, rows in summary.histogram) == 200
    assert summary.histogram[-1][0] >= summary.percentiles["100"] == prepared.training.lengths.max()
    assert summary.percentiles["0"] == prepared.training.lengths.min()
    assert prepared.validation is None and prepared.summary.validation is None


def test_equal_rows_are_kept_said_and_on_one_side(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", some_rows(40) + some_rows(20))
    prepared = run(folder, tmp_path, dataset(path), validation_fraction=0.25)
    assert prepared.validation is not None
    assert prepared.summary.counts.duplicates == 20 and prepared.summary.counts.dropped == 0
    assert "20 rows" in next(n.message for n in prepared.summary.notices if n.code == "DUPLICATE_ROWS")
    sides = [
        {examples.answer_text(i) for i in range(len(examples))} for examples in (prepared.training, prepared.validation)
    ]
    assert not sides[0] & sides[1] and len(sides[1]) == 10
    twins = [row for row in prepared.ledger_rows() if row.duplicate_of is not None]
    assert len(twins) == 20 and all(row.duplicate_of == row.line - 40 for row in twins)
    assert {row.fate for row in twins} <= {"trained", "validation"}


def test_equal_rows_are_dropped_when_asked(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", some_rows(40) + some_rows(20))
    prepared = run(folder, tmp_path, dataset(path), duplicates="drop")
    counts = prepared.summary.counts
    assert (counts.training + counts.validation, counts.dropped, counts.duplicates) == (40, 20, 20)
    fates = Counter(row.fate for row in prepared.ledger_rows())
    assert fates["duplicate"] == 20 and sum(fates.values()) == 60


def test_a_row_that_differs_in_other_columns_only_is_equal(folder: Path, tmp_path: Path) -> None:
    rows = [row | {"id": n} for n, row in enumerate(some_rows(5) + some_rows(1))]
    prepared = run(folder, tmp_path, dataset(write_rows(tmp_path / "r.jsonl", rows)), validation_fraction=0)
    assert prepared.summary.counts.duplicates == 1


def test_own_validation_file_splits_nothing_off_and_loses_what_is_trained_on(folder: Path, tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t.jsonl", some_rows(30))
    validation = write_rows(tmp_path / "v.jsonl", some_rows(15, start=25))
    prepared = run(folder, tmp_path, dataset(training), dataset(validation, "validation"))
    assert prepared.validation is not None
    counts = prepared.summary.counts
    assert (counts.training, counts.validation, counts.dropped) == (30, 10, 5)
    assert "5 rows are also in the training dataset" in next(
        n.message for n in prepared.summary.notices if n.code == "LEAKED_ROWS"
    )
    dropped = [row for row in prepared.ledger_rows() if row.fate == "dropped"]
    assert [(row.dataset, row.line, row.duplicate_of) for row in dropped] == [
        ("validation", n, 25 + n) for n in range(1, 6)
    ]
    assert {row.reason for row in dropped} == {"also in the training dataset"}


def test_validation_file_that_is_the_training_file_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(30))
    with pytest.raises(InputRefused) as refused:
        run(folder, tmp_path, dataset(path), dataset(path, "validation"))
    assert refused.value.code == "NOTHING_HELD_OUT"


def test_test_rows_seen_before_are_dropped_and_said_and_not_in_the_ledger(folder: Path, tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t.jsonl", some_rows(30))
    test = write_rows(tmp_path / "test.jsonl", some_rows(15, start=25))
    prepared = run(folder, tmp_path, dataset(training), dataset(test, "test"))
    assert prepared.test is not None and len(prepared.test) == 10
    assert "LEAKED_ROWS" in codes(prepared)
    assert {row.dataset for row in prepared.ledger_rows()} == {"training"}
    assert sum(1 for _ in prepared.ledger_rows()) == 30


def test_one_row_with_a_split_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as refused:
        run(folder, tmp_path, dataset(write_rows(tmp_path / "t.jsonl", some_rows(1))))
    assert refused.value.field == "validation_fraction"


def test_one_row_without_a_split_trains(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(1))
    assert len(run(folder, tmp_path, dataset(path), validation_fraction=0).training) == 1


def test_all_rows_equal_and_few_validation_rows_are_said(folder: Path, tmp_path: Path) -> None:
    equal = run(folder, tmp_path, dataset(write_rows(tmp_path / "t.jsonl", some_rows(1) * 9)), validation_fraction=0)
    assert "ALL_ROWS_EQUAL" in codes(equal)
    few = run(folder, tmp_path, dataset(write_rows(tmp_path / "u.jsonl", some_rows(20))))
    assert "FEW_VALIDATION_ROWS" in codes(few)


# -- too long ---------------------------------------------------------------------------------------------------------


def long_rows() -> list[dict[str, object]]:
    long_prompt = {"prompt": "Read this. " + "word " * 60 + "Done?", "completion": "Yes, it is done."}
    return [*some_rows(20), long_prompt]


def test_too_long_is_refused_by_default_with_line_and_counts(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", long_rows())
    with pytest.raises(InputRefused) as refused:
        run(folder, tmp_path, dataset(path), context_length=60)
    assert refused.value.code == "ROW_TOO_LONG"
    assert refused.value.field == "line 21" and "line 21" in refused.value.message and "60" in refused.value.message


def test_too_long_rows_are_dropped_and_said(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", long_rows())
    prepared = run(folder, tmp_path, dataset(path), context_length=60, too_long="drop")
    counts = prepared.summary.counts
    assert (counts.training + counts.validation, counts.dropped) == (20, 1)
    assert "ROWS_DROPPED" in codes(prepared)
    dropped = [row for row in prepared.ledger_rows() if row.fate == "dropped"]
    assert [(row.line, row.tokens_lost) for row in dropped] == [(21, prepared.summary.longest_row)]
    assert "too long" in (dropped[0].reason or "")
    whole = prepared.summary.training_file
    assert whole is not None and whole.percentiles["100"] == prepared.summary.longest_row > 60
    assert sum(rows for _, rows in whole.histogram) == 21


def test_cutting_takes_from_the_prompts_start_and_keeps_head_and_answer(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", long_rows())
    prepared = run(folder, tmp_path, dataset(path), context_length=60, too_long="cut", validation_fraction=0)
    example = prepared.training[20]
    assert len(example.tokens) == 60 == prepared.training.lengths[20]
    assert prompt_text(prepared, 20).startswith("<|begin|><|user|>")
    assert prompt_text(prepared, 20).endswith("Done?<|end|><|assistant|>")
    assert "Read" not in prompt_text(prepared, 20)
    assert prepared.decode(example.tokens[example.learned].tolist()) == "Yes, it is done.<|end|>"
    assert prepared.summary.counts.cut == 1 and prepared.summary.counts.training == 21
    lost = prepared.summary.longest_row - 60
    entry = next(row for row in prepared.ledger_rows() if row.line == 21)
    assert (entry.fate, entry.tokens_lost) == ("cut", lost)
    assert f"{lost} tokens are lost" in next(n.message for n in prepared.summary.notices if n.code == "ROWS_CUT")


def test_an_answer_too_long_by_itself_loses_its_end_and_that_is_said(folder: Path, tmp_path: Path) -> None:
    rows = [*some_rows(20), {"prompt": "Go on.", "completion": "word " * 80}]
    path = write_rows(tmp_path / "t.jsonl", rows)
    prepared = run(folder, tmp_path, dataset(path), context_length=60, too_long="cut", validation_fraction=0)
    example = prepared.training[20]
    assert len(example.tokens) == 60
    assert example.tokens[-1] not in prepared.end_token_ids and example.learned[-1]
    message = next(n.message for n in prepared.summary.notices if n.code == "ROWS_CUT")
    assert "without an end token" in message


def test_a_cut_validation_row_stays_validation_with_its_loss(folder: Path, tmp_path: Path) -> None:
    training = write_rows(tmp_path / "t.jsonl", some_rows(30))
    validation = write_rows(tmp_path / "v.jsonl", long_rows()[20:])
    prepared = run(
        folder, tmp_path, dataset(training), dataset(validation, "validation"), context_length=60, too_long="cut"
    )
    entry = next(row for row in prepared.ledger_rows() if row.dataset == "validation")
    assert entry.fate == "validation" and entry.tokens_lost > 0
    assert prepared.summary.counts.cut == 1


def test_cut_is_exact_over_all_lengths() -> None:
    stored = np.arange(20, dtype=np.uint32)
    stored[12:] |= np.uint32(LEARNED_BIT)
    for limit in range(1, 25):
        kept = cut(stored, cut_start=2, cut_length=8, limit=limit)
        plain = (kept & np.uint32(LEARNED_BIT - 1)).tolist()
        assert len(kept) == min(limit, 20)
        taken = min(max(20 - limit, 0), 8)
        assert plain == [*range(2), *range(2 + taken, 20)][:limit]


def test_a_row_cut_until_nothing_is_left_to_learn_is_refused_with_its_line(folder: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "A"}] * 1
    turns = [{"role": "system", "content": "word " * 30}, *turns]
    rows: list[dict[str, object]] = [{"messages": turns}] * 2
    path = write_rows(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputRefused) as refused:
        run(folder, tmp_path, dataset(path), context_length=10, too_long="cut", validation_fraction=0)
    assert (refused.value.code, refused.value.field) == ("NOTHING_TO_LEARN", "line 1")


def test_sequence_length_above_the_context_is_refused_naming_both(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(20))
    with pytest.raises(InputRefused, match=r"300.*200"):
        run(folder, tmp_path, dataset(path), context_length=200, sequence_length=300)


def test_given_sequence_length_is_taken(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(20))
    assert run(folder, tmp_path, dataset(path), sequence_length=300).summary.sequence_length == 300


# -- what else is refused or said -------------------------------------------------------------------------------------


def test_tokens_outside_the_embedding_are_refused(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(20))
    with pytest.raises(InputRefused) as refused:
        run(folder, tmp_path, dataset(path), vocabulary_size=100)
    assert refused.value.code == "TOKEN_OUTSIDE_VOCABULARY"


@pytest.mark.parametrize("before", [20, 2500])  # found at the first look, and after a part was tokenised
def test_a_fault_in_the_file_is_refused_with_its_line_and_leaves_no_cache(
    folder: Path, tmp_path: Path, before: int
) -> None:
    rows = [row | {"other": "x" * 1000} for row in some_rows(before)]
    path = write_rows(tmp_path / "t.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"prompt": "x"}\n')
    with pytest.raises(InputRefused, match=rf"t\.jsonl line {before + 1}"):
        run(folder, tmp_path, dataset(path))
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


def test_a_missing_file_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="gone"):
        run(folder, tmp_path, dataset(tmp_path / "gone.jsonl"))


def test_what_the_reader_warns_of_is_said(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(20))
    path.write_bytes(b"\n" + path.read_bytes())
    for _ in range(2):  # the second time from the cache
        prepared = run(folder, tmp_path, dataset(path))
        assert any("t.jsonl line 1" in notice.message for notice in prepared.summary.notices)


def test_a_row_that_the_template_refuses_is_named_with_file_and_line(tmp_path: Path) -> None:
    template = BUNDLED.replace(
        "{% for", "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}{% for", 1
    )
    folder = write_folder(tmp_path / "model", kind="bytes", control=CONTROL, template=template)
    path = write_rows(tmp_path / "t.jsonl", [*some_rows(3), {"prompt": "bad", "completion": "x"}])
    with pytest.raises(InputRefused, match=r"t\.jsonl line 4: .* no\."):
        run(folder, tmp_path, dataset(path))


def test_stripped_contents_are_said(tmp_path: Path) -> None:
    template = BUNDLED.replace("message.content", "message.content | trim")
    template = template.replace("+ message.content | trim +", "+ (message.content | trim) +")
    folder = write_folder(tmp_path / "model", kind="bytes", control=CONTROL, template=template)
    path = write_rows(tmp_path / "t.jsonl", [*some_rows(20), {"prompt": " a ", "completion": "b "}])
    for _ in range(2):  # the second time from the cache
        assert "CONTENT_STRIPPED" in codes(run(folder, tmp_path, dataset(path)))


# -- the cache --------------------------------------------------------------------------------------------------------


def caches(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tokens").iterdir())


def test_the_second_run_builds_no_tokens(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(20))
    first = run(folder, tmp_path, dataset(path))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("tokens were built")

    monkeypatch.setattr("tunesmith.data.prepare._build", never)
    second = run(folder, tmp_path, dataset(path), seed=1)
    assert len(caches(tmp_path)) == 1
    assert sorted(map(first.training.line, range(18))) != sorted(map(second.training.line, range(18)))


def test_the_cache_depends_on_all_that_touches_tokens(folder: Path, tmp_path: Path) -> None:
    rows = [row | {"other": "x"} for row in some_rows(20)]
    path = write_rows(tmp_path / "t.jsonl", rows)
    run(folder, tmp_path, dataset(path))
    run(folder, tmp_path, dataset(path), render="plain")
    run(folder, tmp_path, dataset(path, completion="other"))
    write_rows(path, [*rows, {"prompt": "a", "completion": "b"}])
    run(folder, tmp_path, dataset(path))
    other = write_folder(tmp_path / "other", kind="bytes", control=CONTROL, template=BUNDLED + " ")
    run(other, tmp_path, dataset(path))
    assert len(caches(tmp_path)) == 5


@pytest.mark.parametrize("name", ["tokens.bin", "index.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_a_damaged_cache_is_built_anew_and_that_is_said(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = write_rows(tmp_path / "t.jsonl", some_rows(20))
    first = run(folder, tmp_path, dataset(path))
    tokens = [first.training[index].tokens.tolist() for index in range(18)]
    file = caches(tmp_path)[0] / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "truncated" else bytes([content[0] ^ 0xFF]) + content[1:])
    again = run(folder, tmp_path, dataset(path))
    assert "TOKEN_CACHE_REBUILT" in codes(again)
    assert [again.training[index].tokens.tolist() for index in range(18)] == tokens
    assert "TOKEN_CACHE_REBUILT" not in codes(run(folder, tmp_path, dataset(path)))


# -- real files -------------------------------------------------------------------------------------------------------


def test_wwdc25_says_its_duplicates_and_leaks(shared_data: Path, tmp_path: Path) -> None:
    files = shared_data / "prompt_completion" / "wwdc25"
    folder = shared_data / "tokenizers" / "gpt2"
    prepared = run(
        folder, tmp_path, dataset(files / "train.jsonl"), dataset(files / "valid.jsonl", "validation"), render="plain"
    )
    counts = prepared.summary.counts
    assert (counts.training, counts.validation, counts.dropped, counts.duplicates) == (1800, 128, 16, 437)
    messages = {notice.code: notice.message for notice in prepared.summary.notices}
    assert "437 rows" in messages["DUPLICATE_ROWS"] and "16 rows" in messages["LEAKED_ROWS"]
    assert sum(1 for _ in prepared.ledger_rows()) == 1944


def test_tinker_messages_with_system_turns_on_phi3(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "messages" / "tinker" / "conversations.jsonl"
    prepared = run(shared_data / "tokenizers" / "phi3-mini", tmp_path, dataset(path), validation_fraction=0)
    answers = [json.loads(line)["messages"][-1]["content"] for line in path.read_text().splitlines()]
    for index in random.Random(0).sample(range(128), 20):
        assert prepared.training.answer_text(index) == answers[index]
