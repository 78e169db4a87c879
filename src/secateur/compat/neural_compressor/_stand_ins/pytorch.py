"""Create torch layers from the weights in files."""

from __future__ import annotations

import torch
from torch import nn

from secateur._array import Array
from secateur.frameworks import WeightView

__all__ = ["make_layer"]

KINDS = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def make_layer(view: WeightView, nonzero: Array) -> nn.Module | None:
    """Return a layer whose weight is 1.0 where `nonzero` is true, and 0.0 elsewhere.

    Args:
        view: The view of its weight.
        nonzero: Booleans in the shape of the weight.

    Returns:
        The layer; ``None`` if the weight is not that of a linear layer or a convolution, with output channels first.
    """
    axes = tuple(range(len(view.shape)))
    if len(axes) not in KINDS or (view.output_axes, view.input_axes, view.kernel_axes) != ((0,), (1,), axes[2:]):
        return None
    # The only sizes that matter are those of the weight.
    layer: nn.Module = KINDS[len(axes)](1, 1, *([1] * (len(axes) > 2)), bias=False)
    layer.weight = nn.Parameter(torch.as_tensor(nonzero).float())
    return layer
