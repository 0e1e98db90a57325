"""Well-known base models: facts that the explorer shows before any weights are here.

The file is `bundled/known_models.json`; `catalog/known.py` reads it. Each fact names its source. What could not be
found in a source is null there, never guessed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.spec.base import Spec
from tunesmith.spec.families import FAMILIES, LINEAR_SIZES
from tunesmith.spec.models import LinearModule, ModelSizes
from tunesmith.spec.names import HubId

COMMIT_PATTERN = r"^[0-9a-f]{40}$"
# Bits of one stored value. mxfp4: two values a byte and one scale for 32 of them, of the experts' matrices alone.
BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}
MXFP4_BITS = 4.25

Count = Annotated[int, Field(ge=1, lt=1 << 50)]


class Kind(StrEnum):
    """What a model was made for."""

    BASE = "base"
    CHAT = "chat"
    CODE = "code"
    REASONING = "reasoning"


class Experts(Spec):
    """The experts of each layer of a mixture."""

    count: Count
    active: Count = Field(description="That answer for one token.")
    intermediate_size: Count


class FactSource(Spec):
    """Where facts were taken from."""

    title: str = Field(min_length=1, max_length=200)
    url: str | None = Field(None, pattern=r"^https://[^\s]+$")
    note: str = Field(min_length=1, max_length=500, description="What was taken, and how sure it is.")


class FactSources(Spec):
    """Keys of the file's table of sources."""

    sizes: str
    revision: str
    licence: str


class KnownModel(Spec):
    name: HubId = Field(description="Its id on the Hugging Face Hub.")
    title: str = Field(min_length=1, max_length=80)
    family: str = Field(min_length=1, max_length=40)
    publisher: str = Field(min_length=1, max_length=40)
    kind: Kind
    model_type: str = Field(pattern=r"^[a-z0-9_]{1,40}$")
    architecture: str = Field(pattern=r"^[A-Za-z0-9]{1,60}$", description="The class in transformers.")
    licence: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,40}$")
    is_gated: bool = Field(description="The hub gives it only to accounts that accepted its terms.")
    revision: str | None = Field(pattern=COMMIT_PATTERN, description="A commit on the hub; null: found in no source.")
    parameters: Count
    dtype: Literal["bfloat16", "float16", "float32", "mxfp4"]
    context_length: Count
    hidden_size: Count
    num_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    intermediate_size: Count
    vocabulary_size: Count
    tied_embeddings: bool
    experts: Experts | None = None
    note: str | None = Field(None, min_length=1, max_length=200)
    sources: FactSources

    @model_validator(mode="after")
    def _consistent(self) -> KnownModel:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"{self.name}: {self.num_attention_heads} heads share {self.num_key_value_heads} keys")
        if self.dtype == "mxfp4" and self.experts is None:
            raise ValueError(f"{self.name}: mxfp4 is a dtype of experts")
        family = FAMILIES.get(self.model_type)
        if family is not None and family.architecture != self.architecture:
            raise ValueError(f"{self.name}: {self.model_type} is {family.architecture}, not {self.architecture}")
        if (self.revision is None) != (self.sources.revision == "not-found"):
            raise ValueError(f"{self.name}: a revision and its source go together")
        return self

    @property
    def weight_bytes(self) -> int:
        """Derived from the number of parameters and the dtype; the hub's files differ by their headers."""
        if self.experts is None or self.dtype != "mxfp4":
            return int(self.parameters * BITS[self.dtype]) // 8
        matrices = 3 * self.experts.count * self.experts.intermediate_size * self.hidden_size * self.num_layers
        return int(matrices * MXFP4_BITS / 8) + 2 * (self.parameters - matrices)

    def sizes(self) -> ModelSizes | None:
        """As an inspection of the weights would find them; None for what is not fine-tuned."""
        family = FAMILIES.get(self.model_type)
        if family is None or self.experts is not None:
            return None
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        widths = {
            "hidden": self.hidden_size,
            "query": query,
            "key": key,
            "middle": self.intermediate_size,
            "query and keys": query + 2 * key,
            "two middles": 2 * self.intermediate_size,
        }
        linear = [
            LinearModule(
                name=f"{family.prefix}{family.layers}.{number}.{name}",
                in_features=widths[LINEAR_SIZES[name][0]],
                out_features=widths[LINEAR_SIZES[name][1]],
            )
            for number in range(self.num_layers)
            for name in family.linear
        ]
        return ModelSizes(
            parameters=self.parameters,
            context_length=self.context_length,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            vocabulary_size=self.vocabulary_size,
            tied_embeddings=self.tied_embeddings,
            linear_modules=linear,
        )


class KnownModels(Spec):
    """The whole file."""

    format: Literal[1]
    sources: dict[str, FactSource]
    models: list[KnownModel]

    @model_validator(mode="after")
    def _whole(self) -> KnownModels:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("a model stands twice")
        for model in self.models:
            for key in (model.sources.sizes, model.sources.revision, model.sources.licence):
                if key not in self.sources:
                    raise ValueError(f"{model.name}: the source {key!r} is in no row of the table")
        return self
