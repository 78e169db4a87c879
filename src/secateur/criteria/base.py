"""How much each weight matters: higher scores survive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeVar

from secateur._array import Array
from secateur._registry import Registry
from secateur.config import PruningConfig

__all__ = ["CRITERIA", "BaseCriterion", "elementwise", "get_criterion", "register_criterion"]

CRITERIA: Registry[type[BaseCriterion]] = Registry("criterion")
"""Criterion name → criterion class."""

register_criterion = CRITERIA.register
"""Class decorator: adds a criterion class to `CRITERIA` under a name. A name taken twice raises."""


Score = TypeVar("Score", bound=Callable[..., Array])

ELEMENTWISE: set[Callable[..., Array]] = set()
"""Every `BaseCriterion.score` that is marked as `elementwise`."""


def elementwise(score: Score) -> Score:
    """Mark a `BaseCriterion.score` that makes each score of one weight and its gradient alone.

    It may then be given arrays of other shapes, as they lie in memory, which saves turning them round.
    """
    ELEMENTWISE.add(score)
    return score


class BaseCriterion(ABC):
    """One number per weight from the weight and its gradient, gathered over steps.

    After each step ``score ← decay · score + score_of_this_step``. The scores of a unit's weights then become one by
    the configured reduction. Where that reduction is linear (mean, sum) the two commute, and scores are gathered per
    unit.

    Args:
        config: The configuration of the run.
        layer: Name of the layer that is scored.

    Attributes:
        needs_gradient: Whether `score` reads the gradient.
        decay: What is left of the score so far after one more step, in [0, 1]; 0: only the last step counts.
        reduction: The reduction that this criterion's definition demands; ``None``: the configured one.
    """

    needs_gradient: ClassVar[bool]
    decay: ClassVar[float] = 0.0
    reduction: ClassVar[str | None] = None

    def __init__(self, config: PruningConfig, layer: str) -> None:
        self.config = config
        self.layer = layer

    @property
    def is_elementwise(self) -> bool:
        """Whether `score` is marked as `elementwise`; what overrides a marked one is not."""
        return type(self).score in ELEMENTWISE

    @abstractmethod
    def score(self, weight: Array, gradient: Array | None) -> Array:
        """The score of each weight at this step.

        Args:
            weight: Weights, of shape (output channels, kernel positions, input channels).
            gradient: The loss's gradient with respect to them, of the same shape; ``None`` where not needed.

        Returns:
            Scores in the shape of `weight`.
        """

    def unit_score(self, scores: Array) -> Array:
        """What follows the reduction of one step's scores to units; nothing, unless a definition demands it.

        Args:
            scores: One reduced score per unit, one-dimensional.

        Returns:
            Scores in the shape of `scores`.
        """
        return scores


def get_criterion(config: PruningConfig, layer: str) -> BaseCriterion:
    """The criterion registered under ``config.criterion``, for one layer.

    Raises:
        UnknownNameError: There is none; the message lists what is known.
    """
    return CRITERIA.find(config.criterion)(config, layer)
