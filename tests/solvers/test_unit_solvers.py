"""Test the solvers that remove whole units against dense least squares and exhaustive search."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot.problems import realistic_inputs, realistic_weight
from secateur.errors import CalibrationError, ConfigError, ScoreError
from secateur.patterns.rounding import KeepRule
from secateur.refiners import Ridge
from secateur.solvers import OSSCAR, SOLVERS, FisherPruning, Magnitude, UnitProblem, UnitSolver, Wanda, ZipLM
from secateur.solvers.ridge import choose_damping
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


@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_each_round_removes_one_unit_of_every_part(name: str) -> None:
    case = make_case(SHAPES["parts"])
    solver = UNIT_SOLVERS[name]()
    path = solver.rank_units(case.problem)
    parts, size = case.problem.rule.parts, case.problem.units // case.problem.rule.parts
    for units in (path.order // size).view(-1, parts):
        assert sorted(units.tolist()) == list(range(parts))
    for removed in range(0, case.problem.units + 1, parts):
        keep = solver.select_units(case.problem, path, removed)
        assert keep.dtype == torch.bool
        assert keep.view(parts, -1).sum(dim=1).tolist() == [size - removed // parts] * parts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_a_path_for_fewer_units_starts_equal(name: str, shape: str) -> None:
    problem = make_case(SHAPES[shape]).problem
    solver, parts = UNIT_SOLVERS[name](), problem.rule.parts
    whole = solver.rank_units(problem)
    for most in range(0, problem.units + 1, parts):
        path = solver.rank_units(replace(problem, max_removed=most))
        assert torch.equal(path.order[:most], whole.order[:most])
        assert torch.equal(path.losses[: most + 1], whole.losses[: most + 1])
        assert (path.losses <= whole.losses).all()
        rounds = path.order.view(-1, parts) // (problem.units // parts)
        assert sorted(path.order.tolist()) == list(range(problem.units))
        assert all(sorted(units.tolist()) == list(range(parts)) for units in rounds)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_unit_solvers_are_deterministic_and_do_not_modify_the_problem(name: str, shape: str) -> None:
    results = []
    case, reference = make_case(SHAPES[shape]), make_case(SHAPES[shape])
    removed = case.problem.rule.round_down(case.problem.units // 2)
    for _ in range(2):
        solver = UNIT_SOLVERS[name]()
        path = solver.rank_units(case.problem)
        keep = solver.select_units(case.problem, path, removed)
        results.append([path.order, path.losses, keep, solver.update_consumer(case.problem.consumers[0], keep).weight])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    for consumer, expected in zip(case.problem.consumers, reference.problem.consumers, strict=True):
        assert torch.equal(consumer.weight, expected.weight)
        assert torch.equal(consumer.known_gram, expected.known_gram)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_updates_are_zero_for_removed_units(name: str, shape: str) -> None:
    case = make_case(SHAPES[shape])
    solver, units = UNIT_SOLVERS[name](), case.problem.units
    for keep in (torch.arange(units) % 2 == 0, torch.ones(units, dtype=torch.bool), torch.zeros(units).bool()):
        for consumer in case.problem.consumers:
            update = solver.update_consumer(consumer, keep)
            assert update.weight.dtype == torch.float32
            assert not update.weight[:, ~consumer.mask_features(keep)].any()
            assert torch.isfinite(update.weight).all()
            if keep.all():
                torch.testing.assert_close(update.weight, consumer.weight, rtol=0, atol=0)
            if update.bias_change is not None:
                assert consumer.has_bias
                assert torch.isfinite(update.bias_change).all()


def make_equal_problem(parts: int = 1) -> UnitProblem:
    """Return a problem of 12 units that do not differ."""
    weight, inputs = torch.ones(3, 12), torch.eye(12).repeat(2, 1)
    return UnitProblem(
        name="group",
        rule=KeepRule(units=12, parts=parts),
        consumers=[make_consumer(inputs, weight, torch.arange(12))],
        scores=torch.ones(12),
        gradients=torch.ones(4, 12),
    )


@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_of_equal_units_the_lower_index_is_kept(name: str) -> None:
    assert UNIT_SOLVERS[name]().rank_units(make_equal_problem()).order.tolist() == list(range(11, -1, -1))
    order = UNIT_SOLVERS[name]().rank_units(make_equal_problem(parts=3)).order
    assert [sorted(units) for units in order.view(-1, 3).tolist()] == [[3, 7, 11], [2, 6, 10], [1, 5, 9], [0, 4, 8]]


@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_units_with_zero_inputs_go_first_and_cost_nothing(name: str) -> None:
    case = make_case(Shape(units=8, widths=(2, 1)))
    dead = torch.zeros(8, dtype=torch.bool)
    dead[[1, 2, 6]] = True
    consumers = []
    for consumer, inputs in zip(case.problem.consumers, case.inputs, strict=True):
        zeroed = inputs * ~dead[consumer.unit_of]
        consumers.append(make_consumer(zeroed, consumer.weight, consumer.unit_of))
    assert case.problem.gradients is not None
    problem = replace(
        case.problem,
        consumers=consumers,
        scores=case.problem.scores * ~dead,
        gradients=case.problem.gradients * ~dead,
    )
    solver = UNIT_SOLVERS[name]()
    path = solver.rank_units(problem)
    assert path.order[:3].tolist() == [6, 2, 1]
    assert path.losses[:4].tolist() == [0, 0, 0, 0]
    assert path.losses[4] > 0
    for consumer in consumers:
        update = solver.update_consumer(consumer, ~dead)
        torch.testing.assert_close(update.weight, consumer.weight * ~dead[consumer.unit_of])


@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_zero_inputs(name: str) -> None:
    problem = make_equal_problem()
    empty = make_consumer(torch.zeros(6, 12), torch.ones(3, 12), torch.arange(12))
    problem = replace(problem, consumers=[empty], scores=torch.zeros(12), gradients=torch.zeros(4, 12))
    solver = UNIT_SOLVERS[name]()
    path = solver.rank_units(problem)
    assert path.losses.tolist() == [0.0] * 13
    assert solver.select_units(problem, path, 5).tolist() == [True] * 7 + [False] * 5
    update = solver.update_consumer(empty, path.keep(5))
    assert update.weight.tolist() == [[1.0] * 7 + [0.0] * 5] * 3


@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_groups_without_a_layer_that_reads_them(name: str) -> None:
    problem = replace(make_equal_problem(), consumers=[])
    solver = UNIT_SOLVERS[name]()
    path = solver.rank_units(problem)
    assert path.order.tolist() == list(range(11, -1, -1))
    assert solver.select_units(problem, path, 3).tolist() == [True] * 9 + [False] * 3


@pytest.mark.parametrize("name", UNIT_SOLVERS)
def test_nan_is_refused_with_the_name_of_the_group(name: str) -> None:
    problem = make_case().problem
    assert problem.gradients is not None
    [consumer] = problem.consumers
    broken = replace(consumer, norms=consumer.norms * torch.nan, gram=consumer.known_gram * torch.nan)
    problem = replace(
        problem, consumers=[broken], scores=problem.scores * torch.nan, gradients=problem.gradients * torch.nan
    )
    with pytest.raises(ScoreError, match=r"group 'group'.* found nan"):
        UNIT_SOLVERS[name]().rank_units(problem)


@pytest.mark.parametrize("solver", [ZipLM(), FisherPruning()])
def test_inputs_that_are_not_finite_are_refused_with_the_name_of_the_layer(solver: UnitSolver) -> None:
    [consumer] = make_case().problem.consumers
    broken = replace(consumer, gram=consumer.known_gram * torch.inf)
    with pytest.raises(CalibrationError, match="layer 'reader': the inputs of the calibration data must be finite"):
        solver.update_consumer(broken, torch.arange(6) > 2)


# Scores


def test_magnitude_ranks_units_by_their_scores() -> None:
    problem = replace(make_equal_problem(), scores=torch.arange(12.0).flip(0) - 2)
    path = Magnitude().rank_units(problem)
    assert path.order.tolist() == list(range(11, -1, -1))
    assert path.losses.tolist() == [0, 0, 0, 0, 1, 3, 6, 10, 15, 21, 28, 36, 45]


def test_wanda_sums_all_weights_that_read_a_unit() -> None:
    case = make_case(SHAPES["several consumers"])
    expected = np.zeros(case.problem.units)
    for consumer, inputs in zip(case.problem.consumers, case.inputs, strict=True):
        norms = np.linalg.norm(inputs.double().numpy(), axis=0)
        for feature, unit in enumerate(consumer.unit_of.tolist()):
            expected[unit] += np.abs(consumer.weight[:, feature].double().numpy()).sum() * norms[feature]
    path = Wanda().rank_units(case.problem)
    assert path.order.tolist() == np.argsort(expected).tolist()
    np.testing.assert_allclose(path.losses.numpy()[1:], np.sort(expected).cumsum(), rtol=1e-5)


def test_features_without_a_unit_do_not_count_for_wanda() -> None:
    case = make_case(SHAPES["features without unit"])
    [consumer] = case.problem.consumers
    louder = replace(consumer, norms=torch.where(consumer.unit_of < 0, 1e6, consumer.norms))
    expected = Wanda().rank_units(case.problem).losses
    assert torch.equal(Wanda().rank_units(replace(case.problem, consumers=[louder])).losses, expected)


# Fisher


def compute_fisher_loss(gradients: torch.Tensor, keep: torch.Tensor) -> float:
    return float(gradients.double()[:, ~keep].sum(dim=1).square().sum())


def test_fisher_losses_are_the_diagonal() -> None:
    problem = make_case().problem
    diagonal = problem.known_gradients.double().square().mean(dim=0) / 2
    path = FisherPruning().rank_units(problem)
    assert path.order.tolist() == diagonal.argsort().tolist()
    torch.testing.assert_close(path.losses[1:], diagonal.sort().values.cumsum(0))


@pytest.mark.parametrize("parts", [1, 3])
def test_rearrangement_reduces_the_loss_of_the_whole_matrix_within_parts(parts: int) -> None:
    improved = 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        gradients = torch.randn(4, 12, generator=generator) + torch.randn(4, 1, generator=generator)
        problem = replace(make_equal_problem(parts), gradients=gradients)
        solver = FisherPruning()
        path = solver.rank_units(problem)
        keep = solver.select_units(problem, path, 6)
        assert keep.view(parts, -1).sum(dim=1).tolist() == [6 // parts] * parts
        before, after = (compute_fisher_loss(gradients, mask) for mask in (path.keep(6), keep))
        assert after <= before * (1 + 1e-9)
        improved += after < 0.9 * before
    assert improved >= 5


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_tuned_by_least_squares(shape: str) -> None:
    case = make_case(SHAPES[shape])
    keep = torch.arange(case.problem.units) % 3 != 1
    for consumer, inputs in zip(case.problem.consumers, case.inputs, strict=True):
        columns = [
            (inputs[:, consumer.unit_of == unit].double() @ consumer.weight[:, consumer.unit_of == unit].double().T)
            for unit in range(case.problem.units)
        ]
        design = torch.stack([column.reshape(-1) for column in columns], dim=1).numpy()
        strength = np.sqrt(DAMPING * np.square(design[:, keep]).sum(axis=0))
        target = np.concatenate([design[:, ~keep].sum(axis=1), np.zeros(int(keep.sum()))])
        stacked = np.vstack([design[:, keep], np.diag(strength)])
        factors = torch.zeros(case.problem.units, dtype=torch.float64)
        factors[keep] = 1 + torch.from_numpy(np.linalg.lstsq(stacked, target, rcond=None)[0])
        scales = torch.where(consumer.unit_of < 0, 1.0, factors[consumer.unit_of.clamp(min=0)]).float()
        update = FisherPruning(damping=DAMPING, max_scale=1e6).update_consumer(consumer, keep)
        torch.testing.assert_close(update.weight, consumer.weight * scales, rtol=1e-3, atol=1e-4)
        assert update.bias_change is None


def test_factors_out_of_range_are_discarded() -> None:
    """The unit that stays has 20 times smaller inputs than the same one that goes."""
    inputs = torch.randn(64, 1) * torch.tensor([1.0, 20.0])
    consumer = make_consumer(inputs, torch.ones(2, 2), torch.arange(2))
    keep = torch.tensor([True, False])
    tuned = FisherPruning(damping=1e-6, max_scale=22).update_consumer(consumer, keep)
    torch.testing.assert_close(tuned.weight, torch.tensor([[21.0, 0.0]] * 2), rtol=1e-3, atol=0)
    plain = FisherPruning(damping=1e-6).update_consumer(consumer, keep)
    assert plain.weight.tolist() == [[1.0, 0.0]] * 2


# Direct comparison with dense least squares


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_of_ziplm_are_those_of_dense_least_squares(shape: str) -> None:
    case = make_case(SHAPES[shape])
    path = ZipLM(damping=DAMPING).rank_units(case.problem)
    for removed in range(case.problem.units + 1):
        exact = compute_exact_loss(case, path.keep(removed), DAMPING)
        assert float(path.losses[removed]) == pytest.approx(exact, rel=1e-4, abs=1e-6 * float(path.losses[-1]))


@settings(max_examples=40, deadline=None)
@given(
    units=st.integers(1, 7),
    widths=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    unused=st.integers(0, 2),
    parts=st.integers(1, 3),
    has_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_losses_and_repairs_are_exact_for_any_shape(
    units: int, widths: list[int], unused: int, parts: int, *, has_bias: bool, seed: int
) -> None:
    shape = Shape(units=units * parts, widths=widths, unused=unused, parts=parts, has_bias=has_bias)
    case = make_case(shape, seed)
    path = ZipLM(damping=0.05).rank_units(case.problem)
    removed = units * parts // 2
    keep = path.keep(removed)
    exact = compute_exact_loss(case, keep, 0.05)
    assert float(path.losses[removed]) == pytest.approx(exact, rel=1e-4, abs=1e-6 * float(path.losses[-1]))
    for consumer, inputs in zip(case.problem.consumers, case.inputs, strict=True):
        expected = fit(consumer, inputs, keep, 0.05)
        weight = ZipLM(damping=0.05).update_consumer(consumer, keep).weight.numpy()
        np.testing.assert_allclose(weight, expected.weight, rtol=1e-2, atol=1e-3 * np.abs(expected.weight).max())


def test_units_of_different_widths() -> None:
    """Some layers do not read all features of a unit, or none."""
    inputs, weight = realistic_inputs(50, 9), realistic_weight(3, 9)
    for unit_of in ([0, 0, 0, 1, -1, 2, 2, 3, 2], [3, 1, 1, 1, 1, 1, -1, 0, 0], [2] * 9):
        consumer = make_consumer(inputs[:, : len(unit_of)], weight, torch.tensor(unit_of))
        problem = UnitProblem(name="group", rule=KeepRule(units=4), consumers=[consumer] * 2, scores=torch.ones(4))
        case = Case(problem, [inputs, inputs])
        path = ZipLM(damping=DAMPING).rank_units(problem)
        for removed in range(5):
            exact = compute_exact_loss(case, path.keep(removed), DAMPING)
            assert float(path.losses[removed]) == pytest.approx(exact, rel=1e-4, abs=1e-6 * float(path.losses[-1]))
        keep = OSSCAR(damping=DAMPING).select_units(problem, path, 2)
        assert compute_exact_loss(case, keep, DAMPING) <= float(path.losses[2]) * (1 + 1e-4) + 1e-6


def test_a_bias_replaces_units_that_are_constant() -> None:
    inputs = torch.cat([torch.randn(40, 3), torch.full((40, 1), 50.0)], dim=1)
    consumer = make_consumer(inputs, torch.ones(2, 4), torch.arange(4), has_bias=True)
    problem = UnitProblem(name="group", rule=KeepRule(units=4), consumers=[consumer], scores=torch.ones(4))
    path = OSSCAR().rank_units(problem)
    assert path.order[0] == 3
    assert path.losses[1] == 0
    update = OSSCAR().update_consumer(consumer, path.keep(1))
    assert update.bias_change is not None
    torch.testing.assert_close(update.weight, torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2))
    torch.testing.assert_close(update.bias_change, torch.tensor([50.0, 50.0]), rtol=1e-4, atol=0)
    without = replace(problem, consumers=[replace(consumer, has_bias=False)])
    assert OSSCAR().rank_units(without).order[-1] == 3


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


@pytest.mark.parametrize("damping", [1e-3, 0.1, 1.0])
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


@pytest.mark.parametrize("has_bias", [False, True])
def test_repairs_fit_the_outputs_plus_a_correction(*, has_bias: bool) -> None:
    case = make_case(Shape(units=8, widths=(2,), has_bias=has_bias))
    [consumer], [inputs] = case.problem.consumers, case.inputs
    keep = torch.arange(8) % 3 != 1
    correction_NR = torch.randn(len(inputs), len(consumer.weight), generator=torch.Generator().manual_seed(0)) + 2
    products, mean = correction_NR.T @ inputs, correction_NR.mean(dim=0)
    update = ZipLM(damping=1e-6).update_consumer(replace(consumer, correction=products, correction_mean=mean), keep)
    kept_F = consumer.mask_features(keep)
    design = torch.cat([inputs[:, kept_F], torch.ones(len(inputs), 1)], dim=1)[:, : int(kept_F.sum()) + has_bias]
    target = inputs @ consumer.weight.T + correction_NR
    expected = torch.linalg.lstsq(design.double(), target.double()).solution.T.float()
    torch.testing.assert_close(update.weight[:, kept_F], expected[:, : int(kept_F.sum())], rtol=1e-2, atol=1e-2)
    assert not update.weight[:, ~kept_F].any()
    if has_bias:
        assert update.bias_change is not None
        torch.testing.assert_close(update.bias_change, expected[:, -1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("rows", "expected"), [(1, 1.0), (120, 0.3), (300, 0.12), (10**6, 0.01)])
def test_damping_depends_on_the_tokens_per_feature(rows: int, expected: float) -> None:
    [consumer] = make_case(SHAPES["neurons"]).problem.consumers
    assert choose_damping(replace(consumer, rows=rows), None) == pytest.approx(expected)
    assert choose_damping(replace(consumer, rows=rows), 0.5) == 0.5
    keep = torch.arange(12) > 5
    update = ZipLM().update_consumer(replace(consumer, rows=rows), keep)
    torch.testing.assert_close(update.weight, ZipLM(damping=expected).update_consumer(consumer, keep).weight)


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
    factors: dict[str, list[float]] = {"greedy": [], "exchanged": []}
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


def test_units_of_large_groups_are_not_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_hard_problem(seed=5)
    path = replace(OSSCAR().rank_units(problem), order=torch.arange(8))
    assert not torch.equal(OSSCAR().select_units(problem, path, 4), path.keep(4))
    assert torch.equal(OSSCAR(exchanges=0).select_units(problem, path, 4), path.keep(4))
    monkeypatch.setattr("secateur.solvers.osscar.MAX_EXCHANGED_UNITS", 7)
    assert torch.equal(OSSCAR().select_units(problem, path, 4), path.keep(4))


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZipLM(damping=0), "damping must be above 0, found 0"),
        (lambda: OSSCAR(damping=float("nan")), "damping must be above 0"),
        (lambda: OSSCAR(exchanges=-1), "exchanges must be at least 0, found -1"),
        (lambda: FisherPruning(max_scale=0), "damping and max_scale must be above 0, found 0.01 and 0"),
        (lambda: Ridge(damping=-1), "damping must be above 0, found -1"),
    ],
)
def test_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
