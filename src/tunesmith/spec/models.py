"""What is known of a base model's folder before anything loads it."""

from __future__ import annotations

from pydantic import Field

from tunesmith.spec.base import Spec


class LinearModule(Spec):
    """A linear module that can carry an adapter, with its sizes."""

    name: str = Field(description="Full dotted name in the transformers model.")
    in_features: int
    out_features: int


class ModelFacts(Spec):
    """The inspection of one model folder (`python -m tunesmith.models.inspect`)."""

    name: str
    path: str
    digest: str = Field(description="SHA-256 over the names and hashes of the files that are loaded.")
    architecture: str
    model_type: str
    parameters: int = Field(description="Stored values of the weights; a tied head counts once.")
    weight_bytes: int
    dtype: str
    context_length: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary_size: int = Field(description="Rows of the embedding.")
    tokenizer_size: int
    tied_embeddings: bool
    has_chat_template: bool
    end_token: str
    end_token_id: int
    bos_token_id: int | None
    pad_token_id: int | None
    licence: str | None
    linear_modules: list[LinearModule]
    notices: list[str] = Field(default_factory=list)
