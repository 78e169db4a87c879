"""Refuse sharded weights, whose masks each process would have to save."""

from __future__ import annotations

from torch import nn

from secateur.errors import UnsupportedModelError

__all__ = ["refuse_sharded_weights"]


def refuse_sharded_weights(model: nn.Module) -> None:
    """Raise an error if a weight is sharded, because each process would have to save its part of the masks.

    Raises:
        UnsupportedModelError: A weight is sharded.
    """
    for name, weight in model.named_parameters():
        if type(weight).__name__ == "DTensor" or type(weight.data).__name__ == "DTensor":
            raise UnsupportedModelError(
                f"Weights must not be sharded here, because each process would have to save its part of the masks, and "
                f"{name!r} is a DTensor. Call secateur.prepare in a loop of your own, or use DistributedDataParallel."
            )
