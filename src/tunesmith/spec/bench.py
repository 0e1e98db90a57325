"""What `tunesmith bench` measures, and what comes out: model shapes, workloads, the request, the result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.spec.base import Spec
from tunesmith.spec.training import AUTO


class ModelShape(Spec):
    """Sizes of a Llama with random weights: speed does not depend on their values."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocabulary_size: int
    tied_embeddings: bool
    rows_per_forward: int = Field(description="Packed rows of one forward pass on a GPU.")
    forwards_per_step: int


SHAPES: dict[str, ModelShape] = {
    "llama-3.1-8b": ModelShape(
        hidden_size=4096, intermediate_size=14336, num_layers=32, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, vocabulary_size=128256, tied_embeddings=False, rows_per_forward=1, forwards_per_step=2,
    ),
    "llama-3.2-1b": ModelShape(
        hidden_size=2048, intermediate_size=8192, num_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, vocabulary_size=128256, tied_embeddings=True, rows_per_forward=2, forwards_per_step=1,
    ),
    "smollm2-135m": ModelShape(
        hidden_size=576, intermediate_size=1536, num_layers=30, num_attention_heads=9, num_key_value_heads=3,
        head_dim=64, vocabulary_size=49152, tied_embeddings=True, rows_per_forward=1, forwards_per_step=1,
    ),
    "tiny": ModelShape(
        hidden_size=64, intermediate_size=160, num_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, vocabulary_size=2048, tied_embeddings=True, rows_per_forward=1, forwards_per_step=2,
    ),
}  # fmt: skip
ROW_TOKENS = {"cuda": 8192, "cpu": 1024}


class BenchRequest(Spec):
    """One measurement, in a process of its own. Either `shape` or `model_folder` names the model."""

    shape: str | None = None
    model_folder: str | None = None
    workload: Literal["dialog", "long"] = "dialog"
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bf16"]
    threads: int = Field(ge=1)
    path: Literal["auto", "fast", "generic"] = AUTO
    compile_layers: Literal["auto", "on", "off"] = AUTO
    with_replay: bool = Field(True, description="Replay passes as CUDA graphs where the device waits for the host.")
    checkpointed_layers: int = Field(0, ge=0)
    row_tokens: int = Field(ge=16, description="Tokens of a packed row.")
    rows_per_forward: int = Field(ge=1)
    forwards_per_step: int = Field(ge=1)
    lora_rank: int = 32
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    seconds: float = Field(8.0, gt=0, le=600, description="Of training, from the fifth step on.")
    maximum_steps: int = Field(60, ge=6)
    with_roofline: bool = True
    with_evaluation: bool = True
    seed: int = 1234


class Roofline(Spec):
    """What the device reaches with nothing else to do, measured in the same run."""

    product_operations_per_second: float = Field(description="Of a matrix product in the run's precision, sustained.")
    product_operations_at_first: float = Field(description="The same in its first moments, before heat and power.")
    copy_bytes_per_second: float = Field(description="Read and written.")


class BenchResult(Spec):
    model: str
    workload: str
    device_name: str
    path: str
    path_reason: str
    is_compiled: bool
    is_replayed: bool = Field(description="Passes are recorded as CUDA graphs and replayed.")
    tokens_per_second: float = Field(description="Real tokens, from step 5 to the last.")
    steps: int
    seconds: float
    first_step_seconds: float = Field(description="With whatever is compiled or tuned in it.")
    load_seconds: float
    losses: dict[int, float] = Field(description="Of a few steps, to compare.")
    peak_memory_bytes: int
    operations_per_token: float
    roofline: Roofline | None
    share_of_roofline: float | None = Field(description="Operations a second / the sustained product's.")
    evaluation_tokens_per_second: float | None
    evaluation_operations_per_token: float
    evaluation_share: float | None = Field(description="Of the forward-only bound: the same, without gradients.")
    versions: dict[str, str]
