"""Define a gradient-free optimizer: simulated annealing."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["SimulatedAnnealingOptimizer"]

logger = logging.getLogger(__name__)


class SimulatedAnnealingOptimizer:
    """Search for the best arguments of a function by simulated annealing.

    Random numbers come from Python's `random` and from NumPy's global generator.

    Args:
        generate_func: Function that proposes new points, given the current ones; by default, the current ones plus
            noise in proportion to the temperature.
        T0: Temperature at the start.
        Tf: Temperature at the end.
        higher_is_better: Whether to maximize.
        alpha: Factor of the temperature after each iteration, ``0 < alpha < 1``; by default, the temperature falls
            linearly.
        iter: Number of iterations if it falls linearly.
        early_stop: Number of iterations without a new best value after which the search ends.
        log_interval: Number of iterations between two messages (level DEBUG); 0: none.

    Attributes:
        best: The best value and its point; the point is ``None`` before the first search.

    Source:
        Kirkpatrick, Gelatt and Vecchi, "Optimization by Simulated Annealing", Science 220 (1983).

    Examples:
        >>> import numpy as np
        >>> optimizer = SimulatedAnnealingOptimizer(T0=1, alpha=0.9, higher_is_better=False)
        >>> point = optimizer.gen_next_params(lambda x: (x**2).sum(axis=1), np.ones((5, 2)))
        >>> sum(value**2 for value in point) <= 2
        True
    """

    def __init__(
        self,
        generate_func: Callable[[Any], Any] | None = None,
        T0: float = 100,
        Tf: float = 0.01,
        higher_is_better: bool = True,
        alpha: float | None = None,
        iter: int = 500,  # noqa: A002 - part of the interface
        early_stop: int = 50,
        log_interval: int = 50,
    ) -> None:
        self.generate_func = generate_func
        self.T0, self.Tf, self.T = T0, Tf, T0
        self.higher_is_better = higher_is_better
        self.alpha = alpha
        self.iter = iter
        self.early_stop = early_stop
        self.log_interval = log_interval
        self.best: tuple[float, list[float] | None] = (-math.inf if higher_is_better else math.inf, None)

    def gen_next_params(self, func: Callable[[Any], Any], points: Any) -> list[float] | None:
        """Search from the given points, which are not modified, and return the best point.

        Args:
            func: Function from points, count × dimensions, to their values.
            points: The first points, count × dimensions.
        """
        sign = 1 if self.higher_is_better else -1
        points = np.array(points, dtype=float)
        scores = sign * np.asarray(func(points), dtype=float)
        self.T = self.T0
        best, best_score, last_change, count = points[scores.argmax()].copy(), float(scores.max()), 0, 0
        while self.Tf < self.T and count - last_change <= self.early_stop:
            candidates = np.asarray((self.generate_func or self._add_noise)(points), dtype=float)
            candidate_scores = sign * np.asarray(func(candidates), dtype=float)
            accepted = [self._is_accepted(gain) for gain in candidate_scores - scores]
            points[accepted], scores[accepted] = candidates[accepted], candidate_scores[accepted]
            count += 1
            if scores.max() > best_score:
                best, best_score, last_change = points[scores.argmax()].copy(), float(scores.max()), count
            self.T = self.T * self.alpha if self.alpha else self.T - (self.T0 - self.Tf) / (self.iter + 1)
            if self.log_interval and count % self.log_interval == 0:
                logger.debug("Iteration %d: best %g, temperature %g.", count, sign * best_score, self.T)
        self.best = (sign * best_score, best.tolist())
        return self.best[1]

    def _add_noise(self, points: Any) -> Any:
        return points + self.T * (np.random.random(points.shape) - np.random.random(points.shape))

    def _is_accepted(self, gain: float) -> bool:
        """Accept every improvement, and a loss with a probability that falls with the temperature."""
        return gain >= 0 or random.random() < math.exp(gain / self.T)  # noqa: S311 - not cryptography
