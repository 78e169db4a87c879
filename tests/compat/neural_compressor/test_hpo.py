"""Searches of hyperparameters, with the interface of Neural Compressor."""

import logging
import random
from itertools import product

import numpy as np
import pytest

from secateur.compat.neural_compressor.compression.hpo import (
    SEARCHERS,
    ContinuousSearchSpace,
    DiscreteSearchSpace,
    GridSearcher,
    SearchSpace,
    SimulatedAnnealingOptimizer,
    prepare_hpo,
)
from secateur.compat.neural_compressor.config import HPOConfig
from secateur.errors import ConfigError, MissingPackageError, StateError, UnknownNameError

SPACE = {"lr": SearchSpace((0.0, 1.0)), "epochs": SearchSpace(bound=(0, 10), interval=1), "decay": ["exp", "cubic"]}


def score(param: dict) -> float:
    """A metric with its maximum, 1, at lr=0.3, epochs=7, decay="cubic"."""
    distance = (param["lr"] - 0.3) ** 2 + ((param["epochs"] - 7) / 10) ** 2
    return 1 - distance - (0.2 if param["decay"] == "exp" else 0.0)


def test_search_space_selects_its_class() -> None:
    assert type(SearchSpace((5, 20), 1)) is DiscreteSearchSpace
    assert type(SearchSpace(value=[1, 2])) is DiscreteSearchSpace
    assert type(SearchSpace((5, 20))) is ContinuousSearchSpace
    assert type(SearchSpace((5, 20), type="discrete")) is DiscreteSearchSpace
    assert SearchSpace((5, 20), 1).total_num == 15
    assert ContinuousSearchSpace((0, 1)).total_num == float("inf")


def test_discrete_values() -> None:
    space = DiscreteSearchSpace(bound=[0.1, 0.4], interval=0.1)
    assert space.get_all() == space.get_value(-1) == [0.1, 0.2, 0.3]
    assert [space.index(value) for value in space.get_all()] == [0, 1, 2]
    assert space.get_value() in space.get_all()
    assert space.get_random_value() in space.get_all()
    assert DiscreteSearchSpace(bound=[0.01, 0.1]).interval == 0.01
    assert DiscreteSearchSpace(bound=[0, 10]).index(1) == 1
    assert [DiscreteSearchSpace(value=["a", "b", "c"]).encode(value) for value in "abc"] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": (1, 1)}, r"bound must be \(start, end\) with start < end, found \(1, 1\)"),
        ({"bound": (1, 2), "type": "x"}, "type must be 'discrete' or 'continuous', found 'x'"),
        ({"type": "discrete"}, "needs value, or bound and interval"),
        ({"value": []}, "at least one value"),
        ({}, "A continuous space needs bound"),
    ],
)
def test_invalid_spaces(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace(**arguments)


def test_invalid_values() -> None:
    space = DiscreteSearchSpace(bound=(0, 4))
    for value in (-1, 4):
        with pytest.raises(ConfigError, match="does not contain"):
            space.index(value)
    with pytest.raises(ConfigError, match="does not contain 'z'"):
        DiscreteSearchSpace(value=["a"]).index("z")
    with pytest.raises(ConfigError, match=r"idx must be a whole number, found 1\.5"):
        space.get_value(1.5)
    for method in (SearchSpace.sample, SearchSpace.encode):
        with pytest.raises(NotImplementedError):
            method(space, None)


def test_grid_suggests_every_combination_once(caplog: pytest.LogCaptureFixture) -> None:
    searcher = prepare_hpo(HPOConfig({"b": [1, 2, 3], "a": SearchSpace((0, 2), 1)}, "grid"))
    assert isinstance(searcher, GridSearcher)
    suggested = [searcher.suggest() for _ in range(6)]
    assert suggested == [{"a": a, "b": b} for a, b in product([0, 1], [1, 2, 3])]
    with caplog.at_level(logging.WARNING):
        assert searcher.suggest() == suggested[0]
    assert caplog.messages == ["All combinations have been suggested. The search starts again."]


def test_random_draws_from_the_space() -> None:
    config = HPOConfig(SPACE, "random", seed=3)
    first, second = prepare_hpo(config), prepare_hpo(config)
    for _ in range(20):
        param = first.suggest()
        assert param == second.suggest()
        assert 0 <= param["lr"] < 1
        assert param["epochs"] in range(10)
        assert param["decay"] in ("exp", "cubic")
    random.seed(1)
    unseeded = SEARCHERS["random"](SPACE).suggest()
    random.seed(1)
    assert SEARCHERS["random"](SPACE).suggest() == unseeded


@pytest.mark.parametrize("name", ["bo", "xgb"])
@pytest.mark.parametrize("sign", [1, -1])
def test_models_find_the_maximum(name: str, sign: int) -> None:
    config = HPOConfig(SPACE, name, higher_is_better=sign > 0, min_train_samples=5)
    searcher = prepare_hpo(config)
    for _ in range(25):
        searcher.get_feedback(sign * score(searcher.suggest()))
    param, metric = searcher.best
    assert metric == sign * score(param)
    assert sign * metric > 0.97
    assert param["decay"] == "cubic"


@pytest.mark.parametrize("name", ["bo", "xgb"])
def test_models_accept_metrics_of_other_points(name: str) -> None:
    searcher = prepare_hpo(HPOConfig({"x": list(range(101))}, name, min_train_samples=3))
    for x in range(0, 101, 10):
        searcher.feedback({"x": x}, -((x - 60) ** 2))
    assert searcher.best == ({"x": 60}, 0.0)
    assert 45 <= searcher.suggest()["x"] <= 75


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_searcher_keeps_the_best(name: str) -> None:
    searcher = prepare_hpo(HPOConfig({"x": [1, 2, 3]}, name, higher_is_better=False))
    with pytest.raises(StateError, match="Call suggest first"):
        searcher.get_feedback(1.0)
    suggested = []
    for metric in (3.0, 1.0, 2.0):
        suggested.append(searcher.suggest())
        searcher.get_feedback(metric)
    assert searcher.best == (suggested[1], 1.0)
    with pytest.raises(ConfigError, match="finite number, found nan"):
        searcher.feedback({"x": 1}, float("nan"))


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="config must be an HPOConfig, found dict"):
        prepare_hpo({})
    with pytest.raises(UnknownNameError, match=r"Unknown searcher 'tpe'\. Known: grid, random, bo, xgb"):
        prepare_hpo(HPOConfig(SPACE, "tpe"))
    with pytest.raises(ConfigError, match="continuous one for 'lr'"):
        prepare_hpo(HPOConfig(SPACE, "grid"))
    with pytest.raises(ConfigError, match="at least one hyperparameter"):
        prepare_hpo(HPOConfig({}, "random"))
    with pytest.raises(ConfigError, match="The values of 'x' must be a SearchSpace or a list, found int"):
        prepare_hpo(HPOConfig({"x": 3}, "random"))
    with pytest.raises(ConfigError, match="loss_type must be 'reg', found 'rank'"):
        prepare_hpo(HPOConfig(SPACE, loss_type="rank"))
    monkeypatch.setattr("secateur._packages.is_installed", lambda package: package != "sklearn")
    with pytest.raises(MissingPackageError, match=r"'sklearn', which is not installed\. .*\[hpo\]"):
        prepare_hpo(HPOConfig(SPACE, "bo"))


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.98])
def test_simulated_annealing(alpha: float | None, higher_is_better: bool) -> None:
    random.seed(0)
    np.random.seed(0)
    sign = -1 if higher_is_better else 1
    points = np.array([[2.0, -1.0], [1.5, 3.0]])
    before = points.copy()
    optimizer = SimulatedAnnealingOptimizer(T0=1, Tf=0.01, alpha=alpha, higher_is_better=higher_is_better)
    best = optimizer.gen_next_params(lambda x: sign * ((x - 1) ** 2).sum(axis=1), points)
    assert np.array_equal(points, before)
    assert np.allclose(best, 1, atol=0.2)
    assert optimizer.best == (sign * sum((value - 1) ** 2 for value in best), best)


def test_simulated_annealing_with_a_generator() -> None:
    optimizer = SimulatedAnnealingOptimizer(lambda points: points + 1, T0=1, Tf=0, alpha=0.5, early_stop=3)
    assert optimizer.gen_next_params(lambda x: -abs(x[:, 0] - 4), [[0.0]]) == [4.0]
