"""The repair of a pruned model as a whole, after its last stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur.oneshot.pytorch.batches import Batch
from secateur.oneshot.pytorch.journal import Journal
from secateur.oneshot.pytorch.refining.base import ModelRefiner, ModelTask
from secateur.oneshot.pytorch.targets import Target

__all__ = ["ModelRefining"]


class ModelRefining:
    """Refiners that change the whole model, as a stage of a run.

    Args:
        model: The model.
        refiners: The refiners, in order; there may be none.
        batches: The calibration data.
        device: Where the model is.
    """

    def __init__(
        self, model: nn.Module, refiners: Sequence[ModelRefiner], batches: Sequence[Batch], device: torch.device
    ) -> None:
        self.model = model
        self.refiners = refiners
        self.batches = batches
        self.device = device
        self._dense: list[Any] = []

    def read_dense(self) -> None:
        """Note what the dense model gives, before anything is pruned."""
        self._dense = [refiner.targets(self.model, self.batches, self.device) for refiner in self.refiners]

    def refine(self, journal: Journal, stage: int, targets: Mapping[str, Target]) -> None:
        """Repair the model, or take the result from the journal.

        Args:
            journal: What is written on disk.
            stage: The number of this stage.
            targets: The layers that were pruned.
        """
        if not self.refiners:
            return
        parameters = {name: held.detach() for name, held in self.model.named_parameters()}
        if journal.resume(stage, parameters) is not None:
            return
        journal.keep_dense(stage, parameters)
        # No mask was held till now: a weight that was kept and is zero stays as it is, like the pruned ones.
        pruned = {id(target.weight.parameter) for target in targets.values()}
        masks = {name: held.detach() != 0 for name, held in self.model.named_parameters() if id(held) in pruned}
        for refiner, dense in zip(self.refiners, self._dense, strict=True):
            refiner.refine(
                ModelTask(model=self.model, masks=masks, batches=self.batches, device=self.device, targets=dense)
            )
        journal.commit(stage, parameters, {})
