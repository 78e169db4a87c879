"""Read the weight of a layer and recognize the pattern of its zeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from secateur.frameworks.pytorch import get_view
from secateur.frameworks.view import WeightView
from secateur.patterns.recognition import NonzeroMask, recognize_pattern
from secateur.runtime.pytorch.layers.base import detach_parameters

__all__ = ["RecognizedWeight"]


@dataclass(frozen=True, slots=True)
class RecognizedWeight:
    """The weight of a layer and the pattern of its zeros.

    Attributes:
        view: The axes of the weight.
        matrix: The weight as (O, K·I), in float32 on the CPU.
        pattern: The strictest pattern that the zeros follow, or ``None`` if there are too few zeros.
        sparsity: Share of zeros, in [0, 1].
    """

    view: WeightView
    matrix: torch.Tensor
    pattern: str | None
    sparsity: float

    @classmethod
    def from_layer(cls, layer: nn.Module) -> RecognizedWeight:
        """Read the weight of a layer and recognize the pattern of its zeros.

        Raises:
            LayerError: The weight does not have the axes of a supported layer.
        """
        weight, _ = detach_parameters(layer)
        view = get_view(layer)
        matrix = view.to_canonical(weight.float().cpu()).flatten(1).contiguous()
        nonzero = (matrix != 0).numpy()
        canonical_view = WeightView(
            shape=view.canonical_shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=view.groups
        )
        pattern = recognize_pattern(NonzeroMask(canonical_view, nonzero.reshape(canonical_view.shape)))
        return cls(view, matrix, pattern, 1 - float(np.count_nonzero(nonzero)) / nonzero.size)
