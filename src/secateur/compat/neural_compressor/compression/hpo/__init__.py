"""Search for hyperparameters, with the interface of Intel Neural Compressor."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.hpo.sa_optimizer import SimulatedAnnealingOptimizer
from secateur.compat.neural_compressor.compression.hpo.search_algorithms import (
    SEARCHERS,
    BayesianOptimizationSearcher,
    GridSearcher,
    RandomSearcher,
    Searcher,
    XgbSearcher,
    prepare_hpo,
    register_searcher,
)
from secateur.compat.neural_compressor.compression.hpo.search_space import (
    ContinuousSearchSpace,
    DiscreteSearchSpace,
    SearchSpace,
)

__all__ = [
    "SEARCHERS",
    "BayesianOptimizationSearcher",
    "ContinuousSearchSpace",
    "DiscreteSearchSpace",
    "GridSearcher",
    "RandomSearcher",
    "SearchSpace",
    "Searcher",
    "SimulatedAnnealingOptimizer",
    "XgbSearcher",
    "prepare_hpo",
    "register_searcher",
]
