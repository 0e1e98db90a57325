"""AdamW over the whole adapter as one flat tensor.

The adapter's parameters become views of one float32 buffer, their gradients views of another: an update is one
fused call instead of hundreds of small ones (a 4-layer model has 56 matrices), the gradient's norm is one
reduction, and the state to checkpoint is three tensors. Clipping: Pascanu et al. 2013. AdamW: Loshchilov and
Hutter 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class FlatAdamW:
    """Owns the adapter's values, gradients and moments; `parameters` keep their identity and shape.

    parameters: name -> float32 parameter, all on one device; the order of names fixes the layout.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, weight_decay: float) -> None:
        self.layout = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        values = torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()]).float()
        self.values_P = nn.Parameter(values)
        self.gradient_P = torch.zeros_like(values)
        self.mean_P = torch.zeros_like(values)
        self.square_P = torch.zeros_like(values)
        self.updates = 0
        self._weight_decay = weight_decay
        offset = 0
        for parameter in parameters.values():
            size = parameter.numel()
            parameter.data = self.values_P.data[offset : offset + size].view(parameter.shape)
            parameter.grad = self.gradient_P[offset : offset + size].view(parameter.shape)
            offset += size

    def zero_gradient(self) -> None:
        self.gradient_P.zero_()

    def gradient_norm(self) -> Tensor:
        """L2 norm of the whole gradient, a scalar on the device."""
        return torch.linalg.vector_norm(self.gradient_P)

    @torch.no_grad()
    def update(self, *, learning_rate: float, norm: float, max_norm: float) -> None:
        """One AdamW update, the gradient scaled down to `max_norm` if its `norm` is above.

        Memory is asked for before anything is changed: where there is none, the step may be repeated as it was.
        """
        denominator = torch.empty_like(self.square_P)
        if norm > max_norm:
            self.gradient_P.mul_(max_norm / (norm + 1e-6))
        self.updates += 1
        beta_1, beta_2 = BETAS
        self.values_P.mul_(1 - learning_rate * self._weight_decay)
        self.mean_P.lerp_(self.gradient_P, 1 - beta_1)
        self.square_P.mul_(beta_2).addcmul_(self.gradient_P, self.gradient_P, value=1 - beta_2)
        torch.sqrt(self.square_P, out=denominator).div_(math.sqrt(1 - beta_2**self.updates)).add_(EPSILON)
        self.values_P.addcdiv_(self.mean_P, denominator, value=-learning_rate / (1 - beta_1**self.updates))

    @torch.no_grad()
    def update_unless_bad(self, *, learning_rate: float, loss: Tensor, norm: Tensor, max_norm: float) -> None:
        """The same without waiting for `loss` and `norm`; where one is not finite, nothing changes.

        In one pass, torch's own kernel in place of nine. The caller, who sees them later, says so to `updates`.
        """
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        torch._fused_adamw_(
            [self.values_P.data], [self.gradient_P], [self.mean_P], [self.square_P], [],
            [torch.full((), float(self.updates + 1), device=self.gradient_P.device)],
            lr=learning_rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=self._weight_decay, eps=EPSILON,
            amsgrad=False, maximize=False, found_inf=is_bad.float(),
            grad_scale=((norm + 1e-6) / max_norm).clamp_min(1.0),  # what gradients are divided by
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint needs beside `updates`; not copied."""
        return {"values": self.values_P.detach(), "mean": self.mean_P, "square": self.square_P}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], *, updates: int) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.updates = updates
