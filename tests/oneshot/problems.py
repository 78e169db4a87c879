"""Helpers for tests of pruning with calibration data: inputs like those of trained networks, and problems.

Legend: N tokens, R rows (output channels), F input features; G groups.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur.frameworks import WeightView
from secateur.oneshot import Execution
from secateur.solvers import SOLVERS, Problem, Solution, Solver
from secateur.solvers.problem import LayerRows
from secateur.solvers.selector import Selector

LAYER_SOLVERS = sorted(name for name, kind in SOLVERS.items() if issubclass(kind, Solver))
"""The built-in solvers of single layers."""

Floats = npt.NDArray[np.float64]

CASES = {
    "1x1": 0.5,
    "4x1": 0.5,
    "1x4": 0.75,
    "2x2": 0.5,
    "2:4": 0.5,
    "1:4": 0.75,
    "4:8": 0.5,
    "partial 2:4": 0.3,
    "1xchannel": 0.25,
    "channelx1": 0.25,
}
"""Pattern specification, sometimes after a word that tells cases apart → sparsity."""


class RunArguments(dict[str, Any]):
    """The arguments `calibration` and `execution` of `secateur.prune`."""


def execute(given: Any, **settings: Any) -> RunArguments:
    """Return calibration data and an `Execution` with the given settings, as keyword arguments of `secateur.prune`."""
    return RunArguments(calibration=given, execution=Execution(**settings))


def spec_of(case: str) -> str:
    return case.split()[-1]


def realistic_inputs(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    """Return (N, F) inputs of low rank plus noise. As in language models, a few features are far larger than others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, features // 2)) @ rng.standard_normal((features // 2, features))
    scales = np.exp(1.5 * rng.standard_normal(features))
    return torch.from_numpy((mixed + rng.standard_normal((tokens, features))) * scales).float()


def realistic_weight(rows: int, features: int, seed: int = 0) -> torch.Tensor:
    """Return random (R, F) weights."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(rows, features, generator=generator) / features**0.5


def selector(
    spec: str, sparsity: float, shape: tuple[int, int, int], groups: int = 1, reduction: str = "sum"
) -> Selector:
    """Return a selector for (O, K, I) weights."""
    view = WeightView(shape=shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=groups)
    dense = Selector(spec, view, 0)
    return Selector(spec, view, dense.bound.budget.count_for(dense.units, sparsity), reduction)


def make_problem(weight: torch.Tensor, inputs: torch.Tensor, spec: str = "1x1", sparsity: float = 0.5) -> Problem:
    """Return the problem of one layer, from (R, F) or (G, R, F) weights and (N, F) or (G, N, F) inputs."""
    weight_GRF = weight if weight.ndim == 3 else weight[None]
    inputs_GNF = inputs if inputs.ndim == 3 else inputs[None]
    groups, rows, width = weight_GRF.shape
    layer = LayerRows(
        name="fc",
        rows=(0, rows),
        selector=selector(spec, sparsity, (groups * rows, 1, width), groups),
        criterion=lambda values: values.abs(),
    )
    return Problem(
        weight=weight_GRF.clone(),
        norms=inputs_GNF.square().sum(dim=1).sqrt(),
        gram=inputs_GNF.transpose(1, 2) @ inputs_GNF,
        layers=[layer],
    )


def count_weights_to_prune(problem: Problem) -> int:
    """Return the number of weights that a solver must prune."""
    selectors = [layer.selector for layer in problem.layers]
    count = sum((_weights_per_unit(selector) * selector.tiling.count for selector in selectors), Fraction())
    assert count.denominator == 1
    return int(count)


def _weights_per_unit(selector: Selector) -> Fraction:
    """Return the mean number of weights to prune per unit of the tiling."""
    return Fraction(selector.prune, selector.units) * selector.bound.budget.unit_share * selector.tiling.unit_size


def energy(weight: torch.Tensor, inputs: torch.Tensor) -> float:
    """Return the squared norm of the outputs, in float64."""
    return float((inputs.double() @ weight.double().transpose(-1, -2)).square().sum())


def loss(problem: Problem, solution: Solution, inputs: torch.Tensor) -> float:
    """Return the share of the output energy that a solution loses."""
    inputs_GNF = inputs if inputs.ndim == 3 else inputs[None]
    return energy(problem.weight - solution.weight, inputs_GNF) / energy(problem.weight, inputs_GNF)


def fit_on_support(support: npt.NDArray[np.bool_], row: Floats, inputs: Floats) -> Floats:
    """Return the least-squares weights of one row on a support."""
    fitted = np.zeros_like(row)
    if support.any():
        fitted[support] = np.linalg.lstsq(inputs[:, support], inputs @ row, rcond=None)[0]
    return fitted


class ProgressRecorder:
    """A progress callback that records its calls, and can raise an error at one of them."""

    def __init__(self, error: Callable[[], BaseException] | None = None, at: int = -1) -> None:
        self.steps: list[Any] = []
        self.error = error
        self.at = at

    def __call__(self, progress: Any) -> None:
        self.steps.append(progress)
        if self.error is not None and len(self.steps) == self.at:
            raise self.error()


def batches(count: int = 3, rows: int = 32, features: int = 16, dtype: torch.dtype = torch.float32) -> list[Any]:
    return [realistic_inputs(rows, features, seed=100 + number).to(dtype) for number in range(count)]
