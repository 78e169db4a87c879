"""Models whose units span the rows of several processes, and weights whose numbers tests choose."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ONCE: dict[str, Any] = {
    "start_step": 0,
    "end_step": 0,
    "criterion": "magnitude",
    "sparsity_decay_type": "one_shot",
    "target_sparsity": 0.5,
}
"""Prune at once, by the weights."""


class Attention(nn.Module):
    """Attention in which some queries share each key/value head.

    Args:
        width: Number of inputs.
        head_dim: Size of a head.
        heads: Number of key/value heads.
        queries: Queries for each of them.
    """

    def __init__(self, width: int = 8, head_dim: int = 6, heads: int = 3, queries: int = 2) -> None:
        super().__init__()
        self.head_dim, size = head_dim, head_dim * heads
        self.q_proj, self.k_proj = nn.Linear(width, size * queries, bias=False), nn.Linear(width, size, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, size, bias=False), nn.Linear(size * queries, width, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(inputs[:, None]).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        outputs = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.o_proj(outputs.transpose(1, 2).flatten(2))[:, 0]


def make_attention() -> nn.Module:
    """Layers around attention with three heads, which two or four processes cut."""
    torch.manual_seed(0)
    return nn.Sequential(Attention(), nn.Linear(8, 2))


def make_thirty() -> nn.Module:
    """Layers with 30, 28 and 2 rows: some shards are uneven, and some of four processes have no rows of the last."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 28), nn.ReLU(), nn.Linear(28, 2))


def repeat_values(model: nn.Module, values: int) -> None:
    """Set weights to a few numbers, so that many scores are equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randint(1, values + 1, weight.shape, generator=generator))
