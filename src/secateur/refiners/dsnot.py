"""DSnoT: exchange kept and pruned weights until the expected output of each row matches the dense one.

Legend: G groups, R rows, F input features; N rows of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import CalibrationError, ConfigError
from secateur.patterns.nm import NMPattern
from secateur.refiners.base import LayerRefiner, register_refiner
from secateur.solvers.problem import LayerRows, Problem, Solution

__all__ = ["DSnoT"]

UNSTRUCTURED = "1x1"
"""The pattern whose weights can be exchanged anywhere in a row."""


@register_refiner("dsnot")
@dataclass(frozen=True, kw_only=True)
class DSnoT(LayerRefiner):
    """Exchange weights within each row (1x1) or group (N:M) to reduce the error ``ε = E[Ŵx − Wx]`` of the row.

    In each cycle, every row restores the pruned weight with the largest ``sign(ε) · Ŵ[i] E[x_i] / Var[x_i]``, and in
    turn prunes the kept weight with the smallest ``|W[j]| · ‖X_j‖``: in 1x1 among those whose removal reduces the error
    (``sign(ε) · W[j] E[x_j] < 0``), in N:M within the group of the restored weight. A weight is exchanged at most once.
    Restored weights get their dense value, and kept ones stay as they are. Unlike in the paper, a row stops before an
    exchange that would not reduce its error.

    It changes masks, so it comes before refiners that do not.

    Attributes:
        cycles: Maximum number of exchanges per row, ≥ 1.
        tolerance: Error at which a row stops, as a share of its initial error, in [0, 1).
        variance_power: Exponent of the variance, ≥ 0; 0 ignores it.

    Raises:
        ConfigError: A value is out of range, or a layer's pattern is neither 1x1 nor N:M.

    Source:
        Zhang et al., "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", arXiv:2310.08915,
        algorithm 1.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.rand(64, 8)]
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> report = secateur.prune(
        ...     layer, config, calibration=inputs, solver="wanda", refine="dsnot"
        ... )
        >>> report.sparsity
        0.5
    """

    cycles: int = 50
    tolerance: float = 0.1
    variance_power: float = 1.0

    needs: ClassVar[Literal["norms", "gram"]] = "norms"

    def __post_init__(self) -> None:
        if self.cycles < 1 or not 0 <= self.tolerance < 1 or not self.variance_power >= 0:
            raise ConfigError(
                f"cycles must be at least 1, tolerance in [0, 1) and variance_power at least 0, found {self.cycles}, "
                f"{self.tolerance} and {self.variance_power}."
            )

    def refine(self, problem: Problem, solution: Solution) -> Solution:
        """See `LayerRefiner.refine`.

        Raises:
            CalibrationError: The means of the inputs are unknown.
        """
        if problem.means is None or problem.variances is None:
            raise CalibrationError(
                f"layer {problem.layers[0].name!r}: DSnoT needs the means of the inputs, which are not measured for "
                f"stacked experts. Exclude the layer, or leave the refiner out."
            )
        weights, keeps = [], []
        for layer in problem.layers:
            rows = slice(*layer.rows)
            exchange = _Exchange(self, problem, solution, rows, _find_group(layer))
            exchange.run()
            shape = solution.keep[:, rows].shape
            keeps.append(exchange.keep_NF.reshape(shape))
            restored = torch.where(solution.keep[:, rows], solution.weight[:, rows], problem.weight[:, rows])
            weights.append(restored * keeps[-1])
        return Solution(weight=torch.cat(weights, dim=1), keep=torch.cat(keeps, dim=1))


def _find_group(layer: LayerRows) -> int | None:
    """Return the length of the groups within which weights are exchanged; ``None``: anywhere in the row."""
    pattern = layer.selector.bound
    if type(pattern) is NMPattern:
        return pattern.group
    if layer.selector.pattern == UNSTRUCTURED:
        return None
    raise ConfigError(
        f"layer {layer.name!r}: DSnoT exchanges single weights, so the pattern must be 1x1 or N:M, found "
        f"{layer.selector.pattern!r}. Leave the refiner out."
    )


class _Exchange:
    """The rows of one layer, what restoring or pruning each weight does to their errors, and the current mask."""

    def __init__(self, settings: DSnoT, problem: Problem, solution: Solution, rows: slice, group: int | None) -> None:
        assert problem.means is not None
        assert problem.variances is not None
        self.settings = settings
        self.group = group
        dense_GRF, kept_GRF = problem.weight[:, rows], solution.weight[:, rows]
        means_G1F, norms_G1F = problem.means[:, None], problem.norms[:, None]
        spread_G1F = problem.variances[:, None].clamp(min=torch.finfo(torch.float32).tiny) ** settings.variance_power
        self.keep_NF = solution.keep[:, rows].flatten(0, 1).clone()
        self.is_initially_kept_NF = self.keep_NF.clone()
        self.dense_change_NF = (dense_GRF * means_G1F).flatten(0, 1)
        self.kept_change_NF = (kept_GRF * means_G1F).flatten(0, 1)
        self.urgency_NF = (dense_GRF * means_G1F / spread_G1F).flatten(0, 1)
        self.cost_NF = (kept_GRF.abs() * norms_G1F).flatten(0, 1)
        self.error_N = (self.dense_change_NF - self.kept_change_NF).sum(dim=1)

    def run(self) -> None:
        """Exchange weights until no row improves."""
        limit_N = self.settings.tolerance * self.error_N.abs()
        active = (self.error_N != 0).nonzero()[:, 0]
        for _ in range(self.settings.cycles):
            if not len(active):
                break
            active = self._exchange(active)
            active = active[self.error_N[active].abs() > limit_N[active]]

    def _exchange(self, active: torch.Tensor) -> torch.Tensor:
        """Exchange one pair of weights in each of the given rows, and return the rows whose error decreased."""
        error = self.error_N[active]
        sign_N1 = error.sign()[:, None]
        keep_NF, was_kept_NF = self.keep_NF[active], self.is_initially_kept_NF[active]
        urgency_NF = (self.urgency_NF[active] * sign_N1).masked_fill_(keep_NF | was_kept_NF, -torch.inf)
        restored = urgency_NF.argmax(dim=1, keepdim=True)
        cost_NF = self.cost_NF[active].masked_fill_(~(keep_NF & was_kept_NF), torch.inf)
        if self.group is None:
            cost_NF.masked_fill_(self.kept_change_NF[active] * sign_N1 >= 0, torch.inf)
        else:
            columns = torch.arange(cost_NF.shape[1], device=cost_NF.device)
            cost_NF.masked_fill_(columns // self.group != restored // self.group, torch.inf)
        pruned = cost_NF.argmin(dim=1, keepdim=True)
        after = (
            error - self._read(self.dense_change_NF, active, restored) + self._read(self.kept_change_NF, active, pruned)
        )
        improves = (
            (urgency_NF.gather(1, restored)[:, 0] > 0)
            & cost_NF.gather(1, pruned)[:, 0].isfinite()
            & (after.abs() < error.abs())
        )
        rows = active[improves]
        self.keep_NF[rows, restored[improves, 0]] = True
        self.keep_NF[rows, pruned[improves, 0]] = False
        self.error_N[rows] = after[improves]
        return rows

    @staticmethod
    def _read(values_NF: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return values_NF[rows, columns[:, 0]]
