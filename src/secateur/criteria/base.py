"""The importance of each weight: higher scores survive."""

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
"""The methods `BaseCriterion.score` that are marked as `elementwise`."""


def elementwise(score: Score) -> Score:
    """Mark a `BaseCriterion.score` that computes each score from a single weight and its gradient.

    It is then called with arrays in their stored shape, which saves a transposition.
    """
    ELEMENTWISE.add(score)
    return score


class BaseCriterion(ABC):
    """Computes one score per weight from the weight and its gradient, and accumulates scores over steps.

    After each step ``score ← decay · score + score_of_this_step``. The configured reduction then turns the scores of a
    unit's weights into one. If the reduction is linear (mean, sum), scores are accumulated per unit.

    Args:
        config: The configuration of the run.
        layer: Name of the layer.

    Attributes:
        needs_gradient: Whether `score` reads the gradient.
        decay: Factor of the previous score, in [0, 1]; 0: only the last step counts.
        reduction: The reduction that the definition of the criterion requires; ``None``: the configured one.
    """

    needs_gradient: ClassVar[bool]
    decay: ClassVar[float] = 0.0
    reduction: ClassVar[str | None] = None

    def __init__(self, config: PruningConfig, layer: str) -> None:
        self.config = config
        self.layer = layer

    @property
    def is_elementwise(self) -> bool:
        """Whether `score` is marked as `elementwise`; an override has to be marked again."""
        return type(self).score in ELEMENTWISE

    @abstractmethod
    def score(self, weight: Array, gradient: Array | None) -> Array:
        """Compute the score of each weight at this step.

        Args:
            weight: Weights, of shape (output channels, kernel positions, input channels).
            gradient: The loss's gradient with respect to them, of the same shape; ``None`` where not needed.

        Returns:
            Scores in the shape of `weight`.
        """

    def unit_score(self, scores: Array) -> Array:
        """Transform the reduced scores of one step; by default they stay as they are.

        Args:
            scores: One reduced score per unit, one-dimensional.

        Returns:
            Scores in the shape of `scores`.
        """
        return scores


def get_criterion(config: PruningConfig, layer: str) -> BaseCriterion:
    """Create the criterion registered under ``config.criterion``, for one layer.

    Raises:
        UnknownNameError: There is none; the message lists the known names.
    """
    return CRITERIA.find(config.criterion)(config, layer)
