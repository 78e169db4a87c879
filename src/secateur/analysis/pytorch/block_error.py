"""The error of the outputs of a block, one layer of which is pruned."""

from __future__ import annotations

import torch

from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.stages import BlockStage
from secateur.oneshot.pytorch.calibration.batches import Batch

__all__ = ["BlockError"]


class BlockError:
    """Compares the outputs of a block with those of the dense block.

    Args:
        block: The block, with dense inputs.
        outputs: The outputs of the dense block.
    """

    def __init__(self, block: BlockStage, outputs: Activations) -> None:
        self._block = block
        self._outputs = outputs
        self._energy = sum(self._add_squares(batch, outputs[batch.number]) for batch in block.batches)

    def measure(self) -> float:
        """Return ``‖Y − Ŷ‖² / ‖Ŷ‖²`` for the present outputs Y and the dense ones Ŷ, without padding."""
        lost = 0.0
        for batch in self._block.batches:
            present = self._block.forward(batch.number).cpu().float()
            lost += self._add_squares(batch, present - self._outputs[batch.number])
        return lost / self._energy if self._energy else 0.0

    def _add_squares(self, batch: Batch, hidden: torch.Tensor) -> float:
        keep = batch.keep
        if keep is not None and keep.shape == hidden.shape[: keep.ndim]:
            hidden = hidden[keep]
        return float(hidden.float().square().sum(dtype=torch.float64))
