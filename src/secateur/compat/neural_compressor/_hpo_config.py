"""Define `HPOConfig`, with the keys of Intel Neural Compressor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["HPOConfig"]


@dataclass
class HPOConfig:
    """The configuration of a hyperparameter search; see `prepare_hpo`.

    Attributes:
        search_space: Hyperparameter → its values: a `SearchSpace` or a list.
        searcher: ``"grid"``, ``"random"``, ``"bo"`` (Bayesian optimization) or ``"xgb"`` (boosted trees).
        higher_is_better: Whether a higher metric is better.
        loss_type: Loss of the trees: ``"reg"``.
        min_train_samples: Number of metrics before the trees are first fitted.
        seed: Seed of the random numbers; ``None`` draws them from Python's `random` module.

    Examples:
        >>> HPOConfig({"lr": [0.1, 0.2]}, searcher="grid").higher_is_better
        True
    """

    search_space: Mapping[str, Any]
    searcher: str = "xgb"
    higher_is_better: bool = True
    loss_type: str = "reg"
    min_train_samples: int = 10
    seed: int | None = 42
