"""The base classes of refiners, their tasks and their registry."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from secateur._registry import Registry
from secateur.distributed.pytorch.team import Team
from secateur.solvers.problem import Problem, Solution
from secateur.solvers.unit_problem import ConsumerUpdate, UnitConsumer

__all__ = [
    "REFINERS",
    "BlockRefiner",
    "BlockTask",
    "HiddenStates",
    "LayerRefiner",
    "ModelBatch",
    "ModelRefiner",
    "ModelTask",
    "Refiner",
    "UnitRefiner",
    "register_refiner",
]


class HiddenStates(Protocol):
    """One hidden state per calibration batch, in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> torch.Tensor: ...


class ModelBatch(Protocol):
    """One calibration batch."""

    @property
    def keep(self) -> torch.Tensor | None:
        """Booleans of shape (batch, tokens), ``False`` = padding; ``None``: all tokens count."""

    def run(self, model: nn.Module, device: torch.device | None) -> Any:
        """Call the model with this batch."""


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """A pruned block and its target outputs.

    Attributes:
        block: The block.
        masks: Name of a pruned parameter in the block → booleans of its shape, ``True`` = kept.
        forward: Computes the current output of the block for the batch of a given number.
        inputs: The inputs of this block in the dense model, by batch number. `forward` reads those in the pruned one.
        outputs: Its outputs in the dense model, by batch number.
        shifted_outputs: What the dense block returns for the inputs in the pruned model, by batch number.
        keeps: The tokens that count, by batch number, of shape (batch, tokens); ``None``: all of them.
        team: The processes that refine the block together; each has the batches that it owns, see `Team.owns`.
        total: Number of batches of all processes; ``None``: those of this one.
        time_share: Share of this block in the time of all blocks, in (0, 1].
        clock: Returns a time in seconds.
    """

    block: nn.Module
    masks: Mapping[str, torch.Tensor]
    forward: Callable[[int], torch.Tensor]
    inputs: HiddenStates
    outputs: HiddenStates
    shifted_outputs: HiddenStates
    keeps: Mapping[int, torch.Tensor | None]
    team: Team = field(default_factory=Team)
    total: int | None = None
    time_share: float = 1.0
    clock: Callable[[], float] = time.perf_counter

    def count_batches(self) -> int:
        """Return the number of batches of all processes."""
        return len(self.inputs) if self.total is None else self.total


class Refiner:
    """Changes the values of kept weights, and not the masks, except for `DSnoT` and `Swap`."""


class LayerRefiner(Refiner, ABC):
    """Repairs layers that read the same inputs, using statistics of these.

    Attributes:
        needs: The statistics it needs: norms, means and variances of the input features, or also their Gram matrix.
    """

    needs: ClassVar[Literal["norms", "gram"]] = "gram"

    @abstractmethod
    def refine(self, problem: Problem, solution: Solution) -> Solution:
        """Return better weights, on the same support or on another one that fits the pattern."""


class UnitRefiner(Refiner, ABC):
    """Repairs the layers that read the units of a group, after some of them were removed.

    Attributes:
        unit_needs: The statistics it needs: norms and means of the input features, or also their Gram matrix.
    """

    unit_needs: ClassVar[Literal["norms", "gram"]] = "gram"

    @abstractmethod
    def refine_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor, update: ConsumerUpdate) -> ConsumerUpdate:
        """Return better values of a layer that reads the units.

        Args:
            consumer: The layer, with statistics of its inputs in the model whose earlier layers are pruned already.
            keep_U: The mask of the kept units, on the device of the weights.
            update: The new values so far.
        """


class BlockRefiner(Refiner, ABC):
    """Repairs a block towards its outputs in the dense model.

    Attributes:
        supports_ranks: Whether several processes can run it together; see `BlockTask.team`.
    """

    supports_ranks: ClassVar[bool] = False

    @abstractmethod
    def refine(self, block: BlockTask) -> None:
        """Update the block's parameters in place."""


@dataclass(frozen=True, kw_only=True)
class ModelTask:
    """A pruned model and the calibration data.

    Attributes:
        model: The model.
        masks: Name of a pruned parameter → booleans of its shape, ``True`` = kept.
        batches: The calibration data.
        device: The device of the model.
        targets: The result of `ModelRefiner.targets`.
        team: The processes that refine the model together; each has all of the batches.
        seconds: The time that is left; ``None``: no limit.
        clock: Returns a time in seconds.
        report_step: Called after each step with the number of steps taken, the number in all or ``None``, and the
            estimated seconds that are left or ``None``.
    """

    model: nn.Module
    masks: Mapping[str, torch.Tensor]
    batches: Sequence[ModelBatch]
    device: torch.device
    targets: Any
    team: Team = field(default_factory=Team)
    seconds: float | None = None
    clock: Callable[[], float] = time.perf_counter
    report_step: Callable[[int, int | None, float | None], object] = lambda *_: None


class ModelRefiner(Refiner, ABC):
    """Repairs the whole model towards the outputs of the dense model.

    Attributes:
        supports_ranks: Whether several processes can run it together; see `ModelTask.team`.
    """

    supports_ranks: ClassVar[bool] = False

    @abstractmethod
    def targets(self, model: nn.Module, batches: Sequence[ModelBatch], device: torch.device) -> Any:
        """Return the target outputs of the dense model. Called before anything is pruned."""

    @abstractmethod
    def refine(self, task: ModelTask) -> str | None:
        """Update the model's parameters in place.

        Returns:
            What was done, in a few words for the report.
        """


REFINERS: Registry[type[Refiner]] = Registry("refiner")
"""Refiner name → refiner class."""

register_refiner = REFINERS.register
"""Class decorator: register a refiner class in `REFINERS` under a name. Raises if the name is taken."""
