"""The pruned weight of a torch layer and its mask."""

from __future__ import annotations

import hashlib

import torch

from secateur.errors import LayerError
from secateur.frameworks.pytorch import apply_mask, get_parameter, read_canonical
from secateur.masking.weight import PrunedWeight
from secateur.patterns import BasePattern

__all__ = ["ParameterWeight"]


class ParameterWeight(PrunedWeight):
    """One pruned weight: its parameter, its canonical view and its mask. See `PrunedWeight`.

    Raises:
        LayerError: The parameter is on the meta device.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        self.name = name
        self.parameter = get_parameter(pattern.modules[name])
        self.view = pattern.views[name]
        self.mask: torch.Tensor | None = None
        if self.parameter.is_meta:
            raise LayerError(f"layer {name!r}: its weight is on the meta device and has no values yet. Load it first.")

    @property
    def stored(self) -> torch.Tensor:
        """The weight itself, detached from autograd."""
        return self.parameter.detach()

    def compute_digest(self) -> str:
        """See `PrunedWeight.compute_digest`."""
        flat = self.stored.contiguous().cpu().reshape(-1)  # its type may be unknown to NumPy, but not its bytes
        return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()

    def canonical(self) -> torch.Tensor:
        """The weight as an (O, K, I) tensor of at least float32."""
        return read_canonical(self.stored, self.view)

    def apply_mask(self) -> None:
        """Set pruned weights to zero."""
        if self.mask is not None:
            self.mask = apply_mask(self.stored, self.mask)
