"""The problem of removing whole units, such as channels or heads, and repairing the layers that read them.

Legend: U units, R rows (output channels) of a layer, F its input features (kernel positions × input channels), N
samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from secateur.patterns.rounding import KeepRule

__all__ = ["ConsumerUpdate", "RemovalPath", "UnitConsumer", "UnitProblem"]


@dataclass(frozen=True, kw_only=True)
class UnitConsumer:
    """A layer that reads the units of a group. Each group of a grouped convolution is a separate consumer.

    Attributes:
        name: Name of the layer.
        weight: Its weights, float32, of shape (R, F).
        unit_of: The unit that each input feature belongs to, int64, of shape (F,); -1: none, so it is always kept.
        gram: ``Xᵀ X`` of its inputs over all calibration tokens, float32, of shape (F, F); ``None``: not measured.
        norms: Norm of each input feature over all tokens, ≥ 0, of shape (F,).
        means: Mean of each input feature, of shape (F,); ``None``: unknown.
        rows: Number of tokens, or output positions of a convolution, that the statistics are of.
        has_bias: Whether the layer has a bias, which can compensate for the mean of what is removed.
        importance: Weight of the error of each output: the mean square of the gradient of the loss with respect to it,
            of shape (R,); ``None``: all errors weigh the same.
        correction: ``Cᵀ X``, where C is what the outputs should gain to make up for errors of earlier layers, over all
            tokens, float32, of shape (R, F); ``None``: nothing.
        correction_mean: Mean of C, of shape (R,); ``None``: nothing.
    """

    name: str
    weight: torch.Tensor
    unit_of: torch.Tensor
    norms: torch.Tensor
    gram: torch.Tensor | None = None
    means: torch.Tensor | None = None
    rows: int = 1
    has_bias: bool = False
    importance: torch.Tensor | None = None
    correction: torch.Tensor | None = None
    correction_mean: torch.Tensor | None = None

    @property
    def known_gram(self) -> torch.Tensor:
        """The Gram matrix, for a solver that needs it."""
        assert self.gram is not None
        return self.gram

    def mask_features(self, keep_U: torch.Tensor) -> torch.Tensor:
        """Return the mask of the input features, of shape (F,), for a mask of units."""
        return keep_U[self.unit_of.clamp(min=0)] | (self.unit_of < 0)


@dataclass(frozen=True, kw_only=True)
class ConsumerUpdate:
    """New values of a consumer after units were removed.

    Attributes:
        weight: The new weights, float32, of shape (R, F); exactly 0.0 where they read removed units.
        bias_change: What to add to the bias, of shape (R,); ``None``: nothing. Only for consumers with a bias.
    """

    weight: torch.Tensor
    bias_change: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class UnitProblem:
    """Find the units of a group that can be removed with the lowest loss.

    Attributes:
        name: Name of the group.
        rule: Which numbers of units the group can lose.
        consumers: The layers that read the units.
        scores: Score of each unit by the configured criterion, over all its weights, of shape (U,).
        gradients: Gradient of the loss with respect to a mask of value 1 of each unit, for each sample, of shape
            (N, U); ``None``: not computed.
        max_removed: Maximum number of removed units, so that solvers can rank the others in any order;
            ``None``: all of them.
    """

    name: str
    rule: KeepRule
    consumers: Sequence[UnitConsumer]
    scores: torch.Tensor
    gradients: torch.Tensor | None = None
    max_removed: int | None = None

    @property
    def known_gradients(self) -> torch.Tensor:
        """The gradients, for a solver that needs them."""
        assert self.gradients is not None
        return self.gradients

    @property
    def units(self) -> int:
        """Number of units."""
        return self.rule.units


@dataclass(frozen=True, kw_only=True)
class RemovalPath:
    """The units of a group in the order in which they are removed, and the losses.

    If the rule of the group has parts, each run of ``parts`` units in the order has one unit of each part.

    Attributes:
        order: All units, the first to be removed first, int64, of shape (U,).
        losses: Loss after the removal of the first k units, of shape (U + 1,); the first is 0, and they never decrease.
            After `UnitProblem.max_removed` units, it can be any lower bound. For a solver that measures errors, it is
            the error of the consumers' outputs, summed over tokens and weighted by `UnitConsumer.importance`. Losses
            are comparable within a group, and, for solvers that measure errors, between groups.
    """

    order: torch.Tensor
    losses: torch.Tensor

    def keep(self, removed: int) -> torch.Tensor:
        """Return the mask of the units that remain after the first `removed` are removed."""
        keep_U = torch.ones(len(self.order), dtype=torch.bool)
        keep_U[self.order[:removed].cpu()] = False
        return keep_U
