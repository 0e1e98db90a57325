"""Datasets: kinds of rows, limits, and what a check of a file finds."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from tunesmith.errors import ErrorForm
from tunesmith.spec.base import Spec
from tunesmith.spec.models import ModelFacts
from tunesmith.spec.names import Spelling
from tunesmith.spec.training import TrainingSettings

MAX_ROW_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
MAX_KEYS = 1000
MAX_LISTED_FINDINGS = 100
MAXIMUM_PREVIEWS = 20
MAXIMUM_SPANS = 4000  # tokens of a row that a preview tells one by one
LINES = Spelling(
    pattern=rf"[1-9][0-9]{{0,8}}(,[1-9][0-9]{{0,8}}){{0,{MAXIMUM_PREVIEWS - 1}}}", what="a list of lines",
    words=f"up to {MAXIMUM_PREVIEWS} line numbers with commas between", example="3,17",
)  # fmt: skip

Role = Literal["training", "validation", "test"]


class RowKind(StrEnum):
    PROMPT_COMPLETION = "prompt-completion"
    MESSAGES = "messages"


class Finding(Spec):
    """One error or warning of a dataset check. `line` and `column` are 1-based, `column` in characters."""

    line: int | None
    column: int | None
    code: str
    message: str
    hint: str | None


class TokenSummary(Spec):
    """Token counts of a rendered dataset; all lengths in tokens, prompt and completion together unless said."""

    total: int
    to_learn: int = Field(description="Tokens that the completion mask keeps.")
    percentiles: dict[str, int] = Field(description="Row lengths at 0, 5, 25, 50, 75, 95, 99 and 100 per cent.")
    histogram: list[tuple[int, int]] = Field(description="(upper edge, rows) per bin.")


class DatasetReport(Spec):
    """The result of checking one file: every error and warning is counted, the first 100 of each are listed."""

    path: str
    kind: RowKind | None
    rows: int = Field(description="Rows that can be used.")
    bytes: int
    content_hash: str = Field(description="SHA-256 over the rows' content hashes in order.")
    errors: list[Finding]
    num_errors: int
    warnings: list[Finding]
    num_warnings: int
    duplicates: int = Field(description="Rows equal to an earlier row of the same file.")
    tokens: TokenSummary | None = None


class DatasetInput(Spec):
    """A dataset as a job reads it: a local file, its role, and the columns it maps."""

    role: Role
    path: str
    name: str = Field(description="What the user called it; shown, never opened.")
    columns: dict[str, str] = Field(default_factory=dict, description="Our column -> the file's column.")


class RowCounts(Spec):
    """`training + validation + dropped` are all input rows; `cut` and `duplicates` are counts within those."""

    training: int
    validation: int
    cut: int
    dropped: int
    duplicates: int


class Notice(Spec):
    """Something the user must be told that does not end the run; the same fields as a notice event."""

    code: str
    message: str
    hint: str | None = None


class PreviewPiece(Spec):
    text: str
    learned: bool


class PreviewSpan(Spec):
    """A token as text; several where only together they are whole characters."""

    text: str
    ids: list[int]
    learned: bool


class Preview(Spec):
    """One rendered row in pieces of text, learned or not."""

    dataset: Role
    line: int
    which: Literal["longest", "shortest", "random", "chosen"]
    tokens: int
    pieces: list[PreviewPiece]
    spans: list[PreviewSpan] = Field(
        default_factory=list[PreviewSpan], description="Token by token, where that was asked for."
    )
    tokens_left_out: int = Field(0, description=f"Of the spans: they hold the first {MAXIMUM_SPANS:,} tokens.")


class PreviewWish(Spec):
    """Which rows to preview: those that start at these lines, or without any the longest, the shortest and two more."""

    lines: list[int] = Field(default_factory=list[int], max_length=MAXIMUM_PREVIEWS)
    spans: bool = False


class Preparation(Spec):
    """What became of the datasets of a job: rows, splits, tokens, and everything that must be said about it."""

    counts: RowCounts
    training: TokenSummary
    validation: TokenSummary | None
    test: TokenSummary | None
    training_file: TokenSummary | None = Field(
        default=None, description="Every row of the training file as it stands, uncut; not told of older jobs."
    )
    longest_row: int = Field(description="Tokens of the longest row before any cutting.")
    sequence_length: int = Field(description="The resolved setting.")
    render: Literal["chat", "plain"]
    notices: list[Notice]
    previews: list[Preview] = Field(default_factory=list[Preview])


class InspectRequest(Spec):
    """Input of `python -m tunesmith.models.inspect request.json`. Without datasets only the folder is inspected."""

    model_name: str
    model_path: str
    datasets: list[DatasetInput] = Field(default_factory=list[DatasetInput])
    settings: TrainingSettings | None = None
    cache_folder: str | None = None
    preview: PreviewWish | None = None
    adapter_path: str | None = Field(
        default=None, description="A folder with an adapter that is held against the model."
    )


class AdapterFacts(Spec):
    """An adapter in PEFT's format that fits the inspected model."""

    settings: TrainingSettings = Field(
        description="Its form: rank, alpha, dropout, kind, modules; all else by default."
    )
    base_named: str | None = Field(description="What its config calls its base.")
    base_digest: str | None = Field(description="Of its base, where its file names it: then it is the model's.")
    parameters: int


class InspectResponse(Spec):
    """Its output, the last line of standard output: facts (and preparation), or an error with its family."""

    facts: ModelFacts | None = None
    adapter: AdapterFacts | None = None
    preparation: Preparation | None = None
    error: ErrorForm | None = None
    family: str | None = None
