"""Datasets become sets of examples: read, check, render, split, apply the policies, and say all of it.

In: dataset files, settings, the facts of the base model, a folder for token caches. Out: `Prepared`: three
`ExampleSet`s, a `Preparation` with counts and notices, and the ledger. It refuses before anything is trained. The
inspect worker and the trainer both call it; the second call finds the first one's cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data import ledger
from tunesmith.data.batch import Example
from tunesmith.data.ledger import DatasetLedger
from tunesmith.data.render import LEARNED_BIT, Renderer, load_renderer
from tunesmith.data.rows import Findings, Row, check_file, read_rows, require_rows
from tunesmith.data.split import also_in, first_equal, split_off
from tunesmith.data.tokens import FORMAT, TableWriter, TokenTable, discard, open_table
from tunesmith.errors import InputRefused, TunesmithError
from tunesmith.files import sha256_of
from tunesmith.spec.artifacts import LedgerRow
from tunesmith.spec.datasets import (
    DatasetInput,
    Finding,
    Notice,
    Preparation,
    Role,
    RowCounts,
    TokenSummary,
)
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.training import AUTO, TrainingSettings
from tunesmith.spec.verdict import MINIMUM_ROWS

BATCH_CHARACTERS = 1_000_000  # of one encode call: enough for all threads, and its encodings stay near 100 MB
BATCH_ROWS = 8192
PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MAX_HISTOGRAM_BINS = 16
MAX_LISTED_LINES = 5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDataset:
    """A dataset's tokens and the columns of its index that every row is asked for; all in file order.

    hashes: (rows, 2) uint64. first: index of the first equal row. lengths, targets: before cutting.
    """

    dataset: DatasetInput
    table: TokenTable
    hashes: NDArray[np.uint64]
    first: NDArray[np.int32]
    lengths: NDArray[np.int32]
    targets: NDArray[np.int32]


class ExampleSet:
    """Examples of one role, in file order. Tokens stay in the memory-mapped cache until they are asked for.

    lengths, num_learned: (rows,) int32, after cutting; num_learned counts targets (learned tokens at positions >= 1).
    """

    def __init__(self, loaded: LoadedDataset, rows: NDArray[np.int32], *, limit: int, renderer: Renderer) -> None:
        self._table = loaded.table
        self._rows = rows
        self._limit = limit
        self._dataset = loaded.dataset
        self._renderer = renderer
        self._lengths = loaded.lengths[rows]
        self._num_learned = loaded.targets[rows]
        for place in np.flatnonzero(self._lengths > limit).tolist():
            stored = self._stored(place)
            self._lengths[place] = len(stored)
            self._num_learned[place] = int(np.count_nonzero(stored[1:] >= LEARNED_BIT))

    @property
    def name(self) -> str:
        return self._dataset.name

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self._lengths

    @property
    def num_learned(self) -> NDArray[np.int32]:
        return self._num_learned

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> Example:
        stored = self._stored(index)
        return Example(
            tokens=(stored & np.uint32(LEARNED_BIT - 1)).astype(np.int64),
            learned=stored >= LEARNED_BIT,
            line=self.line(index),
        )

    def line(self, index: int) -> int:
        return int(self._table.index["line"][self._rows[index]])

    @property
    def lines(self) -> NDArray[np.uint32]:
        return self._table.index["line"][self._rows]

    def text(self, index: int) -> Row:
        """The row as it stands in the file, read again; a scan of the file up to its line."""
        line = self.line(index)
        for row in read_rows(Path(self._dataset.path), columns=self._dataset.columns, findings=Findings()):
            if row.line == line:
                return row
        raise InputRefused(
            "DATASET_CHANGED", f"{self._dataset.name} has no row at line {line} any more.", field="dataset"
        )

    def prompt_tokens(self, index: int) -> list[int]:
        """All before the row's last learned stretch: what the model is given when it shall answer."""
        example = self[index]
        return example.tokens[: _last_answer(example)[0]].tolist()

    def answer_tokens(self, index: int) -> list[int]:
        """The row's last learned stretch without its end token."""
        example = self[index]
        first, last = _last_answer(example)
        answer = example.tokens[first:last].tolist()
        return answer[:-1] if answer and answer[-1] in self._renderer.stop_ids else answer

    def answer_text(self, index: int) -> str:
        return self._renderer.tokenizer.decode(self.answer_tokens(index))

    def decode(self, ids: Sequence[int]) -> str:
        return self._renderer.tokenizer.decode(ids)

    def _stored(self, index: int) -> NDArray[np.uint32]:
        number = self._rows[index]
        entry = self._table.index[number]
        stored = self._table.stored_row(number)
        if len(stored) <= self._limit:
            return stored
        return cut(stored, cut_start=int(entry["cut_start"]), cut_length=int(entry["cut_length"]), limit=self._limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything the trainer needs of the datasets. The ledger holds the training and validation datasets' rows."""

    training: ExampleSet
    validation: ExampleSet | None
    test: ExampleSet | None
    summary: Preparation
    ledgers: tuple[DatasetLedger, ...]
    renderer: Renderer

    def ledger_rows(self) -> Iterator[LedgerRow]:
        for dataset in self.ledgers:
            yield from dataset.rows()

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token at which an answer ends; the learned one is among them."""
        return self.renderer.stop_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.renderer.tokenizer.decode(ids)


def cut(stored: NDArray[np.uint32], *, cut_start: int, cut_length: int, limit: int) -> NDArray[np.uint32]:
    """A stored row in `limit` tokens: first from the start of its longest unlearned content, then from its end.

    So the template's head and the start token stay, the end of the prompt stays next to the answer, and an answer loses
    its end (and its end token) only if it is too long by itself.
    """
    excess = len(stored) - limit
    if excess <= 0:
        return stored
    taken = min(excess, cut_length)
    kept = np.concatenate([stored[:cut_start], stored[cut_start + taken :]])
    return kept[:limit]


def prepare(
    datasets: Sequence[DatasetInput],
    *,
    settings: TrainingSettings,
    base: ModelFacts,
    cache_folder: Path,
    progress: Progress | None = None,
) -> Prepared:
    """The whole way from files to examples. Raises InputRefused for what cannot be trained on, naming file and line.

    progress(what, done, total) counts bytes of the dataset being read.
    """
    by_role = _by_role(datasets, settings)
    renderer = load_renderer(Path(base.path), settings.render)
    notices: list[Notice] = []
    loaded = {
        role: _load(
            dataset, renderer=renderer, base=base, cache_folder=cache_folder, notices=notices, progress=progress
        )
        for role, dataset in by_role.items()
    }
    training, validation, test = loaded["training"], loaded.get("validation"), loaded.get("test")

    fates: dict[Role, NDArray[np.uint8]] = {"training": np.full(len(training.table), ledger.TRAINED, np.uint8)}
    if validation is None and settings.validation_fraction > 0:
        chosen = split_off(training.hashes, training.first, fraction=settings.validation_fraction, seed=settings.seed)
        fates["training"][chosen] = ledger.VALIDATION
    is_copy = training.first != np.arange(len(training.first))
    _say_duplicates(training, is_copy, settings=settings, notices=notices)
    if settings.duplicates == "drop":
        fates["training"][is_copy] = ledger.DUPLICATE
    twins = None
    if validation is not None:
        twins = also_in(validation.hashes, training.hashes)
        fates["validation"] = _unseen(validation, twins >= 0, ledger.VALIDATION, notices=notices)
    if test is not None:
        seen = training.hashes if validation is None else np.concatenate([training.hashes, validation.hashes])
        fates["test"] = _unseen(test, also_in(test.hashes, seen) >= 0, ledger.TRAINED, notices=notices)

    longest = _longest(*((loaded[role], fates[role]) for role in by_role))
    limit = _sequence_length(settings, base=base, longest=longest)
    for role in by_role:
        _apply_length(loaded[role], fates[role], settings=settings, limit=limit, base=base, notices=notices)

    def examples(of: LoadedDataset, chosen: NDArray[np.bool_], role: Role) -> ExampleSet:
        rows = np.flatnonzero(chosen).astype(np.int32)
        if not len(rows):
            raise InputRefused(
                "NO_ROWS_LEFT",
                f"{of.dataset.name}: no {role} row is left after dropping those that are too long or doubled.",
                field="too_long",
                hint="Raise --sequence-length, choose --too-long cut, or give other rows.",
            )
        made = ExampleSet(of, rows, limit=limit, renderer=renderer)
        _require_targets(made, of.dataset)
        return made

    training_set = examples(training, fates["training"] == ledger.TRAINED, "training")
    validation_set = test_set = None
    if validation is not None:
        validation_set = examples(validation, fates["validation"] == ledger.VALIDATION, "validation")
    elif settings.validation_fraction > 0:
        validation_set = examples(training, fates["training"] == ledger.VALIDATION, "validation")
    if test is not None:
        test_set = examples(test, fates["test"] == ledger.TRAINED, "test")

    ledgers = [_ledger(training, fates["training"], limit=limit, twins=None, training=training)]
    if validation is not None:
        ledgers.append(_ledger(validation, fates["validation"], limit=limit, twins=twins, training=training))
    counts = _counts(ledgers)
    _say_cuts(ledgers, limit=limit, notices=notices)
    _say_rest(training, training_set, validation_set, test_set, renderer=renderer, notices=notices)
    summary = Preparation(
        counts=counts,
        training=_summary_of(training_set),
        validation=None if validation_set is None else _summary_of(validation_set),
        test=None if test_set is None else _summary_of(test_set),
        training_file=token_summary(training.lengths, training.targets),
        longest_row=longest,
        sequence_length=limit,
        render=renderer.mode,
        notices=notices,
    )
    return Prepared(
        training=training_set,
        validation=validation_set,
        test=test_set,
        summary=summary,
        ledgers=tuple(ledgers),
        renderer=renderer,
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def _by_role(datasets: Sequence[DatasetInput], settings: TrainingSettings) -> dict[Role, DatasetInput]:
    by_role: dict[Role, DatasetInput] = {}
    for dataset in datasets:
        if dataset.role in by_role:
            raise TunesmithError("DATASET_TWICE", f"Two datasets have the role {dataset.role}.", field="datasets")
        by_role[dataset.role] = dataset
    if "training" not in by_role:
        raise TunesmithError("DATASET_MISSING", "No dataset has the role training.", field="datasets")
    return by_role


def _load(
    dataset: DatasetInput,
    *,
    renderer: Renderer,
    base: ModelFacts,
    cache_folder: Path,
    notices: list[Notice],
    progress: Progress | None,
) -> LoadedDataset:
    """The dataset's tokens, from the cache or built, with what was noted while building."""
    path = Path(dataset.path)
    _require_first_row(dataset)
    before = path.stat()
    key = cache_key(dataset, renderer=renderer, content=sha256_of(path))
    root = Path(cache_folder) / "tokens"
    try:
        table = open_table(root, key)
    except ValueError as error:
        notices.append(
            Notice(
                code="TOKEN_CACHE_REBUILT",
                message=f"The token cache of {dataset.name} was damaged ({error}); it is built anew.",
            )
        )
        discard(root, key)
        table = None
    if table is None:
        with TableWriter(root, key) as writer:
            facts = _build(dataset, renderer=renderer, writer=writer, size=before.st_size, progress=progress)
            after = path.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise InputRefused(
                    "DATASET_CHANGED",
                    f"{dataset.name} was changed while it was read.",
                    field=dataset.role,
                    hint="Start again once the file is written.",
                )
            writer.commit(facts)
        table = open_table(root, key)
        if table is None:
            raise TunesmithError("TOKEN_CACHE_LOST", f"The token cache {key} vanished while it was used.")
    _require_vocabulary(dataset, table, base=base)
    notices += [Notice.model_validate(entry) for entry in table.facts["notices"]]
    hashes = table.column("hash").astype(np.uint64, copy=False)
    return LoadedDataset(
        dataset=dataset,
        table=table,
        hashes=hashes,
        first=first_equal(hashes),
        lengths=table.column("length").view(np.int32),
        targets=table.column("targets").view(np.int32),
    )


def _require_first_row(dataset: DatasetInput) -> None:
    """Refuse at once what is no dataset at all (missing, binary, empty), before its bytes are hashed."""
    findings = Findings()
    row = next(read_rows(Path(dataset.path), columns=dataset.columns, findings=findings), None)
    if row is None or findings.num_errors:
        require_rows(check_file(Path(dataset.path), columns=dataset.columns, name=dataset.name))


def cache_key(dataset: DatasetInput, *, renderer: Renderer, content: str) -> str:
    """Of all that touches tokens: the file's bytes and form, columns, tokenizer files and template, mode, format."""
    parts = {
        "format": FORMAT,
        "content": content,
        "suffix": Path(dataset.path).suffix.lower(),
        "columns": dataset.columns,
        "tokenizer": renderer.tokenizer.digest,
        "mode": renderer.mode,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _build(
    dataset: DatasetInput, *, renderer: Renderer, writer: TableWriter, size: int, progress: Progress | None
) -> dict[str, Any]:
    """Read, check and render the file into `writer`. While one batch is encoded, the next one is read."""
    path = Path(dataset.path)
    findings = Findings()
    max_token = max_line = 0
    stripped_before = renderer.num_stripped
    warned_before = set(renderer.warnings)
    characters = 0

    def batches() -> Iterator[list[Row]]:
        nonlocal characters
        batch: list[Row] = []
        size = 0
        for row in read_rows(path, columns=dataset.columns, findings=findings):
            batch.append(row)
            size += len(row.prompt) + len(row.completion) + sum(len(message.content) for message in row.messages)
            if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
                yield batch
                characters += size
                batch, size = [], 0
        if batch:
            yield batch

    def store(pending: tuple[list[Row], Any, Future[list[list[int]]]]) -> None:
        nonlocal max_token, max_line
        rows, plans, encoded = pending
        rendered = renderer.assemble(plans, encoded.result())
        max_token = max(max_token, int((rendered.tokens & np.uint32(LEARNED_BIT - 1)).max(initial=0)))
        writer.append(rendered, lines=(row.line for row in rows), hashes=(row.content_hash for row in rows))
        max_line = rows[-1].line

    pending: tuple[list[Row], Any, Future[list[list[int]]]] | None = None
    with ThreadPoolExecutor(1) as encoder:
        for rows in batches():
            if findings.num_errors:
                break
            try:
                texts, plans = renderer.plan_rows(rows)
            except InputRefused as error:
                raise InputRefused(
                    error.code, f"{dataset.name} {error.message}", field=error.field, hint=error.hint
                ) from error
            future = encoder.submit(renderer.tokenizer.encode_contents, texts)
            if pending is not None:
                store(pending)
            pending = (rows, plans, future)
            if progress is not None:
                progress(f"reading {dataset.name}", min(characters, size), size)
        if pending is not None:
            store(pending)
    if findings.num_errors or pending is None:
        require_rows(check_file(path, columns=dataset.columns, name=dataset.name))
    notices = [_as_notice(dataset, warning) for warning in findings.warnings]
    notices += [
        Notice(code=code, message=message) for code, message in renderer.warnings.items() if code not in warned_before
    ]
    if renderer.num_stripped > stripped_before:
        notices.append(
            Notice(
                code="CONTENT_STRIPPED",
                message=f"{dataset.name}: the model's chat template takes white space off the ends of turns in "
                f"{renderer.num_stripped - stripped_before} rows; the text without it is used.",
            )
        )
    if progress is not None:
        progress(f"reading {dataset.name}", size, size)
    return {"max_token": max_token, "notices": [notice.as_json() for notice in notices]}


def _as_notice(dataset: DatasetInput, warning: Finding) -> Notice:
    place = dataset.name if warning.line is None else f"{dataset.name} line {warning.line}"
    return Notice(code=warning.code, message=f"{place}: {warning.message}", hint=warning.hint)


def _require_vocabulary(dataset: DatasetInput, table: TokenTable, *, base: ModelFacts) -> None:
    if table.facts["max_token"] >= base.vocabulary_size:
        raise InputRefused(
            "TOKEN_OUTSIDE_VOCABULARY",
            f"{dataset.name}: the tokenizer gives token {table.facts['max_token']}, "
            f"but the base model's embedding has {base.vocabulary_size} rows.",
            field="model",
            hint="The tokenizer files do not belong to these weights; take both from one place.",
        )


# -- policies ---------------------------------------------------------------------------------------------------------


def _unseen(
    loaded: LoadedDataset, is_seen: NDArray[np.bool_], fate: int, *, notices: list[Notice]
) -> NDArray[np.uint8]:
    """Fates of held-out rows. Those seen in training (or, for a test, in choosing the epoch) are dropped, and said."""
    _say_leak(loaded, is_seen, notices=notices)
    if is_seen.all():
        raise _all_leaked(loaded)
    return np.where(is_seen, ledger.IN_TRAINING, fate).astype(np.uint8)


def _longest(*kept: tuple[LoadedDataset, NDArray[np.uint8]]) -> int:
    return max(int(loaded.lengths[_is_kept(fates)].max(initial=0)) for loaded, fates in kept)


def _is_kept(fates: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (fates == ledger.TRAINED) | (fates == ledger.VALIDATION)


def _sequence_length(settings: TrainingSettings, *, base: ModelFacts, longest: int) -> int:
    if settings.sequence_length == AUTO:
        return max(2, min(longest, base.context_length))
    if settings.sequence_length > base.context_length:
        raise InputRefused(
            "SEQUENCE_LENGTH_ABOVE_CONTEXT",
            f"--sequence-length {settings.sequence_length} is above the context of {base.name}, "
            f"{base.context_length} tokens.",
            field="sequence_length",
            hint=f"Give at most {base.context_length}, or leave it out.",
        )
    return settings.sequence_length


def _apply_length(
    loaded: LoadedDataset,
    fates: NDArray[np.uint8],
    *,
    settings: TrainingSettings,
    limit: int,
    base: ModelFacts,
    notices: list[Notice],
) -> None:
    """Apply --too-long: refuse, or mark the rows to drop in `fates`; cutting happens when a row is read."""
    lengths = loaded.lengths
    is_long = (lengths > limit) & _is_kept(fates)
    count = int(is_long.sum())
    if not count or settings.too_long == "cut":
        return
    numbers = np.flatnonzero(is_long)
    if settings.too_long == "refuse":
        first = int(numbers[0])
        line = int(loaded.table.index["line"][first])
        what = "the model's context" if limit == base.context_length else "the sequence length"
        raise InputRefused(
            "ROW_TOO_LONG",
            f"{loaded.dataset.name} line {line}: the row has {int(lengths[first])} tokens, {what} is {limit}. "
            f"{_count(count, 'row is', 'rows are')} too long; the longest has {int(lengths[numbers].max())}.",
            field=f"line {line}",
            hint="Shorten them, raise --sequence-length where the model allows it, or choose --too-long drop or cut.",
        )
    fates[is_long] = ledger.TOO_LONG


def _require_targets(examples: ExampleSet, dataset: DatasetInput) -> None:
    bad = np.flatnonzero(examples.num_learned == 0)
    if len(bad):
        line = examples.line(int(bad[0]))
        raise InputRefused(
            "NOTHING_TO_LEARN",
            f"{dataset.name} line {line}: the row holds no token to learn"
            f"{_and_others(len(bad))}. At most {int(examples.lengths.max())} tokens of a row are kept.",
            field=f"line {line}",
            hint="Remove the row, give the text the model should learn, or raise --sequence-length.",
        )


def _ledger(
    loaded: LoadedDataset,
    fates: NDArray[np.uint8],
    *,
    limit: int,
    twins: NDArray[np.int32] | None,
    training: LoadedDataset,
) -> DatasetLedger:
    lengths = loaded.lengths
    lost = np.where(_is_kept(fates), np.maximum(lengths - limit, 0), 0).astype(np.uint32)
    return DatasetLedger(
        dataset=loaded.dataset.role,
        index=loaded.table.index,
        fates=fates,
        tokens_lost=lost,
        first=loaded.first,
        elsewhere=twins,
        training_index=training.table.index,
        limit=limit,
    )


def _counts(ledgers: Sequence[DatasetLedger]) -> RowCounts:
    def total(*codes: int) -> int:
        return sum(int(np.isin(entry.fates, codes).sum()) for entry in ledgers)

    return RowCounts(
        training=total(ledger.TRAINED),
        validation=total(ledger.VALIDATION),
        cut=sum(int(np.count_nonzero(entry.tokens_lost)) for entry in ledgers),
        dropped=total(ledger.DUPLICATE, ledger.TOO_LONG, ledger.IN_TRAINING),
        duplicates=int((ledgers[0].first != np.arange(len(ledgers[0].first))).sum()),
    )


# -- what must be said ------------------------------------------------------------------------------------------------


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _and_others(number: int) -> str:
    return "" if number == 1 else f" (and {_count(number - 1, 'other row', 'other rows')} too)"


def _lines(loaded: LoadedDataset, is_meant: NDArray[np.bool_]) -> str:
    numbers = np.flatnonzero(is_meant)
    shown = ", ".join(str(int(loaded.table.index["line"][number])) for number in numbers[:MAX_LISTED_LINES])
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{', ...' if len(numbers) > MAX_LISTED_LINES else ''}"


def _say_duplicates(
    training: LoadedDataset, is_copy: NDArray[np.bool_], *, settings: TrainingSettings, notices: list[Notice]
) -> None:
    count = int(is_copy.sum())
    if not count:
        return
    fate = "dropped" if settings.duplicates == "drop" else "kept"
    rows = _count(count, "row equals an earlier row and is", "rows equal an earlier row and are")
    if len(is_copy) == count + 1:
        notices.append(
            Notice(code="ALL_ROWS_EQUAL", message=f"{training.dataset.name}: all {len(is_copy):,} rows are equal.")
        )
    notices.append(
        Notice(
            code="DUPLICATE_ROWS",
            message=f"{training.dataset.name}: {rows} {fate} ({_lines(training, is_copy)}). "
            "Equal rows are always on one side of the validation split.",
            hint="--duplicates drop keeps the first of equal rows." if settings.duplicates == "keep" else None,
        )
    )


def _say_leak(loaded: LoadedDataset, is_leaked: NDArray[np.bool_], *, notices: list[Notice]) -> None:
    count, role = int(is_leaked.sum()), loaded.dataset.role
    if count:
        others = "training" if role == "validation" else "training or validation"
        notices.append(
            Notice(
                code="LEAKED_ROWS",
                message=f"{loaded.dataset.name}: {_count(count, 'row is', 'rows are')} also in the {others} dataset "
                f"and dropped from {role} ({_lines(loaded, is_leaked)}).",
            )
        )


def _all_leaked(loaded: LoadedDataset) -> InputRefused:
    role = loaded.dataset.role
    return InputRefused(
        "NOTHING_HELD_OUT",
        f"{loaded.dataset.name}: every {role} row is also in the training dataset, so nothing is held out.",
        field=f"{role}_dataset",
        hint="Give rows that are not trained on.",
    )


def _say_cuts(ledgers: Sequence[DatasetLedger], *, limit: int, notices: list[Notice]) -> None:
    for entry in ledgers:
        is_cut = entry.tokens_lost > 0
        if is_cut.any():
            lost = int(entry.tokens_lost.sum(dtype=np.int64))
            # what does not fit after the longest unlearned content is gone comes off the end of the answer
            shortened = is_cut & (entry.tokens_lost > entry.index["cut_length"])
            answers = int(shortened.sum())
            over = int((entry.tokens_lost[shortened].astype(np.int64) - entry.index["cut_length"][shortened]).sum())
            tail = (
                f" {_count(answers, 'row loses', 'rows lose')} {over:,} tokens at the end too, "
                "so that answer ends without an end token."
                if answers
                else ""
            )
            notices.append(
                Notice(
                    code="ROWS_CUT",
                    message=f"{_count(int(is_cut.sum()), 'row', 'rows')} of the {entry.dataset} dataset cut to {limit} "
                    f"tokens; {lost:,} tokens are lost, from the start of the prompt.{tail}",
                    hint="A greater --sequence-length cuts less, where the model's context allows it.",
                )
            )
        is_dropped = entry.fates == ledger.TOO_LONG
        if is_dropped.any():
            notices.append(
                Notice(
                    code="ROWS_DROPPED",
                    message=f"{_count(int(is_dropped.sum()), 'row', 'rows')} of the {entry.dataset} dataset with "
                    f"{int(entry.index['length'][is_dropped].sum()):,} tokens dropped: longer than {limit} tokens.",
                )
            )


def _say_rest(
    training: LoadedDataset,
    training_set: ExampleSet,
    validation_set: ExampleSet | None,
    test_set: ExampleSet | None,
    *,
    renderer: Renderer,
    notices: list[Notice],
) -> None:
    judged = test_set if test_set is not None else validation_set
    if judged is not None and len(judged) < MINIMUM_ROWS:
        which = "test" if test_set is not None else "validation"
        notices.append(
            Notice(
                code="FEW_VALIDATION_ROWS",
                message=f"Only {_count(len(judged), f'{which} row', f'{which} rows')}: with fewer than {MINIMUM_ROWS} "
                "the verdict will be `not measured`.",
                hint="Give more rows, a greater --validation-fraction, or --validation-dataset.",
            )
        )
    known = {notice.code for notice in notices}
    notices += [Notice(code=code, message=text) for code, text in renderer.warnings.items() if code not in known]


# -- summaries --------------------------------------------------------------------------------------------------------


def _summary_of(examples: ExampleSet) -> TokenSummary:
    return token_summary(examples.lengths, examples.num_learned)


def token_summary(row_lengths: NDArray[np.int32], num_learned: NDArray[np.int32]) -> TokenSummary:
    lengths = np.sort(row_lengths)
    places = {share: min(len(lengths) - 1, round(share / 100 * (len(lengths) - 1))) for share in PERCENTILES}
    return TokenSummary(
        total=int(lengths.sum(dtype=np.int64)),
        to_learn=int(num_learned.sum(dtype=np.int64)),
        percentiles={str(share): int(lengths[place]) for share, place in places.items()},
        histogram=_histogram(lengths),
    )


def _histogram(lengths: NDArray[np.int32]) -> list[tuple[int, int]]:
    """(upper edge, rows) over equal bins of a round width (1, 2 or 5 times a power of ten)."""
    longest = int(lengths.max())
    width = next(
        factor * 10**power
        for power in range(12)
        for factor in (1, 2, 5)
        if factor * 10**power * MAX_HISTOGRAM_BINS >= longest
    )
    counts = np.bincount((lengths - 1) // width, minlength=-(-longest // width))
    return [((number + 1) * width, int(count)) for number, count in enumerate(counts)]


def _last_answer(example: Example) -> tuple[int, int]:
    """(first, last + 1) of the last learned stretch."""
    learned = np.flatnonzero(example.learned)
    last = int(learned[-1])
    gaps = np.flatnonzero(~example.learned[:last])
    return (int(gaps[-1]) + 1 if len(gaps) else 0), last + 1
