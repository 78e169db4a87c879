"""A pruned weight of a torch model."""

from __future__ import annotations

import torch

from secateur._array import clear_outside
from secateur.errors import LayerError
from secateur.patterns import BasePattern
from secateur.patterns.pytorch import parameter

__all__ = ["ParameterWeight", "zero_out"]


class ParameterWeight:
    """One pruned weight: the parameter, how to look at it, and its mask. See `HeldWeight`.

    Raises:
        LayerError: The parameter is on the meta device.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        self.name = name
        self.parameter = parameter(pattern.modules[name])
        self.view = pattern.views[name]
        self.mask: torch.Tensor | None = None
        if self.parameter.is_meta:
            raise LayerError(f"layer {name!r}: its weight is on the meta device and has no values yet. Load it first.")

    @property
    def stored(self) -> torch.Tensor:
        """The weight itself, detached from autograd."""
        return self.parameter.detach()

    def canonical(self) -> torch.Tensor:
        """The weight as an (O, K, I) tensor of at least float32."""
        return self._canonical(self.stored)

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes."""
        if self.mask is not None:
            self.mask = zero_out(self.stored, self.mask)

    def _canonical(self, tensor: torch.Tensor) -> torch.Tensor:
        wide: torch.Tensor = self.view.canonical(tensor)
        return wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide


def zero_out(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Set `weight` to zero where `mask` is ``False``; returns the mask on the weight's device."""
    mask = mask.to(weight.device)
    clear_outside(weight, mask)
    return mask
