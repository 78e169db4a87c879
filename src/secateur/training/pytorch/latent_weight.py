"""A weight whose pruned values keep training (SR-STE)."""

from __future__ import annotations

import torch

from secateur.frameworks.pytorch import read_canonical
from secateur.patterns import BasePattern
from secateur.training.pytorch.weight import ParameterSlot, TrainedParameter

__all__ = ["LatentParameter"]


class LatentParameter(TrainedParameter):
    """A weight whose pruned values are zero in every forward pass, and train with the gradients of these zeros.

    The gradient of the loss at the pruned weight is that of the straight-through estimator. The parameter
    contains the values of all weights only during the optimizer step, so momentum and weight decay apply to all.

    Attributes:
        latent: The values of all weights after the last step, of which those of pruned weights count; ``None``: pruned
            weights no longer train.

    Source:
        Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", arXiv:2102.04010,
        section 4.
    """

    def __init__(self, name: str, pattern: BasePattern, slot: ParameterSlot) -> None:
        super().__init__(name, pattern, slot)
        self.latent: torch.Tensor | None = None
        self._is_revealed = False
        self._decayed: tuple[int, int] | None = None  # memory and version of the gradient of an open step

    def canonical(self) -> torch.Tensor:
        """See `ParameterWeight.canonical`; with the latent values of pruned weights."""
        return read_canonical(self._read_all(), self.view)

    def write_mask(self, mask: torch.Tensor) -> None:
        """See `PrunedWeight.write_mask`. Restored weights get their latent values."""
        if not self._may_train():
            super().write_mask(mask)
            return
        values = self._read_all()
        self.latent = values.clone()
        if self.mask is not None:
            self.stored.copy_(values)
        super().write_mask(mask)

    def reveal(self, decay: float) -> None:
        """Before a step, write the latent values to the parameter, and add their decay to its gradient."""
        if self.latent is None or self.mask is None:
            return
        self.stored.copy_(self._read_all())
        gradient = self.read_gradient_memory()
        # A step that calls the step of its base class is announced twice, with the same gradient.
        is_new = gradient is not None and (gradient.data_ptr(), gradient._version) != self._decayed
        if gradient is not None and is_new and gradient.layout == torch.strided:
            scale = getattr(self.slot.optimizer, "grad_scale", None)  # fused optimizers divide by it
            strength = decay if scale is None else decay * scale
            gradient.add_(torch.where(self.mask.to(self.stored.device), 0.0, strength * self.stored).to(gradient.dtype))
            self._decayed = gradient.data_ptr(), gradient._version
        self._is_revealed = True

    def hide(self) -> None:
        """After a step, keep all values as the latent ones; `apply_mask` then sets pruned weights to zero."""
        if self._is_revealed:
            self.latent = self.stored.clone()
            self._is_revealed, self._decayed = False, None

    def apply_mask(self) -> None:
        """See `TrainedParameter.apply_mask`. A step that failed leaves the latent values as they were."""
        self._is_revealed = False
        super().apply_mask()

    def load_latent(self, latent: torch.Tensor | None) -> None:
        """Set the latent values to a copy."""
        self.latent = None if latent is None else latent.detach().clone().to(self.stored)

    def _may_train(self) -> bool:
        return self.mask is None or self.latent is not None

    def _read_all(self) -> torch.Tensor:
        if self.latent is None or self.mask is None or self._is_revealed:
            return self.stored
        self.latent = self.latent.to(self.stored)
        return torch.where(self.mask.to(self.stored.device), self.stored, self.latent)
