"""Define the hyperparameter searchers."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from secateur._packages import require_packages
from secateur.compat.neural_compressor._hpo_config import HPOConfig
from secateur.compat.neural_compressor.compression.hpo.search_space import DiscreteSearchSpace, SearchSpace
from secateur.errors import ConfigError, StateError, UnknownNameError

__all__ = [
    "SEARCHERS",
    "BayesianOptimizationSearcher",
    "GridSearcher",
    "RandomSearcher",
    "Searcher",
    "XgbSearcher",
    "prepare_hpo",
    "register_searcher",
]

logger = logging.getLogger(__name__)

CANDIDATES = 1000
"""Number of random points among which a fitted model selects the next one."""

EXPLORATION = 2.576
"""Number of standard deviations above the mean in the upper confidence bound: the 99 % interval."""


MATERN_LENGTHS = (0.05, 10.0)
"""Bounds of the kernel's length, in widths of the space; a much shorter one would fit noise alone."""


class Searcher:
    """Base class of the searchers.

    Args:
        search_space: Hyperparameter → its values: a `SearchSpace` or a list.
        higher_is_better: Whether a higher metric is better.
        seed: Seed of the random numbers; ``None`` draws them from Python's `random` module.

    Attributes:
        best: The best hyperparameters and their metric; ``None`` before the first metric.

    Raises:
        ConfigError: `search_space` is empty, or a value in it is not a space.
    """

    def __init__(
        self, search_space: Mapping[str, Any], *, higher_is_better: bool = True, seed: int | None = None
    ) -> None:
        if not search_space:
            raise ConfigError("search_space must contain at least one hyperparameter, found none.")
        self.search_space = search_space
        self.search_space_keys = sorted(search_space)
        self.search_space_pool = [_to_space(name, search_space[name]) for name in self.search_space_keys]
        self.higher_is_better = higher_is_better
        self.best: tuple[dict[str, Any], float] | None = None
        self._random: Any = random if seed is None else random.Random(seed)  # noqa: S311 - not cryptography
        self._last: dict[str, Any] | None = None

    def suggest(self) -> dict[str, Any]:
        """Return the hyperparameters to try next."""
        self._last = self.params_vec2params_dict(self._suggest_vector())
        return dict(self._last)

    def get_feedback(self, metric: float) -> None:
        """Record the metric of the last suggestion.

        Raises:
            StateError: There is no suggestion without a metric.
        """
        if self._last is None:
            raise StateError("get_feedback needs a suggestion without a metric, found none. Call suggest first.")
        self.feedback(self._last, metric)
        self._last = None

    def feedback(self, param: Mapping[str, Any], metric: float) -> None:
        """Record the metric of any hyperparameters.

        Raises:
            ConfigError: The metric is not finite.
        """
        metric = float(metric)
        if not math.isfinite(metric):
            raise ConfigError(f"The metric must be a finite number, found {metric}.")
        if self.best is None or (metric > self.best[1] if self.higher_is_better else metric < self.best[1]):
            self.best = (dict(param), metric)

    def params_vec2params_dict(self, para_vec: Any) -> dict[str, Any]:
        """Convert values, in the alphabetical order of the hyperparameters, to a dictionary."""
        return dict(zip(self.search_space_keys, para_vec, strict=True))

    def _suggest_vector(self) -> list[Any]:
        """Return values in the alphabetical order of the hyperparameters."""
        return [space.sample(self._random) for space in self.search_space_pool]


SEARCHERS: dict[str, type[Searcher]] = {}
"""Name → searcher."""


def register_searcher(name: str) -> Callable[[type[Searcher]], type[Searcher]]:
    """Register a subclass of `Searcher` under a name, replacing any other.

    Examples:
        >>> @register_searcher("first")
        ... class FirstValueSearcher(Searcher):
        ...     def suggest(self):
        ...         return {name: values[0] for name, values in self.search_space.items()}
        >>> SEARCHERS.pop("first")({"lr": [0.1, 0.2]}).suggest()
        {'lr': 0.1}
    """

    def register(searcher: type[Searcher]) -> type[Searcher]:
        SEARCHERS[name] = searcher
        return searcher

    return register


def prepare_hpo(config: HPOConfig) -> Searcher:
    """Create the searcher of a configuration.

    Raises:
        ConfigError: `config` is not an `HPOConfig`, or a value of it is out of bounds.
        UnknownNameError: The searcher is not registered.
        MissingPackageError: The searcher needs scikit-learn, which is not installed.

    Examples:
        >>> config = HPOConfig({"lr": [0.1, 0.2], "epochs": [1, 2]}, searcher="grid")
        >>> searcher = prepare_hpo(config)
        >>> searcher.suggest()
        {'epochs': 1, 'lr': 0.1}
        >>> searcher.get_feedback(0.9)
        >>> searcher.best
        ({'epochs': 1, 'lr': 0.1}, 0.9)
    """
    if not isinstance(config, HPOConfig):
        raise ConfigError(f"config must be an HPOConfig, found {type(config).__name__}.")
    if config.searcher not in SEARCHERS:
        raise UnknownNameError(f"Unknown searcher {config.searcher!r}. Known: {', '.join(SEARCHERS)}.")
    searcher = SEARCHERS[config.searcher]
    options: dict[str, Any] = {}
    if issubclass(searcher, XgbSearcher):
        options = {"loss_type": config.loss_type, "min_train_samples": config.min_train_samples}
    return searcher(config.search_space, higher_is_better=config.higher_is_better, seed=config.seed, **options)


@register_searcher("grid")
class GridSearcher(Searcher):
    """Suggest each combination of discrete values once, the last hyperparameter in alphabetical order first.

    After the last combination, a warning says so, and the search starts again.

    Args:
        search_space: Hyperparameter → its values, all discrete.
        options: See `Searcher`.

    Raises:
        ConfigError: A space is continuous.
    """

    def __init__(self, search_space: Mapping[str, Any], **options: Any) -> None:
        super().__init__(search_space, **options)
        for name, space in zip(self.search_space_keys, self.search_space_pool, strict=True):
            if not isinstance(space, DiscreteSearchSpace):
                raise ConfigError(
                    f"A grid search needs discrete spaces, found a continuous one for {name!r}. Give it an interval, "
                    f"or use the searcher 'random' or 'bo'."
                )
        self._combinations = self._iterate()

    def _suggest_vector(self) -> list[Any]:
        values = next(self._combinations, None)
        if values is None:
            logger.warning("All combinations have been suggested. The search starts again.")
            self._combinations = self._iterate()
            values = next(self._combinations)
        return list(values)

    def _iterate(self) -> Iterator[tuple[Any, ...]]:
        return product(*(space.get_all() for space in self.search_space_pool if isinstance(space, DiscreteSearchSpace)))


@register_searcher("random")
class RandomSearcher(Searcher):
    """Suggest random values.

    Args:
        search_space: Hyperparameter → its values.
        options: See `Searcher`.
    """

    def __init__(self, search_space: Mapping[str, Any], **options: Any) -> None:
        super().__init__(search_space, **options)


class _ModelSearcher(Searcher):
    """Suggests the best of many random points according to a model of the metric."""

    min_train_samples = 1

    def __init__(
        self, search_space: Mapping[str, Any], *, higher_is_better: bool = True, seed: int | None = 42
    ) -> None:
        require_packages("sklearn", extra="hpo")
        super().__init__(search_space, higher_is_better=higher_is_better, seed=seed)
        self.seed = seed
        self._points: list[list[float]] = []
        self._metrics: list[float] = []

    def feedback(self, param: Mapping[str, Any], metric: float) -> None:
        point = self._encode([param[name] for name in self.search_space_keys])
        super().feedback(param, metric)
        self._points.append(point)
        self._metrics.append(float(metric))

    def _suggest_vector(self) -> list[Any]:
        if len(self._metrics) < self.min_train_samples:
            return super()._suggest_vector()
        candidates = [super(_ModelSearcher, self)._suggest_vector() for _ in range(CANDIDATES)]
        metrics = np.array(self._metrics) if self.higher_is_better else -np.array(self._metrics)
        scores = self._predict(np.array(self._points), metrics, np.array([self._encode(x) for x in candidates]))
        return candidates[int(np.argmax(scores))]

    def _encode(self, values: list[Any]) -> list[float]:
        return [space.encode(value) for space, value in zip(self.search_space_pool, values, strict=True)]

    def _predict(self, points: Any, metrics: Any, candidates: Any) -> Any:
        """Fit a model to metrics to be maximized, and return a score per candidate."""
        raise NotImplementedError


@register_searcher("bo")
class BayesianOptimizationSearcher(_ModelSearcher):
    """Suggest the highest upper confidence bound of a Gaussian process, among random points.

    Args:
        search_space: Hyperparameter → its values.
        higher_is_better: Whether a higher metric is better.
        seed: Seed of the random numbers.

    Raises:
        MissingPackageError: scikit-learn is not installed.

    Source:
        Srinivas et al., "Gaussian Process Optimization in the Bandit Setting", arXiv:0912.3995; scikit-learn's
        ``GaussianProcessRegressor`` with a Matérn kernel.
    """

    def _predict(self, points: Any, metrics: Any, candidates: Any) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import Matern

        kernel = Matern(nu=2.5, length_scale_bounds=MATERN_LENGTHS)
        model = GaussianProcessRegressor(
            kernel, alpha=1e-6, normalize_y=True, n_restarts_optimizer=3, random_state=self.seed
        )
        with warnings.catch_warnings():  # a kernel length at its bound does not matter for a search
            warnings.simplefilter("ignore", ConvergenceWarning)
            mean, deviation = model.fit(points, metrics).predict(candidates, return_std=True)
        return mean + EXPLORATION * deviation


@register_searcher("xgb")
class XgbSearcher(_ModelSearcher):
    """Suggest the point with the best prediction of gradient-boosted trees, among random points.

    The trees are scikit-learn's ``GradientBoostingRegressor``; xgboost is not needed.

    Args:
        search_space: Hyperparameter → its values.
        higher_is_better: Whether a higher metric is better.
        loss_type: ``"reg"``.
        min_train_samples: Number of metrics before the first prediction; suggestions are random before that.
        seed: Seed of the random numbers.

    Raises:
        ConfigError: `loss_type` is not ``"reg"``.
        MissingPackageError: scikit-learn is not installed.
    """

    def __init__(
        self,
        search_space: Mapping[str, Any],
        *,
        higher_is_better: bool = True,
        loss_type: str = "reg",
        min_train_samples: int = 10,
        seed: int | None = 42,
    ) -> None:
        if loss_type != "reg":
            raise ConfigError(f"loss_type must be 'reg', found {loss_type!r}. To rank, pass ranks as the metric.")
        super().__init__(search_space, higher_is_better=higher_is_better, seed=seed)
        self.loss_type = loss_type
        self.min_train_samples = max(min_train_samples, 1)

    def _predict(self, points: Any, metrics: Any, candidates: Any) -> Any:
        from sklearn.ensemble import GradientBoostingRegressor

        model = GradientBoostingRegressor(max_depth=3, n_estimators=100, learning_rate=0.3, random_state=self.seed)
        return model.fit(points, metrics).predict(candidates)


def _to_space(name: str, values: Any) -> SearchSpace:
    if isinstance(values, SearchSpace):
        return values
    if isinstance(values, list | tuple):
        return DiscreteSearchSpace(value=values)
    raise ConfigError(f"The values of {name!r} must be a SearchSpace or a list, found {type(values).__name__}.")
