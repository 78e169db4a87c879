"""Swap against brute force: no exchange of two units may improve what it returns, and nothing may get worse."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from oneshot.problems import CASES, batches, make_problem, realistic_inputs, realistic_weight, spec_of
from secateur.errors import ConfigError
from secateur.patterns import NMPattern
from secateur.patterns.base import PATTERNS
from secateur.refiners import PCG, Swap
from secateur.solvers import ALPS, Magnitude, SparseGPT, Wanda
from secateur.solvers.problem import Problem, Solution

Floats = npt.NDArray[np.float64]
CONVERGED = Swap(sweeps=100)


def problem_of(case: str, seed: int = 0, rows: int = 8, features: int = 16) -> Problem:
    return make_problem(
        realistic_weight(rows, features, seed), realistic_inputs(64, features, seed), spec_of(case), CASES[case]
    )


def row_errors(problem: Problem, weight: torch.Tensor) -> Floats:
    """Return the squared error of each row, in float64."""
    lost = (problem.weight - weight)[0].double()
    return ((lost @ problem.known_gram[0].double()) * lost).sum(dim=1).numpy()


def units_of(case: str, rows: int, features: int) -> tuple[int, int, int]:
    """Return the output channels and features of a unit, and how many consecutive units can be exchanged."""
    spec = spec_of(case)
    if ":" in spec:
        return 1, 1, int(spec.split(":")[1])
    outputs, inputs = (
        full if size == "channel" else int(size) for size, full in zip(spec.split("x"), (rows, features), strict=True)
    )
    return outputs, inputs, features // inputs


def exchange_gains(problem: Problem, weight: Floats, keep: Any, case: str, unit: tuple[int, int]) -> dict[int, float]:
    """Return by how much the error decreases with each unit in place of a kept one, by least squares."""
    outputs, inputs, span = units_of(case, *keep.shape)
    row, column = unit
    rows = slice(row * outputs, (row + 1) * outputs)
    gram, dense = problem.known_gram[0].double().numpy(), problem.weight[0].double().numpy()[rows]
    before = dense - weight[rows]
    gains = {}
    for other in range(column // span * span, column // span * span + span):
        columns = slice(other * inputs, (other + 1) * inputs)
        if keep[rows, columns].any():
            continue
        lost = before.copy()
        removed = slice(column * inputs, (column + 1) * inputs)
        lost[:, removed] = dense[:, removed]
        best = np.linalg.lstsq(gram[columns, columns], (lost @ gram)[:, columns].T, rcond=None)[0].T
        lost[:, columns] -= best
        gains[other] = float(((before @ gram) * before).sum() - ((lost @ gram) * lost).sum())
    return gains


def kept_units(keep: Any, case: str) -> list[tuple[int, int]]:
    outputs, inputs, _ = units_of(case, *keep.shape)
    grid = product(range(keep.shape[0] // outputs), range(keep.shape[1] // inputs))
    return [(row, column) for row, column in grid if keep[row * outputs, column * inputs]]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=4)
@given(seed=st.integers(0, 99), solver=st.sampled_from([Wanda(), SparseGPT(), ALPS(), Magnitude()]))
def test_no_exchange_improves_the_result_and_no_row_gets_worse(case: str, seed: int, solver: Any) -> None:
    problem = problem_of(case, seed)
    solution = solver.solve(problem)
    refined = CONVERGED.refine(problem, solution)
    weight, keep = refined.weight[0].double().numpy(), refined.keep[0].numpy()
    total = row_errors(problem, torch.zeros_like(problem.weight)).sum()
    for unit in kept_units(keep, case):
        gains = exchange_gains(problem, weight, keep, case, unit)
        assert max(gains.values(), default=0.0) < 1e-4 * total
    outputs, _, _ = units_of(case, *keep.shape)
    before, after = (row_errors(problem, item.weight).reshape(-1, outputs).sum(1) for item in (solution, refined))
    assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.parametrize("case", CASES)
def test_counts_stay_exact_in_each_row_and_masks_fit_the_pattern(case: str) -> None:
    problem = problem_of(case)
    solution = Magnitude().solve(problem)
    refined = Swap().refine(problem, solution)
    selector = problem.layers[0].selector
    shape = selector.view.shape
    assert selector.check(refined.keep.reshape(shape), refined.weight.reshape(shape)) is None
    assert not refined.weight[~refined.keep].any()
    outputs, _, _ = units_of(case, *shape[::2])
    counts = [item.keep[0].reshape(-1, outputs, shape[2]).sum(dim=(1, 2)).tolist() for item in (solution, refined)]
    assert counts[0] == counts[1]
    can_exchange = case != "1xchannel"
    assert bool((refined.keep != solution.keep).any()) is can_exchange


@settings(max_examples=20)
@given(seed=st.integers(0, 999), case=st.sampled_from(["1x1", "2:4", "4x1", "2x2"]))
def test_a_sweep_equals_the_plainest_search(seed: int, case: str) -> None:
    problem = problem_of(case, seed)
    solution = Wanda().solve(problem)
    weight, keep = solution.weight[0].double().numpy(), solution.keep[0].numpy().copy()
    outputs, inputs, _ = units_of(case, *keep.shape)
    gram, dense = problem.known_gram[0].double().numpy(), problem.weight[0].double().numpy()
    for column in range(keep.shape[1] // inputs):
        for row in range(keep.shape[0] // outputs):
            rows, own = slice(row * outputs, (row + 1) * outputs), slice(column * inputs, (column + 1) * inputs)
            gains = exchange_gains(problem, weight, keep, case, (row, column)) if keep[rows, own].all() else {}
            if max(gains.values(), default=0.0) <= 0:
                continue
            chosen = max(gains, key=lambda other: gains[other])
            columns = slice(chosen * inputs, (chosen + 1) * inputs)
            weight[rows, own], keep[rows, own], keep[rows, columns] = 0, False, True
            target = ((dense - weight)[rows] @ gram)[:, columns].T
            weight[rows, columns] = np.linalg.solve(gram[columns, columns], target).T
    refined = Swap(sweeps=1, refit=0).refine(problem, solution)
    assert refined.keep[0].tolist() == keep.tolist()
    np.testing.assert_allclose(refined.weight[0].numpy(), weight, rtol=1e-3, atol=1e-4)


def test_features_that_are_always_zero_are_pruned_first() -> None:
    inputs = realistic_inputs(64, 16)
    inputs[:, ::2] = 0
    problem = make_problem(realistic_weight(4, 16), inputs, "1x1", 0.5)
    keep = torch.zeros_like(problem.weight, dtype=torch.bool)
    keep[..., ::2] = True
    refined = CONVERGED.refine(problem, Solution(weight=problem.weight * keep, keep=keep))
    assert torch.equal(refined.keep, ~keep)
    torch.testing.assert_close(refined.weight[refined.keep], problem.weight[refined.keep], rtol=1e-2, atol=1e-2)


def test_what_cannot_be_improved_stays_bit_for_bit() -> None:
    problem = problem_of("2:4")
    solution = Wanda().solve(problem)
    whole = Solution(weight=problem.weight, keep=torch.ones_like(solution.keep))
    assert torch.equal(Swap().refine(problem, whole).weight, problem.weight)
    first = CONVERGED.refine(problem, solution)
    assert torch.equal(Swap(refit=0).refine(problem, first).weight, first.weight)


def test_layers_of_one_problem_are_refined_as_if_alone() -> None:
    inputs, weight = realistic_inputs(64, 16), realistic_weight(12, 16)
    parts = [make_problem(weight[:4], inputs, "4x1", 0.5), make_problem(weight[4:], inputs, "2:4", 0.5)]
    layers = [parts[0].layers[0], type(parts[1].layers[0])(**(vars(parts[1].layers[0]) | {"rows": (4, 12)}))]
    both = Problem(weight=weight[None], norms=parts[0].norms, gram=parts[0].gram, layers=layers)
    joint = Swap().refine(both, Wanda().solve(both))
    alone = [Swap().refine(part, Wanda().solve(part)) for part in parts]
    assert torch.equal(joint.keep, torch.cat([part.keep for part in alone], dim=1))
    torch.testing.assert_close(joint.weight, torch.cat([part.weight for part in alone], dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("config", "gain"), [({"pattern": "2:4"}, 0.98), ({"pattern": "1x1", "target_sparsity": 0.6}, 0.95)], ids=str
)
def test_a_run_loses_less_than_fitting_alone(config: Any, gain: float, dtype: torch.dtype) -> None:
    errors = []
    for refine in ("pcg", ("swap", "pcg"), ("swap", "pcg")):
        torch.manual_seed(0)
        layer = nn.Linear(16, 24).to(dtype)
        report: Any = secateur.prune(layer, config, calibration=batches(dtype=dtype), solver="wanda", refine=refine)
        assert report.sparsity == pytest.approx(config.get("target_sparsity", 0.5), abs=0.01)
        errors.append(report.errors[report.layers[0].name])
    assert errors[1] < gain * errors[0]
    assert errors[1] == errors[2]


@pytest.mark.parametrize("spec", ["1x1", "2:4", "4x1", "2x2", "channelx1"])
def test_convolutions_with_groups_and_kernels(spec: str) -> None:
    images = [torch.randn(4, 16, 6, 6, generator=torch.Generator().manual_seed(seed)).relu() for seed in range(3)]
    errors = []
    for refine in ("pcg", "swap"):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 8, 3, groups=2)
        config = {"pattern": spec, "target_sparsity": 0.5}
        report: Any = secateur.prune(conv, config, calibration=images, solver="magnitude", refine=refine)
        assert report.sparsity == 0.5
        errors.append(report.errors[report.layers[0].name])
    assert errors[1] < 0.97 * errors[0]


def test_swap_after_a_solver_that_fits_is_no_worse_than_fitting_alone() -> None:
    problem = problem_of("1x1", rows=32, features=32)
    solution = SparseGPT().solve(problem)
    fitted, refined = (refiner.refine(problem, solution) for refiner in (PCG(iterations=50), CONVERGED))
    assert row_errors(problem, refined.weight).sum() < 0.95 * row_errors(problem, fitted.weight).sum()


def test_other_patterns_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(NMPattern):
        """N:M under another name, with rules that exchanges could break."""

        @classmethod
        def serves(cls, specification: str) -> bool:
            return specification == "swap-test"

        def _parse_specification(self) -> tuple[int, int]:
            return 2, 4

    monkeypatch.setitem(PATTERNS, "swap-test", Other)
    problem = make_problem(realistic_weight(4, 16), realistic_inputs(64, 16), "swap-test", 0.5)
    with pytest.raises(ConfigError, match=r"layer 'fc': Swap exchanges weights or blocks.*found 'swap-test'"):
        Swap().refine(problem, Wanda().solve(problem))


@pytest.mark.parametrize("values", [{"sweeps": 0}, {"refit": -1}], ids=str)
def test_settings_out_of_range(values: Any) -> None:
    with pytest.raises(ConfigError, match="sweeps must be at least 1 and refit at least 0, found"):
        Swap(**values)
