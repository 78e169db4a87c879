"""Tune a pruned block towards the outputs of the dense block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.errors import ConfigError
from secateur.refiners.base import BlockRefiner, BlockTask, register_refiner
from secateur.refiners.tuning import MaskedAdam, shuffle_batches

__all__ = ["Block"]


@register_refiner("block")
@dataclass(frozen=True, kw_only=True)
class Block(BlockRefiner):
    """Take a few Adam steps on the kept weights, norms and biases of one block.

    The target of a token is the mean of two outputs of the dense block: for the inputs in the dense model, so that the
    block makes up for errors before it, and for those in the pruned model, so that it is not asked for too much. The
    loss is the squared distance from the target, divided by the squared norm of what the dense block adds to the token,
    because otherwise a few tokens with huge activations would dominate.

    Attributes:
        steps: Number of steps, ≥ 1.
        rate: Initial learning rate, > 0, relative to the root mean square of each parameter; it decays linearly to 0.
        batches_per_step: Sequences per step, ≥ 1, regardless of how they are cut into batches. Short sequences,
            images and vectors count in groups of 512 positions.

    Raises:
        ConfigError: A value is out of range.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = [torch.randn(64, 8) for _ in range(4)]
        >>> refiner = secateur.refiners.Block(steps=8)
        >>> config = {"pattern": "2:4"}
        >>> report = secateur.prune(
        ...     model, config, calibration=inputs, solver="wanda", refine=refiner
        ... )
        >>> report.sparsity
        0.5
    """

    supports_ranks: ClassVar[bool] = True

    steps: int = 48
    rate: float = 0.01
    batches_per_step: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batches_per_step < 1 or not self.rate > 0:
            raise ConfigError(
                f"steps and batches_per_step must be at least 1 and rate above 0, found {self.steps}, "
                f"{self.batches_per_step} and {self.rate}."
            )

    def refine(self, task: BlockTask) -> None:
        """See `BlockRefiner.refine`."""
        optimizer = MaskedAdam(task.block, task.masks, self.rate, task.team)
        order = shuffle_batches(task.count_batches(), self.batches_per_step, seed=0)
        with optimizer.enable_gradients():
            for step, batches in zip(range(self.steps), order, strict=False):
                for number in filter(task.team.owns, batches):
                    (_compute_loss(task, number) / len(batches)).backward()
                optimizer.step(1 - step / self.steps)


def _compute_loss(task: BlockTask, number: int) -> torch.Tensor:
    output = task.forward(number).float()
    inputs, dense, shifted = (states[number].to(output) for states in (task.inputs, task.outputs, task.shifted_outputs))
    lost = (output - (dense + shifted) / 2).square().sum(dim=-1)
    added = (dense - inputs if inputs.shape == dense.shape else dense).square().sum(dim=-1)
    share = lost / added.clamp(min=torch.finfo(torch.float32).tiny)
    keep = task.keeps[number]
    if keep is not None and keep.shape == share.shape:
        share = share[keep.to(share.device)]
    return share.mean()
