"""Slim a torch model: prune it if requested, remove the units that nothing reads, and verify the result."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.slimming.prune_request import PruneRequest
from secateur.slimming.pytorch.pipeline import prune_and_remove
from secateur.slimming.pytorch.zero_units import remove_units
from secateur.slimming.report import SlimReport

__all__ = ["slim"]


def slim(model: nn.Module, request: PruneRequest | None, **options: Any) -> SlimReport:
    """See `secateur.slim`.

    Args:
        model: The model.
        request: How to prune the model first; ``None``: only remove units that are already zero.
        options: Arguments of `remove_units`.
    """
    return remove_units(model, **options) if request is None else prune_and_remove(model, request, **options)
