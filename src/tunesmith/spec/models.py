"""What is known of a base model before anything loads it."""

from __future__ import annotations

from pydantic import Field

from tunesmith.spec.base import Spec


class LinearModule(Spec):
    """A linear module that can carry an adapter, with its sizes."""

    name: str = Field(description="Full dotted name in the transformers model.")
    in_features: int
    out_features: int


class ModelSizes(Spec):
    """What the arithmetic of memory and time needs of a model, whether its weights are here or not."""

    parameters: int = Field(description="Stored values of the weights; a tied head counts once.")
    context_length: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary_size: int = Field(description="Rows of the embedding.")
    tied_embeddings: bool
    linear_modules: list[LinearModule]


class ModelFacts(ModelSizes):
    """The inspection of one model folder (`python -m tunesmith.models.inspect`)."""

    name: str
    path: str
    digest: str = Field(description="SHA-256 over the names and hashes of the files that are loaded.")
    architecture: str
    model_type: str
    weight_bytes: int
    dtype: str
    tokenizer_size: int
    has_chat_template: bool
    end_token: str
    end_token_id: int
    bos_token_id: int | None
    pad_token_id: int | None
    rope_kind: str = Field("default", description="Scaling of the rotary positions, as config.json names it.")
    activation: str = Field("silu", description="Of the feed-forward block, as config.json names it.")
    licence: str | None
    notices: list[str] = Field(default_factory=list)
