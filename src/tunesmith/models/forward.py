"""One packed batch through a model's body: token ids in, last hidden states out. The head is `loss.py`'s matter.

Dimensions: T tokens of all documents laid end to end, D hidden size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.errors import MachineCannot
from tunesmith.models.attention import packed
from tunesmith.models.lora import expect_tokens
from tunesmith.models.loss import Head
from tunesmith.models.packing import Packing


def hidden_states(model: nn.Module, batch: Batch, *, device: torch.device) -> Tensor:
    """Hidden states (T, D) after the last norm, in the model's dtype. No document sees another one."""
    packing = Packing(batch.boundaries.tolist(), device=device)
    body = cast(Any, model).base_model
    expect_tokens(model, packing.num_tokens, device=device)
    # A mask of four dimensions is handed through as it is: transformers then spends no time on making one, and our
    # attention does not look at it.
    no_mask = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=device)
    with packed(packing):
        output = body(
            input_ids=torch.from_numpy(batch.tokens_T).to(device, non_blocking=True).unsqueeze(0),
            position_ids=torch.from_numpy(batch.positions_T).to(device, non_blocking=True).unsqueeze(0),
            attention_mask=no_mask,
            use_cache=False,
        )
    return output.last_hidden_state[0]


def output_head(model: nn.Module) -> Head:
    """The model's frozen head with its scaling and softcap. Raises MachineCannot if it is not one linear module."""
    head = cast(Any, model).get_output_embeddings()
    config: Any = model.config
    if not isinstance(head, nn.Linear):
        raise MachineCannot("NOT_BUILT", f"{config.model_type}: the head is not one linear module.", field="model")
    scale = 1.0
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        scale = 1.0 / divisor
    elif (factor := getattr(config, "logit_scale", None)) is not None:  # Cohere
        scale = factor
    return Head(
        weight_VD=head.weight, bias_V=head.bias, scale=scale, softcap=getattr(config, "final_logit_softcapping", None)
    )
