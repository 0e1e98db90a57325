"""The flat AdamW against torch's own."""

import torch
from torch import nn

from tunesmith.train.optimizer import FlatAdamW


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {f"m{i}": nn.Parameter(torch.randn(3 + i, 5, generator=generator)) for i in range(3)}


def test_updates_equal_torch_adamw_with_clipping_and_weight_decay() -> None:
    ours, theirs = parameters(), parameters()
    flat = FlatAdamW(ours, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.values(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for step in range(1, 6):
        rate = 0.01 * step
        flat.zero_gradient()
        for mine, other in zip(ours.values(), theirs.values(), strict=True):
            (mine.sin() * step).sum().backward()
            other.grad = None
            (other.sin() * step).sum().backward()
        norm = float(flat.gradient_norm())
        expected = nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torch.testing.assert_close(torch.tensor(norm), expected.cpu())
        flat.update(learning_rate=rate, norm=norm, max_norm=1.0)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        for mine, other in zip(ours.values(), theirs.values(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_parameters_keep_their_values_and_share_one_buffer() -> None:
    ours, copy = parameters(), parameters()
    flat = FlatAdamW(ours, weight_decay=0.0)
    for mine, other in zip(ours.values(), copy.values(), strict=True):
        assert torch.equal(mine, other)
    flat.values_P.data.fill_(3.0)
    assert all(bool((mine == 3.0).all()) for mine in ours.values())


def test_restored_state_continues_bit_for_bit() -> None:
    def train(flat: FlatAdamW, values: dict[str, nn.Parameter], steps: range) -> None:
        for step in steps:
            flat.zero_gradient()
            sum((value.cos() * step).sum() for value in values.values()).backward()  # type: ignore[union-attr]
            flat.update(learning_rate=0.01, norm=float(flat.gradient_norm()), max_norm=1.0)

    whole = parameters()
    whole_flat = FlatAdamW(whole, weight_decay=0.0)
    train(whole_flat, whole, range(1, 7))
    half = parameters()
    half_flat = FlatAdamW(half, weight_decay=0.0)
    train(half_flat, half, range(1, 4))
    saved = {name: tensor.clone() for name, tensor in half_flat.state().items()}
    fresh = parameters(seed=9)
    fresh_flat = FlatAdamW(fresh, weight_decay=0.0)
    fresh_flat.restore(saved, updates=half_flat.updates)
    train(fresh_flat, fresh, range(4, 7))
    assert torch.equal(fresh_flat.values_P, whole_flat.values_P)
