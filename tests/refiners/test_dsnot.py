"""DSnoT against its formulas, row by row, and in runs."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import secateur
from oneshot.problems import make_problem, realistic_inputs, realistic_weight
from secateur.errors import CalibrationError, ConfigError
from secateur.refiners import DSnoT
from secateur.solvers import SparseGPT, Wanda
from secateur.solvers.problem import Problem, Solution

Floats = npt.NDArray[np.float64]


def problem_of(spec: str, sparsity: float, seed: int = 0, rows: int = 6, features: int = 16) -> tuple[Problem, Any]:
    """Return a problem with means and variances, and its inputs, whose means are not zero."""
    inputs = realistic_inputs(64, features, seed)
    inputs += inputs.std(dim=0) * torch.linspace(-1, 2, features)
    problem = make_problem(realistic_weight(rows, features, seed), inputs, spec, sparsity)
    means, variances = inputs.mean(dim=0)[None], inputs.var(dim=0, correction=0)[None]
    return replace(problem, means=means, variances=variances), inputs


def exchange_row(
    settings: DSnoT, dense: Floats, row: Floats, keep: Any, statistics: list[Floats], group: int
) -> tuple[Any, float]:
    """Return the mask and the error of one row after all exchanges, in the plainest form."""
    means, variances, norms = statistics
    keep = list(keep)
    restored: set[int] = set()
    pruned: set[int] = set()
    error = float((dense - row) @ means)
    limit = settings.tolerance * abs(error)
    for _ in range(settings.cycles):
        if error == 0 or (len(restored) and abs(error) <= limit):
            break
        sign = np.sign(error)
        grow = [i for i in range(len(row)) if not keep[i] and i not in pruned]
        if not grow:
            break
        best = max(grow, key=lambda i: sign * dense[i] * means[i] / variances[i] ** settings.variance_power)
        if sign * dense[best] * means[best] <= 0:
            break
        drop = [j for j in range(len(row)) if keep[j] and j not in restored]
        if group:
            drop = [j for j in drop if j // group == best // group]
        else:
            drop = [j for j in drop if sign * row[j] * means[j] < 0]
        if not drop:
            break
        worst = min(drop, key=lambda j: abs(row[j]) * norms[j])
        after = error - dense[best] * means[best] + row[worst] * means[worst]
        if not abs(after) < abs(error):
            break
        keep[best], keep[worst], error = True, False, after
        restored.add(best)
        pruned.add(worst)
    return keep, error


@pytest.mark.parametrize(
    ("spec", "sparsity", "group"), [("1x1", 0.5, 0), ("1x1", 0.8, 0), ("2:4", 0.5, 4), ("2:8", 0.75, 8)]
)
@pytest.mark.parametrize("solver", [Wanda(), SparseGPT()], ids=lambda solver: type(solver).__name__)
@given(
    seed=st.integers(0, 99),
    cycles=st.sampled_from([1, 3, 50]),
    tolerance=st.sampled_from([0.0, 0.1]),
    power=st.sampled_from([0.0, 1.0]),
)
def test_exchanges_equal_the_formulas(
    solver: Any, spec: str, sparsity: float, group: int, seed: int, cycles: int, tolerance: float, power: float
) -> None:
    settings = DSnoT(cycles=cycles, tolerance=tolerance, variance_power=power)
    problem, _ = problem_of(spec, sparsity, seed)
    solution = solver.solve(problem)
    refined = settings.refine(problem, solution)
    assert problem.means is not None
    assert problem.variances is not None
    statistics = [values[0].double().numpy() for values in (problem.means, problem.variances, problem.norms)]
    for row in range(problem.weight.shape[1]):
        dense, weights, keep = (
            values[0, row].numpy() for values in (problem.weight.double(), solution.weight.double(), solution.keep)
        )
        expected, error = exchange_row(settings, dense, weights, keep, statistics, group)
        assert refined.keep[0, row].tolist() == expected
        assert abs((dense - refined.weight[0, row].double().numpy()) @ statistics[0]) == pytest.approx(
            abs(error), rel=1e-4, abs=1e-4 * float(np.abs(dense * statistics[0]).sum())
        )
        assert abs(error) <= abs((dense - weights) @ statistics[0]) + 1e-9


def test_counts_stay_and_restored_weights_are_dense() -> None:
    problem, _ = problem_of("2:4", 0.5)
    solution = SparseGPT().solve(problem)
    refined = DSnoT().refine(problem, solution)
    assert (refined.keep.reshape(-1, 4).sum(-1) == 2).all()
    assert (refined.keep != solution.keep).any()
    restored, both = refined.keep & ~solution.keep, refined.keep & solution.keep
    assert torch.equal(refined.weight[restored], problem.weight[restored])
    assert torch.equal(refined.weight[both], solution.weight[both])
    assert not refined.weight[~refined.keep].any()
    assert torch.equal(solution.keep, SparseGPT().solve(problem).keep)


def test_a_row_without_error_stays() -> None:
    problem, _ = problem_of("1x1", 0.5)
    problem = replace(problem, means=torch.zeros_like(problem.norms))
    solution = Wanda().solve(problem)
    assert torch.equal(DSnoT().refine(problem, solution).keep, solution.keep)


@pytest.mark.parametrize("config", [{"pattern": "1x1", "target_sparsity": 0.6}, {"pattern": "2:4"}], ids=str)
def test_a_run_matches_expected_outputs(config: Any) -> None:
    inputs = [realistic_inputs(32, 16, seed) + 3.0 for seed in range(3)]
    layers = {}
    for refine in ((), "dsnot", ("dsnot", "pcg")):
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 8)
        dense = layer.weight.detach().clone()
        report = secateur.prune(layer, config, calibration=inputs, solver="wanda", refine=refine)
        layers[refine] = ((dense - layer.weight) @ torch.cat(inputs).mean(dim=0)).abs().mean().item()
        assert report.sparsity == pytest.approx(0.5 if config["pattern"] == "2:4" else 0.6, abs=0.01)
    assert layers["dsnot"] < (0.6 if config["pattern"] == "1x1" else 0.9) * layers[()]


def test_means_and_variances_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Problem] = []
    refine = DSnoT.refine

    def record(self: DSnoT, problem: Problem, solution: Solution) -> Solution:
        seen.append(problem)
        return refine(self, problem, solution)

    monkeypatch.setattr(DSnoT, "refine", record)
    inputs = [realistic_inputs(32, 16, seed) for seed in range(3)]
    secateur.prune(torch.nn.Linear(16, 8), {"pattern": "2:4"}, calibration=inputs, solver="wanda", refine="dsnot")
    (problem,) = seen
    rows = torch.cat(inputs)
    assert problem.gram is None
    torch.testing.assert_close(problem.means, rows.mean(dim=0)[None], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(problem.variances, rows.var(dim=0, correction=0)[None], rtol=1e-3, atol=1e-3)


def test_other_patterns_and_unknown_means_are_errors() -> None:
    problem, _ = problem_of("4x1", 0.5, rows=8)
    with pytest.raises(ConfigError, match=r"layer 'fc': DSnoT exchanges single weights.*found '4x1'"):
        DSnoT().refine(problem, Wanda().solve(problem))
    problem = replace(problem, means=None)
    with pytest.raises(CalibrationError, match="layer 'fc': DSnoT needs the means"):
        DSnoT().refine(problem, Wanda().solve(problem))


@pytest.mark.parametrize("settings", [{"cycles": 0}, {"tolerance": 1.0}, {"variance_power": -1.0}], ids=str)
def test_settings_out_of_range(settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"cycles must be at least 1, tolerance in \[0, 1\)"):
        DSnoT(**settings)


def test_shares_give_rows_different_counts() -> None:
    problem, _ = problem_of("1x1", 0.5, rows=12)
    solution = Wanda(by_share=True).solve(problem)
    scores = (problem.weight.abs() * problem.norms[:, None])[0].double().numpy()
    shares = np.empty_like(scores)
    for row, values in enumerate(scores):
        for column, value in enumerate(values):
            shares[row, column] = values[values <= value].sum() / values.sum()
    order = np.argsort(shares.reshape(-1), kind="stable")
    expected = np.ones(shares.size, bool)
    expected[order[: shares.size // 2]] = False
    assert solution.keep[0].numpy().reshape(-1).tolist() == expected.tolist()
    assert len(set(solution.keep[0].sum(-1).tolist())) > 1
