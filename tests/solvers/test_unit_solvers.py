"""Test the solvers that remove whole units against dense least squares and exhaustive search."""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch

from secateur.errors import ConfigError
from secateur.patterns.rounding import KeepRule
from secateur.refiners import Ridge
from secateur.solvers import OSSCAR, SOLVERS, UnitProblem, UnitSolver, ZipLM
from secateur.solvers.unit_exchange import exchange_units
from secateur.solvers.unit_loss import build_unit_losses
from solvers.unit_problems import (
    SHAPES,
    Case,
    Floats,
    Shape,
    compute_exact_loss,
    fit,
    make_case,
    make_consumer,
)

UNIT_SOLVERS = {name: kind for name, kind in sorted(SOLVERS.items()) if issubclass(kind, UnitSolver)}
"""Solvers that remove whole units."""

DAMPING = 1e-2
"""Damping in comparisons with dense least squares."""


# Contracts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_a_path_has_every_unit_once_and_losses_never_decrease(name: str, shape: str) -> None:
    problem = make_case(SHAPES[shape]).problem
    path = UNIT_SOLVERS[name]().rank_units(problem)
    assert path.order.dtype == torch.int64
    assert sorted(path.order.tolist()) == list(range(problem.units))
    assert path.losses.dtype == torch.float64
    assert path.losses.shape == (problem.units + 1,)
    assert path.losses[0] == 0
    assert path.losses[-1] > 0
    assert all(before <= after for before, after in pairwise(path.losses.tolist()))


# Direct comparison with dense least squares


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_of_ziplm_are_those_of_dense_least_squares(shape: str) -> None:
    case = make_case(SHAPES[shape])
    path = ZipLM(damping=DAMPING).rank_units(case.problem)
    for removed in range(case.problem.units + 1):
        exact = compute_exact_loss(case, path.keep(removed), DAMPING)
        assert float(path.losses[removed]) == pytest.approx(exact, rel=1e-4, abs=1e-6 * float(path.losses[-1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_step_of_ziplm_is_the_best(shape: str) -> None:
    case = make_case(SHAPES[shape], seed=1)
    path = ZipLM(damping=DAMPING).rank_units(case.problem)
    rule, kept = case.problem.rule, set(range(case.problem.units))
    for step, unit in enumerate(path.order.tolist()):
        start = step - step % rule.parts
        size = rule.units // rule.parts
        done = {int(other) // size for other in path.order[start:step]}
        losses = {}
        for candidate in kept:
            if candidate // size not in done:
                keep = torch.tensor([index in kept - {candidate} for index in range(rule.units)])
                losses[candidate] = compute_exact_loss(case, keep, DAMPING)
        assert losses[unit] <= min(losses.values()) * (1 + 1e-4)
        kept.remove(unit)


@pytest.mark.parametrize("damping", [1e-3, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_repair_is_that_of_dense_least_squares(shape: str, damping: float) -> None:
    case = make_case(SHAPES[shape])
    keep = torch.arange(case.problem.units) % 3 != 1
    for consumer, inputs in zip(case.problem.consumers, case.inputs, strict=True):
        update = ZipLM(damping=damping).update_consumer(consumer, keep)
        expected = fit(consumer, inputs, keep, damping)
        assert update.weight.dtype == torch.float32
        assert not update.weight[:, ~consumer.mask_features(keep)].any()
        scale = np.abs(expected.weight).max()
        np.testing.assert_allclose(update.weight.numpy(), expected.weight, rtol=5e-3, atol=1e-3 * scale)
        if consumer.has_bias:
            assert update.bias_change is not None
            shift = np.abs(expected.bias_change).max()
            np.testing.assert_allclose(update.bias_change.numpy(), expected.bias_change, rtol=5e-3, atol=1e-3 * shift)
        else:
            assert update.bias_change is None


# Exchanges


def compute_loss(case: Case, keep: torch.Tensor) -> float:
    return compute_exact_loss(case, keep, DAMPING)


@pytest.mark.parametrize("shape", SHAPES)
def test_exchanges_stop_where_no_pair_reduces_the_exact_loss(shape: str) -> None:
    case = make_case(SHAPES[shape], seed=2)
    rule, losses = case.problem.rule, build_unit_losses(case.problem, DAMPING)
    removed = rule.units // 2 // rule.parts
    first = (torch.arange(rule.units) % (rule.units // rule.parts)) >= removed
    keep = exchange_units(losses, rule, first, limit=100)
    assert int(keep.sum()) == int(first.sum())
    assert len(set(keep.view(rule.parts, -1).sum(dim=1).tolist())) == 1
    final = compute_loss(case, keep)
    assert final <= compute_loss(case, first) * (1 + 1e-6)
    part = torch.arange(rule.units) // (rule.units // rule.parts)
    for returned, gone in product(range(rule.units), repeat=2):
        if not keep[returned] and keep[gone] and part[returned] == part[gone]:
            other = keep.clone()
            other[returned], other[gone] = True, False
            assert compute_loss(case, other) >= final * (1 - 1e-4)


def test_each_exchange_is_the_best_pair() -> None:
    case = make_case(Shape(units=6, widths=(2, 1)), seed=3)
    first = torch.tensor([False, False, False, True, True, True])
    keep = exchange_units(build_unit_losses(case.problem, DAMPING), case.problem.rule, first, limit=1)
    losses = {}
    for returned, gone in product(range(3), range(3, 6)):
        other = first.clone()
        other[returned], other[gone] = True, False
        losses[returned, gone] = compute_loss(case, other)
    returned, gone = min(losses, key=losses.__getitem__)
    assert losses[returned, gone] < compute_loss(case, first)
    assert keep.tolist() == [index == returned or (index > 2 and index != gone) for index in range(6)]


def make_hard_problem(seed: int) -> UnitProblem:
    """Return a problem of inputs that are almost of half their rank, so that which units go together matters."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(60, 8, generator=generator) @ torch.randn(8, 16, generator=generator)
    inputs = mixed + 0.1 * torch.randn(60, 16, generator=generator)
    consumer = make_consumer(inputs, torch.randn(2, 16, generator=generator), torch.arange(8).repeat_interleave(2))
    return UnitProblem(name="group", rule=KeepRule(units=8), consumers=[consumer], scores=torch.ones(8))


def test_osscar_is_close_to_the_best_of_all_selections() -> None:
    """Removing 4 of 8 units: greedy finds the best selection in about half of the cases, exchanges in 3 of 4."""
    factors = {"greedy": [], "exchanged": []}
    for seed in range(50):
        problem = make_hard_problem(seed)
        [loss] = build_unit_losses(problem, 1e-3)
        matrices = loss.inverse.numpy(), loss.energy.numpy()

        def evaluate(removed: Sequence[int], inverse: Floats = matrices[0], energy: Floats = matrices[1]) -> float:
            features = np.add.outer(2 * np.array(removed), np.arange(2)).reshape(-1)
            block = np.ix_(features, features)
            return float(np.trace(np.linalg.solve(inverse[block], energy[block])))

        best = min(evaluate(removed) for removed in combinations(range(8), 4))
        solver = OSSCAR(damping=1e-3)
        path = solver.rank_units(problem)
        selected = solver.select_units(problem, path, 4)
        factors["greedy"].append(float(path.losses[4]) / best)
        factors["exchanged"].append(evaluate((~selected).nonzero()[:, 0].tolist()) / best)
    greedy, exchanged = (np.array(values) for values in factors.values())
    assert exchanged.min() >= 1 - 1e-6
    assert (exchanged <= greedy * (1 + 1e-6)).all()
    assert 0.3 < (greedy < 1 + 1e-6).mean() < 0.7
    assert (exchanged < 1 + 1e-6).mean() >= 0.7
    assert exchanged.mean() < 1.1 < 1.15 < greedy.mean()


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZipLM(damping=0), "damping must be above 0, found 0"),
        (lambda: OSSCAR(damping=float("nan")), "damping must be above 0"),
        (lambda: OSSCAR(exchanges=-1), "exchanges at least 0, found 0.01 and -1"),
        (lambda: Ridge(damping=-1), "damping must be above 0, found -1"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
