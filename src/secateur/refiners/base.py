"""What repairs a pruned model, and the registry of all that do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from secateur._registry import Registry
from secateur.solvers.problem import Problem, Solution

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
    "register_refiner",
]


class HiddenStates(Protocol):
    """One hidden state per calibration batch, wherever it is stored."""

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
    """A pruned block, and what it is to give out.

    Attributes:
        block: The block.
        masks: Name of a pruned parameter in the block → booleans of its shape, ``True`` = kept.
        forward: Number of a batch → what the block gives out on it, as it is now.
        inputs: Number of a batch → what the block reads.
        outputs: Number of a batch → what the dense block gives out on the same.
        keeps: Number of a batch → which tokens count, of shape (batch, tokens); ``None``: all.
    """

    block: nn.Module
    masks: Mapping[str, torch.Tensor]
    forward: Callable[[int], torch.Tensor]
    inputs: HiddenStates
    outputs: HiddenStates
    keeps: Sequence[torch.Tensor | None]


class Refiner:
    """Changes what stays, never which weights stay."""


class LayerRefiner(Refiner, ABC):
    """Repairs layers that read the same inputs, from their Gram matrix."""

    @abstractmethod
    def refine(self, problem: Problem, solution: Solution) -> Solution:
        """The same support with better weights."""


class BlockRefiner(Refiner, ABC):
    """Repairs a block by what the dense block gives on the same inputs."""

    @abstractmethod
    def refine(self, block: BlockTask) -> None:
        """Change the block's parameters in place."""


@dataclass(frozen=True, kw_only=True)
class ModelTask:
    """A pruned model, and the calibration data.

    Attributes:
        model: The model.
        masks: Name of a pruned parameter → booleans of its shape, ``True`` = kept.
        batches: The calibration data.
        device: Where the model is.
        targets: What `ModelRefiner.targets` returned.
    """

    model: nn.Module
    masks: Mapping[str, torch.Tensor]
    batches: Sequence[ModelBatch]
    device: torch.device
    targets: Any


class ModelRefiner(Refiner, ABC):
    """Repairs the whole model by what the dense model gives."""

    @abstractmethod
    def targets(self, model: nn.Module, batches: Sequence[ModelBatch], device: torch.device) -> Any:
        """What the dense model gives, before anything is pruned."""

    @abstractmethod
    def refine(self, task: ModelTask) -> None:
        """Change the model's parameters in place."""


REFINERS: Registry[type[Refiner]] = Registry("refiner")
"""Refiner name → refiner class."""

register_refiner = REFINERS.register
"""Class decorator: adds a refiner class to `REFINERS` under a name. A name taken twice raises."""
