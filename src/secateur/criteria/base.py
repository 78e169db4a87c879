"""The base class and the registry of criteria. Weights with higher scores are kept."""

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
"""Class decorator that adds a criterion to `CRITERIA` under a name. Raises `ConfigError` if the name is taken."""


Score = TypeVar("Score", bound=Callable[..., Array])

ELEMENTWISE: set[Callable[..., Array]] = set()
"""Implementations of `BaseCriterion.score` that are marked as `elementwise`."""


def elementwise(score: Score) -> Score:
    """Mark a `BaseCriterion.score` that computes each score from a single weight and its gradient.

    It is then called with arrays in their stored shape, which avoids a transposition.
    """
    ELEMENTWISE.add(score)
    return score


class BaseCriterion(ABC):
    """Compute one score per weight from the weight and its gradient, and accumulate scores over steps.

    After each step ``score ← decay · score + score_of_this_step``. The configured reduction then turns the scores of a
    unit's weights into one. If the reduction is linear (mean, sum), scores are accumulated per unit.

    Args:
        config: The configuration of the run.
        layer: Name of the layer.

    Attributes:
        needs_gradient: Whether `score` reads the gradient.
        decay: Factor of the previous score, in [0, 1]; 0: only the last step counts.
        sees_every_step: Whether `score` is called at every step, even if only the scores of the last one count. Without
            it, and with ``decay = 0``, it is called only for steps after which units are ranked.
        reduction: The reduction that the definition of the criterion requires; ``None``: the configured one.
        is_rearranged: Whether one-shot pruning with a loss swaps units after ranking them; see `rearrange_units`.
        first_output: The first output channel that `score` gets: 0, unless processes that hold some output channels
            each score their own.
    """

    needs_gradient: ClassVar[bool]
    decay: ClassVar[float] = 0.0
    sees_every_step: ClassVar[bool] = False
    reduction: ClassVar[str | None] = None
    is_rearranged: ClassVar[bool] = False

    def __init__(self, config: PruningConfig, layer: str) -> None:
        self.config = config
        self.layer = layer
        self.first_output = 0

    @property
    def scores_parts(self) -> bool:
        """Whether `score` can be called for some output channels, with the scores that they have in a whole weight."""
        return self.is_elementwise

    @property
    def is_elementwise(self) -> bool:
        """Whether `score` is marked as `elementwise`; overrides must be marked again."""
        return type(self).score in ELEMENTWISE

    @abstractmethod
    def score(self, weight: Array, gradient: Array | None) -> Array:
        """Compute the score of each weight at this step.

        Args:
            weight: Weights, of shape (output channels, kernel positions, input channels).
            gradient: The gradient of the loss with respect to the weights, of the same shape; ``None`` if not needed.

        Returns:
            Scores in the shape of `weight`.
        """

    def unit_score(self, scores: Array) -> Array:
        """Transform the reduced scores of one step. The default returns them unchanged.

        Args:
            scores: One reduced score per unit, one-dimensional.

        Returns:
            Scores in the shape of `scores`.
        """
        return scores


def get_criterion(config: PruningConfig, layer: str) -> BaseCriterion:
    """Create the criterion registered under ``config.criterion``, for one layer.

    Raises:
        UnknownNameError: The name is not registered; the message lists the known names.
    """
    return CRITERIA.find(config.criterion)(config, layer)
