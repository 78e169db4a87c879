"""Tune a pruned block towards the outputs of the dense block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.errors import ConfigError
from secateur.refiners.base import BlockRefiner, BlockTask, register_refiner
from secateur.refiners.pace import Pace
from secateur.refiners.tuning import MaskedAdam, shuffle_batches

__all__ = ["Block"]


@register_refiner("block")
@dataclass(frozen=True, kw_only=True)
class Block(BlockRefiner):
    """Take a few Adam steps on the kept weights, norms and biases of one block.

    The target of a token is what the dense block returns for the inputs in the pruned model, and with `dense_share`
    also what it returns for those in the dense model, so that the block makes up for errors before it. The loss is the
    squared distance from the target, divided by the squared norm of what the dense block adds to the token, because
    otherwise a few tokens with huge activations would dominate.

    Attributes:
        steps: Maximum number of steps per block, ≥ 1.
        minutes: Time limit of all blocks together, > 0; each gets the same share. The number of steps then
            depends on the machine, and so does the result. ``None``: no limit.
        rate: Initial learning rate, > 0, relative to the root mean square of each parameter; it decays linearly to 0
            over the steps or the time, whichever ends first.
        batches_per_step: Sequences per step, ≥ 1, regardless of how they are cut into batches. Short sequences,
            images and vectors count in groups of 512 positions.
        dense_share: Weight of the outputs for the inputs in the dense model in the target, in [0, 1]. After a solver
            that loses much, such as `Wanda`, or for channels and heads, 0.5 is better; after `ALPS`, it is worse.

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
    minutes: float | None = None
    rate: float = 0.01
    batches_per_step: int = 4
    dense_share: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batches_per_step < 1 or not self.rate > 0:
            raise ConfigError(
                f"steps and batches_per_step must be at least 1 and rate above 0, found {self.steps}, "
                f"{self.batches_per_step} and {self.rate}."
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be above 0, found {self.minutes}.")
        if not 0 <= self.dense_share <= 1:
            raise ConfigError(f"dense_share must be in [0, 1], found {self.dense_share}.")

    def refine(self, task: BlockTask) -> None:
        """See `BlockRefiner.refine`."""
        optimizer = MaskedAdam(task.block, task.masks, self.rate, task.team)
        order = shuffle_batches(task.count_batches(), self.batches_per_step, seed=0)
        seconds = None if self.minutes is None else 60 * self.minutes * task.time_share
        pace = Pace(steps=self.steps, seconds=seconds, team=task.team, clock=task.clock)
        with optimizer.enable_gradients():
            while (share := pace.begin_step()) is not None:
                batches = next(order)
                for number in filter(task.team.owns, batches):
                    (_compute_loss(task, number, self.dense_share) / len(batches)).backward()
                optimizer.step(share)


def _compute_loss(task: BlockTask, number: int, dense_share: float) -> torch.Tensor:
    output = task.forward(number).float()
    inputs, dense, shifted = (states[number].to(output) for states in (task.inputs, task.outputs, task.shifted_outputs))
    target = dense_share * dense + (1 - dense_share) * shifted
    lost = (output - target).square().sum(dim=-1)
    added = (dense - inputs if inputs.shape == dense.shape else dense).square().sum(dim=-1)
    share = lost / added.clamp(min=torch.finfo(torch.float32).tiny)
    keep = task.keeps[number]
    if keep is not None and keep.shape == share.shape:
        share = share[keep.to(share.device)]
    return share.mean()
