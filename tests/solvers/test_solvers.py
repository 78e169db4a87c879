"""Test all solvers with all patterns, and compare each algorithm with a direct transcription in NumPy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oneshot.problems import (
    CASES,
    Floats,
    count_weights_to_prune,
    fit_on_support,
    loss,
    make_problem,
    realistic_inputs,
    realistic_weight,
    spec_of,
)
from secateur._array import Array
from secateur.errors import CalibrationError, ConfigError, ScoreError
from secateur.patterns import NMPattern, register_pattern
from secateur.patterns.selection import Scores
from secateur.refiners import PCG
from secateur.solvers import ALPS, RIA, SOLVERS, Magnitude, Problem, Solution, Solver, SparseGPT, Wanda, alps
from secateur.solvers.gram import MAX_UNSPLIT_SIZE, conjugate_gradients, damp, factorize, factorize_inverse, invert

SHAPE = (8, 16)
"""Rows and features that fit every case."""

LAYER_SOLVERS = {name: kind for name, kind in sorted(SOLVERS.items()) if issubclass(kind, Solver)}
"""Solvers that prune weights of single layers; `test_unit_solvers` tests those that remove units of several layers."""

Bools = npt.NDArray[np.bool_]


def case_problem(case: str, seed: int = 0) -> tuple[Problem, torch.Tensor]:
    inputs = realistic_inputs(64, SHAPE[1], seed)
    return make_problem(realistic_weight(*SHAPE, seed), inputs, spec_of(case), CASES[case]), inputs


# Contracts


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_exact_counts_of_whole_units_are_pruned(name: str, case: str) -> None:
    problem, _ = case_problem(case)
    dense = problem.weight.clone()
    solution = LAYER_SOLVERS[name]().solve(problem)
    assert int((~solution.keep).sum()) == count_weights_to_prune(problem)
    assert not solution.weight[~solution.keep].any()
    assert torch.isfinite(solution.weight).all()
    selector = problem.layers[0].selector
    assert (
        selector.check(solution.keep.reshape(selector.view.shape), solution.weight.reshape(selector.view.shape)) is None
    )
    torch.testing.assert_close(problem.weight, dense, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_solvers_are_deterministic(name: str, case: str) -> None:
    first, second = (LAYER_SOLVERS[name]().solve(case_problem(case)[0]) for _ in range(2))
    torch.testing.assert_close(first.keep, second.keep, rtol=0, atol=0)
    torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_errors_are_at_most_those_of_magnitude(name: str, case: str) -> None:
    if case == "1xchannel" and LAYER_SOLVERS[name].needs == "norms":
        pytest.skip("norms of inputs do not predict the output energy of whole channels")
    for seed in range(3):
        problem, inputs = case_problem(case, seed)
        assert loss(problem, LAYER_SOLVERS[name]().solve(problem), inputs) <= loss(
            problem, Magnitude().solve(problem), inputs
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_conjugate_gradients_never_increase_the_error(name: str, case: str) -> None:
    problem, inputs = case_problem(case)
    solution = LAYER_SOLVERS[name]().solve(problem)
    refined = PCG().refine(problem, solution)
    assert refined.keep is solution.keep
    assert not refined.weight[~solution.keep].any()
    assert loss(problem, refined, inputs) <= loss(problem, solution, inputs) * (1 + 1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_the_reported_error_is_the_error_of_the_outputs(name: str, case: str) -> None:
    problem, inputs = case_problem(case)
    solution = LAYER_SOLVERS[name]().solve(problem)
    expected = loss(problem, solution, inputs)
    assert problem.errors_per_layer(solution.weight)["fc"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("spec", ["1x1", "4x1", "1xchannel", "channelx1", "2:4"])
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_nothing_or_everything_can_be_pruned(name: str, spec: str, sparsity: float) -> None:
    inputs, weight = realistic_inputs(64, 16), realistic_weight(8, 16)
    target = min(sparsity, 0.5) if ":" in spec else sparsity
    solution = LAYER_SOLVERS[name]().solve(make_problem(weight, inputs, spec, target))
    assert float(solution.keep.float().mean()) == 1 - target
    if target == 0:
        torch.testing.assert_close(solution.weight[0], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["1x1", "2:4", "1x4", "4x1"])
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_groups_of_a_convolution_are_independent(name: str, spec: str) -> None:
    inputs = torch.stack([realistic_inputs(64, 16, seed) for seed in range(2)])
    weight = torch.stack([realistic_weight(4, 16, seed) for seed in range(2)])
    problem = make_problem(weight, inputs, spec, 0.5)
    solution = LAYER_SOLVERS[name]().solve(problem)
    assert int((~solution.keep).sum()) == count_weights_to_prune(problem)
    assert loss(problem, solution, inputs) <= loss(problem, Magnitude().solve(problem), inputs)
    # SparseGPT selects all columns of grouped layers at the start, and ALPS iterates until all groups have converged.
    if spec == "2:4" and name not in ("alps", "sparsegpt"):
        separate = [
            LAYER_SOLVERS[name]().solve(make_problem(weight[index], inputs[index], spec, 0.5)) for index in range(2)
        ]
        torch.testing.assert_close(solution.keep, torch.cat([result.keep for result in separate]), rtol=0, atol=0)
        torch.testing.assert_close(
            solution.weight, torch.cat([result.weight for result in separate]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_the_dense_weights_are_not_modified(name: str) -> None:
    """A single row has the same memory layout as a single column, so a transpose may be a view."""
    for rows in (1, 2):
        weight = realistic_weight(rows, 16)
        problem = make_problem(weight, realistic_inputs(64, 16))
        LAYER_SOLVERS[name]().solve(problem)
        torch.testing.assert_close(problem.weight[0], weight, rtol=0, atol=0)


def test_a_converged_row_does_not_change() -> None:
    """After convergence the residual is only rounding error, and following it would diverge."""
    inputs = realistic_inputs(64, 16) * 1e-6
    problem = make_problem(realistic_weight(8, 16), inputs)
    solution = Wanda().solve(problem)
    few, many = (PCG(iterations=count).refine(problem, solution) for count in (20, 500))
    torch.testing.assert_close(few.weight, many.weight, rtol=1e-3, atol=1e-4)


# Degenerate inputs


def degenerate(kind: str) -> torch.Tensor:
    inputs = realistic_inputs(64, 16)
    if kind == "dead features":
        inputs[:, [0, 5, 6, 7]] = 0
    elif kind == "fewer tokens than features":
        inputs = inputs[:5]
    elif kind == "one token":
        inputs = inputs[:1]
    elif kind == "all zero":
        inputs = torch.zeros(64, 16)
    elif kind == "equal features":
        inputs[:, 1::2] = inputs[:, ::2]
    return inputs * {"huge": 1e6, "tiny": 1e-6}.get(kind, 1.0)


DEGENERATE = (
    "dead features",
    "fewer tokens than features",
    "one token",
    "all zero",
    "equal features",
    "huge",
    "tiny",
)


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("spec", ["1x1", "4x1", "2:4", "channelx1"])
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_degenerate_inputs(name: str, spec: str, kind: str) -> None:
    inputs = degenerate(kind)
    problem = make_problem(realistic_weight(8, 16), inputs, spec, 0.5)
    solution = LAYER_SOLVERS[name]().solve(problem)
    assert int((~solution.keep).sum()) == count_weights_to_prune(problem)
    assert torch.isfinite(solution.weight).all()
    if kind != "all zero":
        assert loss(problem, solution, inputs) <= loss(problem, Magnitude().solve(problem), inputs) * 1.0001
    refined = PCG(iterations=200).refine(problem, solution)
    assert torch.isfinite(refined.weight).all()
    if kind != "all zero":
        assert loss(problem, refined, inputs) <= loss(problem, solution, inputs) * (1 + 1e-4) + 1e-9


def test_dead_features_are_pruned_first() -> None:
    inputs = degenerate("dead features")
    weight = realistic_weight(8, 16)
    for solver in (Wanda(), RIA(), ALPS()):
        solution = solver.solve(make_problem(weight, inputs, "channelx1", 0.25))
        assert (~solution.keep[0]).any(dim=0).nonzero().flatten().tolist() == [0, 5, 6, 7], solver


@pytest.mark.parametrize("name", sorted(set(LAYER_SOLVERS) - {"magnitude"}))
def test_nan_is_refused(name: str) -> None:
    problem, _ = case_problem("1x1")
    broken = replace(problem, norms=problem.norms * torch.nan, gram=problem.known_gram * torch.nan)
    with pytest.raises((ScoreError, CalibrationError, RuntimeError)):
        LAYER_SOLVERS[name]().solve(broken)


@pytest.mark.parametrize("compute", [factorize, factorize_inverse])
def test_an_indefinite_matrix_is_refused(compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(CalibrationError, match="not positive definite, even damped by 10 %"):
        compute(-torch.eye(4)[None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseGPT(damping=0), "damping must be above 0"),
        (lambda: SparseGPT(columns=0), "columns at least 1"),
        (lambda: SparseGPT(damping=float("nan")), "damping must be above 0"),
        (lambda: RIA(power=-1), "power must be at least 0, found -1"),
        (lambda: ALPS(iterations=0), "iterations must be at least 1"),
        (lambda: PCG(iterations=0), "iterations must be at least 1, found 0"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# Direct transcriptions in NumPy, in float64


def keep_by_row(scores: Floats, pruned: int) -> Bools:
    """Prune the lowest scores of every row."""
    keep = np.ones(scores.shape, dtype=bool)
    np.put_along_axis(keep, np.argsort(scores, axis=1)[:, :pruned], values=False, axis=1)
    return keep


def keep_by_layer(scores: Floats, pruned: int) -> Bools:
    keep = np.ones(scores.size, dtype=bool)
    keep[np.argsort(scores, axis=None)[:pruned]] = False
    return keep.reshape(scores.shape)


def keep_by_group(scores: Floats, keep: int, size: int) -> Bools:
    return keep_by_row(scores.reshape(-1, size), size - keep).reshape(scores.shape)


def small() -> tuple[Floats, Floats, Problem]:
    weight, inputs = realistic_weight(6, 8, seed=3), realistic_inputs(40, 8, seed=3)
    return weight.double().numpy(), inputs.double().numpy(), make_problem(weight, inputs)


def with_pattern(spec: str, sparsity: float) -> Problem:
    return make_problem(realistic_weight(6, 8, seed=3), realistic_inputs(40, 8, seed=3), spec, sparsity)


def test_wanda() -> None:
    weight_RF, inputs_NF, problem = small()
    scores_RF = np.abs(weight_RF) * np.linalg.norm(inputs_NF, axis=0)
    np.testing.assert_array_equal(Wanda().solve(problem).keep[0].numpy(), keep_by_row(scores_RF, 4))
    grouped = Wanda().solve(with_pattern("2:4", 0.5)).keep[0].numpy()
    np.testing.assert_array_equal(grouped, keep_by_group(scores_RF, 2, 4))
    blocks = Wanda().solve(with_pattern("2x1", 0.5)).keep[0].numpy()
    expected = keep_by_row(scores_RF.reshape(3, 2, 8).sum(axis=1), 4)
    np.testing.assert_array_equal(blocks, expected.repeat(2, axis=0))


def test_wanda_prunes_rows_evenly_even_if_the_count_is_not_divisible() -> None:
    keep = Wanda().solve(with_pattern("1x1", 21 / 48)).keep[0]
    assert sorted((~keep).sum(dim=1).tolist()) == [3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_ria(power: float) -> None:
    weight_RF, inputs_NF, problem = small()
    size_RF = np.abs(weight_RF)
    relative_RF = size_RF / size_RF.sum(axis=0, keepdims=True) + size_RF / size_RF.sum(axis=1, keepdims=True)
    scores_RF = relative_RF * np.linalg.norm(inputs_NF, axis=0) ** power
    solver = RIA(power=power)
    np.testing.assert_array_equal(solver.solve(problem).keep[0].numpy(), keep_by_layer(scores_RF, 24))
    grouped = solver.solve(with_pattern("2:4", 0.5)).keep[0].numpy()
    np.testing.assert_array_equal(grouped, keep_by_group(scores_RF, 2, 4))


def test_layers_that_share_inputs_are_pruned_separately() -> None:
    inputs = realistic_inputs(64, 16)
    separate = [make_problem(realistic_weight(8, 16, seed) * scale, inputs) for seed, scale in ((0, 1.0), (1, 50.0))]
    rows = {"a": (0, 8), "b": (8, 16)}
    layers = [replace(part.layers[0], name=name, rows=rows[name]) for name, part in zip(rows, separate, strict=True)]
    together = replace(separate[0], weight=torch.cat([part.weight for part in separate], dim=1), layers=layers)
    for solver in (RIA(), Wanda(), Magnitude(), SparseGPT()):
        expected = torch.cat([solver.solve(part).keep for part in separate], dim=1)
        torch.testing.assert_close(solver.solve(together).keep, expected, rtol=0, atol=0)


def eliminate_columns(weight_RF: Floats, gram_FF: Floats, choose: Callable[[Floats, int], Bools], step: int) -> Floats:
    """Run optimal brain surgeon column by column, inverting the remaining matrix each time."""
    weight_RF, width = weight_RF.copy(), weight_RF.shape[1]
    keep_RF = np.ones(weight_RF.shape, dtype=bool)
    for column in range(width):
        if column % step == 0:
            diagonal = [np.linalg.inv(gram_FF[index:, index:])[0, 0] for index in range(column, column + step)]
            keep_RF[:, column : column + step] = choose(weight_RF[:, column : column + step] ** 2 / diagonal, column)
        inverse_FF = np.linalg.inv(gram_FF[column:, column:])
        removed_R = weight_RF[:, column] * ~keep_RF[:, column]
        weight_RF[:, column:] -= np.outer(removed_R / inverse_FF[0, 0], inverse_FF[0])
    return weight_RF * keep_RF


def damped_gram(inputs_NF: Floats, share: float) -> Floats:
    gram_FF = inputs_NF.T @ inputs_NF
    return gram_FF + share * np.diag(gram_FF).mean() * np.eye(len(gram_FF))


@pytest.mark.parametrize(
    ("spec", "columns", "step", "choose"),
    [
        ("1x1", 128, 8, lambda scores, _: keep_by_layer(scores, 24)),
        ("1x1", 4, 4, lambda scores, _: keep_by_layer(scores, 12)),
        ("1x1", 1, 1, lambda scores, _: keep_by_layer(scores, 3)),
        ("2:4", 128, 4, lambda scores, _: keep_by_group(scores, 2, 4)),
        ("1:4", 8, 4, lambda scores, _: keep_by_group(scores, 1, 4)),
    ],
)
def test_sparsegpt(spec: str, columns: int, step: int, choose: Callable[[Floats, int], Bools]) -> None:
    weight_RF, inputs_NF, _ = small()
    expected = eliminate_columns(weight_RF, damped_gram(inputs_NF, 0.01), choose, step)
    solution = SparseGPT(columns=columns).solve(with_pattern(spec, 0.75 if spec == "1:4" else 0.5))
    np.testing.assert_array_equal(solution.keep[0].numpy(), expected != 0)
    np.testing.assert_allclose(solution.weight[0].numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 5, 16, 40, 128])
def test_sparsegpt_propagates_errors_across_strips(columns: int) -> None:
    """There are more columns than in a strip. The mask is fixed, so only the corrections are compared."""
    weight, inputs = realistic_weight(4, 48, seed=1), realistic_inputs(200, 48, seed=1)
    problem = make_problem(weight, inputs)
    solution = SparseGPT(columns=columns).solve(problem)
    keep_RF = solution.keep[0].numpy()
    gram_FF = damped_gram(inputs.double().numpy(), 0.01)
    expected = eliminate_columns(weight.double().numpy(), gram_FF, lambda _, column: keep_RF[:, column : column + 1], 1)
    np.testing.assert_allclose(solution.weight[0].numpy(), expected, rtol=2e-3, atol=1e-3)


def run_admm(
    weight_RF: Floats, inputs_NF: Floats, choose: Callable[[Floats], Bools], iterations: int
) -> tuple[Bools, Floats]:
    """Run algorithm 1 of the paper with our schedule of rho; returns the support, and D for the unscaled inputs."""
    gram_FF = damped_gram(inputs_NF, 1e-4)
    scale_F = np.sqrt(np.diag(gram_FF))
    gram_FF = gram_FF / np.outer(scale_F, scale_F)
    dense_RF = weight_RF * scale_F
    copy_RF, multiplier_RF, rho = dense_RF, np.zeros_like(dense_RF), alps.FIRST_RHO
    keep_RF = last_RF = np.zeros(dense_RF.shape, dtype=bool)
    for iteration in range(1, iterations + 1):
        right_RF = dense_RF @ gram_FF - multiplier_RF + rho * copy_RF
        solved_RF = right_RF @ np.linalg.inv(gram_FF + rho * np.eye(len(gram_FF)))
        wanted_RF = solved_RF + multiplier_RF / rho
        keep_RF = choose(wanted_RF**2)
        copy_RF = wanted_RF * keep_RF
        multiplier_RF = multiplier_RF + rho * (solved_RF - copy_RF)
        if iteration % alps.RHO_INTERVAL == 0:
            changed = (keep_RF & ~last_RF).sum() / keep_RF.sum()
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 else 1.2 if changed >= 0.005 else 1.1
            last_RF = keep_RF
    return keep_RF, copy_RF / scale_F


@pytest.mark.parametrize(
    ("spec", "choose"),
    [("1x1", lambda scores: keep_by_layer(scores, 24)), ("2:4", lambda scores: keep_by_group(scores, 2, 4))],
)
def test_alps(spec: str, choose: Callable[[Floats], Bools]) -> None:
    weight_RF, inputs_NF, _ = small()
    expected, _ = run_admm(weight_RF, inputs_NF, choose, iterations=300)
    solution = ALPS(tolerance=0.0, refinement=100).solve(with_pattern(spec, 0.5))
    np.testing.assert_array_equal(solution.keep[0].numpy(), expected)
    fitted = np.stack([fit_on_support(keep, row, inputs_NF) for keep, row in zip(expected, weight_RF, strict=True)])
    error, best = (
        np.square(inputs_NF @ (weight - weight_RF).T).sum() for weight in (solution.weight[0].numpy(), fitted)
    )
    assert best * (1 - 1e-4) <= error <= best * 1.02


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 8])
def test_each_iteration_of_alps(iterations: int) -> None:
    weight_RF, inputs_NF, problem = small()
    _, expected = run_admm(weight_RF, inputs_NF, lambda scores: keep_by_layer(scores, 24), iterations)
    weight = ALPS(tolerance=0.0, refinement=0, iterations=iterations).solve(problem).weight[0].numpy()
    np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_conjugate_gradients_converge_to_least_squares(name: str) -> None:
    weight_RF, inputs_NF, problem = small()
    solution = LAYER_SOLVERS[name]().solve(problem)
    refined = PCG(iterations=50).refine(problem, solution).weight[0].numpy()
    for row, keep, fitted in zip(weight_RF, solution.keep[0].numpy(), refined, strict=True):
        best = np.linalg.norm(inputs_NF @ (fit_on_support(keep, row, inputs_NF) - row))
        assert np.linalg.norm(inputs_NF @ (fitted - row)) == pytest.approx(best, rel=1e-3, abs=1e-3)


def test_the_error_never_increases_with_iterations() -> None:
    problem, inputs = case_problem("1x1")
    solution = Magnitude().solve(problem)
    arguments = (problem.known_gram, problem.weight, solution.weight, solution.keep)
    errors = [
        loss(problem, Solution(weight=conjugate_gradients(*arguments, iterations=count), keep=solution.keep), inputs)
        for count in range(40)
    ]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("width", [1, 5, 33, MAX_UNSPLIT_SIZE + 1, 3 * MAX_UNSPLIT_SIZE])
def test_inverse_factor(width: int) -> None:
    inputs = realistic_inputs(100, width + width % 2)[:, :width]
    matrix = damp((inputs.T @ inputs)[None].repeat(2, 1, 1), 0.01)
    factor = factorize_inverse(matrix)
    assert (factor == factor.triu()).all()
    product_with_inverse = (factor.transpose(1, 2) @ factor).double() @ matrix.double()
    torch.testing.assert_close(product_with_inverse, torch.eye(width).double().expand(2, -1, -1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("width", [5, 3 * MAX_UNSPLIT_SIZE])
def test_inverse(width: int) -> None:
    inputs = realistic_inputs(2 * width, width).double()
    matrix = damp((inputs.T @ inputs)[None], 0.01)
    expected = np.linalg.inv(matrix[0].numpy())
    torch.testing.assert_close(invert(matrix)[0].numpy(), expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_a_matrix_is_damped_until_it_can_be_factorized() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1e-5]))
    lower = factorize(matrix[None])[0]
    torch.testing.assert_close((lower @ lower.T)[:3, :3], torch.eye(3), rtol=1e-3, atol=0)
    assert 0 < float(lower[3, 3]) < 0.01


def test_a_matrix_that_is_not_positive_in_its_second_half_is_damped() -> None:
    matrix = torch.eye(3 * MAX_UNSPLIT_SIZE)
    matrix[-1, -1] = -1e-5
    factor = factorize_inverse(matrix[None])[0]
    assert bool(torch.isfinite(factor).all())
    assert float(factor[-1, -1]) > 1


def test_damping() -> None:
    gram = torch.diag(torch.tensor([1.0, 3.0]))[None]
    torch.testing.assert_close(damp(gram, 0.5), torch.diag(torch.tensor([2.0, 4.0]))[None])
    torch.testing.assert_close(damp(torch.zeros(1, 2, 2), 0.5), torch.eye(2)[None])
    assert gram[0].trace() == 4, "the argument is not modified"


# Brute force


def list_supports(spec: str, width: int) -> Iterator[Bools]:
    """Yield every mask of one row with a sparsity of 0.5 that fits the pattern."""
    size = 4 if spec == "2:4" else width
    choices = [np.isin(np.arange(size), chosen) for chosen in combinations(range(size), size // 2)]
    for several in product(choices, repeat=width // size):
        yield np.concatenate(several)


@pytest.mark.parametrize("spec", ["1x1", "2:4"])
@pytest.mark.parametrize(("name", "max_factor"), [("alps", 1.2), ("sparsegpt", 1.6)])
def test_errors_are_close_to_the_best_of_all_masks(name: str, max_factor: float, spec: str) -> None:
    """After the repair, the error is never below the minimum, and its mean is not far above."""
    factors = []
    for seed in range(20):
        weight, inputs = realistic_weight(1, 8, seed), realistic_inputs(40, 8, seed)
        row, inputs_NF = weight[0].double().numpy(), inputs.double().numpy()
        fitted = (fit_on_support(support, row, inputs_NF) for support in list_supports(spec, 8))
        best = min(np.square(inputs_NF @ (weight - row)).sum() for weight in fitted) / np.square(inputs_NF @ row).sum()
        problem = make_problem(weight, inputs, spec)
        factors.append(
            loss(problem, PCG(iterations=50).refine(problem, LAYER_SOLVERS[name]().solve(problem)), inputs) / best
        )
    assert min(factors) >= 1 - 1e-4
    assert np.exp(np.log(factors).mean()) <= max_factor


# Custom solvers


class Last(Solver):
    """Keeps the last weights."""

    needs = "nothing"

    def solve(self, problem: Problem) -> Solution:
        keep = problem.select(torch.arange(problem.weight.numel(), dtype=torch.float32).reshape(problem.weight.shape))
        return Solution(weight=problem.weight * keep, keep=keep)


@pytest.mark.parametrize("case", CASES)
def test_a_custom_solver_supports_every_pattern(case: str) -> None:
    problem, _ = case_problem(case)
    solution = Last().solve(problem)
    assert int((~solution.keep).sum()) == count_weights_to_prune(problem)


class FirstOfGroup(NMPattern):
    """Keeps the first two of four."""

    def select(self, scores: Mapping[str, Scores], sparsity: float | None = None) -> dict[str, Array]:  # noqa: ARG002
        return {name: np.arange(layer.count) % 4 < 2 for name, layer in scores.items()}

    def _parse_specification(self) -> tuple[int, int]:
        return 2, 4


@pytest.mark.usefixtures("registries_restored")
@pytest.mark.parametrize("name", LAYER_SOLVERS)
def test_a_subclass_of_a_pattern_selects_the_weights(name: str) -> None:
    register_pattern("first of group")(FirstOfGroup)
    problem = make_problem(realistic_weight(*SHAPE), realistic_inputs(64, SHAPE[1]), "first of group")
    assert torch.equal(LAYER_SOLVERS[name]().solve(problem).keep[0, 0], torch.arange(SHAPE[1]) % 4 < 2)


def test_deprecated_names_of_select() -> None:
    problem = make_problem(torch.randn(4, 8), torch.randn(64, 8), "4x1")
    scores = problem.weight.abs()
    with pytest.deprecated_call(match=r"Problem.keep is deprecated. Use Problem.select."):
        assert torch.equal(problem.keep(scores), problem.select(scores))
    with pytest.deprecated_call(match=r"Problem.keep_of_rows is deprecated. Use Problem.select_per_row."):
        assert torch.equal(problem.keep_of_rows(scores), problem.select_per_row(scores))
