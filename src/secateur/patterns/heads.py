"""Whole attention heads."""

from __future__ import annotations

from typing import ClassVar

from secateur.patterns.base import register_pattern
from secateur.patterns.coupled import GroupPattern

__all__ = ["HeadsPattern"]


@register_pattern("heads")
class HeadsPattern(GroupPattern):
    """Whole attention heads: their rows of the query, key and value projections, and their columns of the output.

    If query heads share keys and values (GQA, MQA), a unit is a key/value head with all its query heads. Heads are
    known for attention of torch models with separate projections, as in BERT and LLaMA, and for
    ``MultiheadAttention``.

    Source:
        Michel et al., "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.TransformerEncoderLayer(d_model=16, nhead=4, dim_feedforward=32)
        >>> report = secateur.prune(model, {"pattern": "heads", "target_sparsity": 0.25})
        >>> (model.self_attn.out_proj.weight == 0).all(dim=0).sum()
        tensor(4)
    """

    coupling: ClassVar[str | None] = "heads"
