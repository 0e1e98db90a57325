"""What a user asks for around the training settings: model, datasets, names, where results go, on which machine.

With `TrainingSettings` this is the whole of `tunesmith finetune`'s options; names and limits stand here once.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

from tunesmith.spec.base import Spec
from tunesmith.spec.names import VersionSetName

LOCAL_SHAPE = "local"


def one_clean_line(text: str) -> str:
    """A validator: `text` without control characters."""
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in text):
        raise ValueError("it holds a control character")
    return text


def clean_text(text: str) -> str:
    """A validator: as one_clean_line, with line breaks and tabs allowed."""
    one_clean_line(text.replace("\n", " ").replace("\t", " "))
    return text


class FinetuneRequest(Spec):
    """One fine-tuning run as asked for, beside its `TrainingSettings`."""

    model: str = Field(min_length=1, description="A catalog name, a folder, a bucket URI or a hub id.")
    dataset: str = Field(min_length=1, description="Training rows: a JSONL, CSV or Parquet file.")
    validation_dataset: str | None = Field(
        None, min_length=1, description="An own file of validation rows, instead of --validation-fraction."
    )
    test_dataset: str | None = Field(
        None, min_length=1, description="Rows for the verdict alone, seen by no choice during training."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Names of the file's columns, as in prompt=question,completion=answer."
    )
    from_version: str | None = Field(
        None,
        min_length=3,
        max_length=140,
        description="Go on from the adapter of this model version, SET:NUMBER or SET@ALIAS, in place of a new one.",
    )
    results: str | None = Field(
        None, min_length=1, description="Folder or file:// URI of the artifact; default: under TUNESMITH_HOME."
    )
    name: Annotated[str, AfterValidator(one_clean_line)] | None = Field(
        None, min_length=1, max_length=128, description="Name of the job; default: the model version's."
    )
    description: Annotated[str, AfterValidator(clean_text)] = Field(
        "", max_length=4000, description="Free text, kept with the model."
    )
    version_set: VersionSetName | None = Field(
        None,
        description="The set of model versions that this one joins; default: from model and dataset.",
    )
    shape: str = Field(LOCAL_SHAPE, min_length=1, max_length=64, description="The machine to run on; local: this one.")
    replicas: int = Field(1, ge=1, le=1024, description="Machines of that shape.")
    network: str | None = Field(None, min_length=1, description="Network of the replicas.")
    log: str | None = Field(
        None, min_length=1, description="The named log that the output of the job belongs to; recommended always."
    )
