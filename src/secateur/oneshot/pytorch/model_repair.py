"""Repair the whole model after its parts were pruned, as the last stage of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from secateur.distributed.pytorch.team import Team
from secateur.oneshot.pytorch.calibration.batches import Batch
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.refiners.base import ModelRefiner, ModelTask

__all__ = ["ModelRepair"]


class ModelRepair:
    """The refiners of the whole model, as the last stage of a run.

    Args:
        model: The model.
        refiners: The refiners in order, possibly none.
        batches: The calibration data.
        device: The device of the model.
        team: The ranks that refine the model together.
    """

    def __init__(
        self,
        model: nn.Module,
        refiners: Sequence[ModelRefiner],
        batches: Sequence[Batch],
        device: torch.device,
        team: Team,
    ) -> None:
        self.model = model
        self.refiners = refiners
        self.batches = batches
        self.device = device
        self.team = team
        self._dense: list[Any] = []

    def record_dense(self) -> None:
        """Record the outputs of the dense model, before anything is pruned."""
        self._dense = [refiner.targets(self.model, self.batches, self.device) for refiner in self.refiners]

    def refine(self, record: RunRecord, stage: int, pruned: Iterable[nn.Parameter]) -> None:
        """Refine the model, or resume from the record.

        Args:
            record: The record of the run on disk.
            stage: The number of this stage.
            pruned: The pruned weights.
        """
        if not self.refiners:
            return
        parameters = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        if record.resume(stage, parameters) is not None:
            return
        record.back_up(stage, parameters)
        # Masks are not stored, so kept weights that are zero count as pruned here.
        ids = {id(weight) for weight in pruned}
        masks = {name: tensor.detach() != 0 for name, tensor in self.model.named_parameters() if id(tensor) in ids}
        for refiner, dense in zip(self.refiners, self._dense, strict=True):
            task = ModelTask(
                model=self.model,
                masks=masks,
                batches=self.batches,
                device=self.device,
                targets=dense,
                team=self.team,
            )
            refiner.refine(task)
        self.team.gather(None)
        self.team.copy(list(parameters.values()))
        record.commit(stage, parameters, {})
