"""Add up Gram matrices, of which only the lower triangle is computed.

Legend: G groups, N rows (tokens), F input features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["add_gram", "mirror_gram"]

MIN_PANEL = 192
"""Rows of a panel. Narrower ones compute less above the diagonal, but each product is less efficient."""

MAX_PANELS = 8
"""More would make the products small again for an accelerator, and save little: 8 compute 56 % of the matrix."""


def add_gram(total_GFF: torch.Tensor, rows_GNF: torch.Tensor) -> None:
    """Add ``Xᵀ X`` to a total, in panels of rows that end at the diagonal; what is above them is not computed.

    Args:
        total_GFF: The total, of any floating-point type; changed in place.
        rows_GNF: ``X``, in float32.

    Examples:
        >>> total = torch.zeros(1, 2, 2)
        >>> add_gram(total, torch.tensor([[[1.0, 2.0]]]))
        >>> mirror_gram(total)
        tensor([[[1., 2.],
                 [2., 4.]]])
    """
    for panel in _iterate_panels(rows_GNF.shape[-1]):
        total_GFF[:, panel, : panel.stop] += rows_GNF[..., panel].mT @ rows_GNF[..., : panel.stop]


def mirror_gram(total_GFF: torch.Tensor) -> torch.Tensor:
    """Return a total as symmetric matrices in float32."""
    gram_GFF = total_GFF.float().tril()
    return gram_GFF + gram_GFF.tril(-1).mT


def _iterate_panels(features: int) -> Iterator[slice]:
    """Yield panels of about the same number of rows."""
    count = min(MAX_PANELS, max(1, features // MIN_PANEL))
    for index in range(count):
        yield slice(features * index // count, features * (index + 1) // count)
