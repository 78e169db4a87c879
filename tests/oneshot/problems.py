"""What the tests of pruning with calibration data share: inputs like those of trained networks, and problems.

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
from secateur.solvers import Problem, Solution
from secateur.solvers.problem import LayerRows
from secateur.solvers.selector import Selector

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
"""Pattern specification, perhaps with a word before it → sparsity."""


class RunArguments(dict[str, Any]):
    """The keyword arguments of `secateur.prune` that say what a calibrated run reads, and where it executes."""


def execute(given: Any, **settings: Any) -> RunArguments:
    """Calibration data, and settings of `Execution`."""
    return RunArguments(calibration=given, execution=Execution(**settings))


def spec_of(case: str) -> str:
    return case.split()[-1]


def realistic_inputs(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    """(N, F) of low rank plus noise, with a few features far larger than the others, as in language models."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, features // 2)) @ rng.standard_normal((features // 2, features))
    scales = np.exp(1.5 * rng.standard_normal(features))
    return torch.from_numpy((mixed + rng.standard_normal((tokens, features))) * scales).float()


def realistic_weight(rows: int, features: int, seed: int = 0) -> torch.Tensor:
    """(R, F)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(rows, features, generator=generator) / features**0.5


def selector(
    spec: str, sparsity: float, shape: tuple[int, int, int], groups: int = 1, reduction: str = "sum"
) -> Selector:
    """For (O, K, I) weights."""
    view = WeightView(shape=shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=groups)
    blank = Selector(spec, view, 0)
    return Selector(spec, view, blank.bound.budget.count_for(blank.units, sparsity), reduction)


def problem(weight: torch.Tensor, inputs: torch.Tensor, spec: str = "1x1", sparsity: float = 0.5) -> Problem:
    """One layer's problem, from (R, F) or (G, R, F) weights and (N, F) or (G, N, F) inputs."""
    weight_GRF = weight if weight.ndim == 3 else weight[None]
    inputs_GNF = inputs if inputs.ndim == 3 else inputs[None]
    groups, rows, width = weight_GRF.shape
    part = LayerRows(
        name="fc",
        rows=(0, rows),
        selector=selector(spec, sparsity, (groups * rows, 1, width), groups),
        criterion=lambda values: values.abs(),
    )
    return Problem(
        weight=weight_GRF.clone(),
        norms=inputs_GNF.square().sum(dim=1).sqrt(),
        gram=inputs_GNF.transpose(1, 2) @ inputs_GNF,
        layers=[part],
    )


def pruned_count(found: Problem) -> int:
    """Weights that are to go."""
    share = sum((_share(part.selector) * part.selector.tiling.count for part in found.layers), Fraction())
    assert share.denominator == 1
    return int(share)


def _share(one: Selector) -> Fraction:
    """The share of weights that go, times the weights of a unit."""
    return Fraction(one.prune, one.units) * one.bound.budget.unit_share * one.tiling.unit_size


def energy(weight: torch.Tensor, inputs: torch.Tensor) -> float:
    """Squared norm of the outputs, in float64."""
    return float((inputs.double() @ weight.double().transpose(-1, -2)).square().sum())


def lost(found: Problem, solution: Solution, inputs: torch.Tensor) -> float:
    """Share of the outputs' energy that is lost."""
    inputs_GNF = inputs if inputs.ndim == 3 else inputs[None]
    return energy(found.weight - solution.weight, inputs_GNF) / energy(found.weight, inputs_GNF)


def best_on(support: npt.NDArray[np.bool_], row: Floats, inputs: Floats) -> Floats:
    """The least-squares weights of one row on a support."""
    found = np.zeros_like(row)
    if support.any():
        found[support] = np.linalg.lstsq(inputs[:, support], inputs @ row, rcond=None)[0]
    return found


class Recording:
    """A progress callback that notes what it is told, and may raise."""

    def __init__(self, error: Callable[[], BaseException] | None = None, at: int = -1) -> None:
        self.seen: list[Any] = []
        self.error = error
        self.at = at

    def __call__(self, progress: Any) -> None:
        self.seen.append(progress)
        if self.error is not None and len(self.seen) == self.at:
            raise self.error()


def batches(count: int = 3, rows: int = 32, features: int = 16, dtype: torch.dtype = torch.float32) -> list[Any]:
    return [realistic_inputs(rows, features, seed=100 + number).to(dtype) for number in range(count)]
