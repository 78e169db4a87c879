"""SparseGPT: prune column by column, and compensate in the columns that follow.

Legend: G groups, R rows (output channels), F input features, C columns (input features) processed together. Weights
are stored transposed, so that a column is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.solvers.base import Solver, register_solver
from secateur.solvers.gram import damp, factorize_inverse
from secateur.solvers.problem import Problem, Solution

__all__ = ["SparseGPT"]

STRIP = 16
"""Columns within which errors are propagated one by one. Beyond the strip, one product propagates them together."""


@register_solver("sparsegpt")
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Solver):
    """Optimal brain surgeon with the same order of columns for all rows.

    With ``(Xᵀ X + λ I)⁻¹ = Uᵀ U``, U upper triangular, removing weight w of column j costs
    ``w² / U[j,j]²``, and the columns k > j are corrected by ``−w · U[j,k] / U[j,j]``. Weights are selected
    by their corrected values, `columns` columns at a time, or N:M group by group. Units that span more columns, such as
    channels, are selected once at the start.

    Attributes:
        damping: λ as a share of the mean diagonal element, > 0.
        columns: Columns whose weights are selected together, ≥ 1.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
        arXiv:2301.00774, algorithm 1.

    Examples:
        >>> import torch, secateur
        >>> layer, inputs = torch.nn.Linear(8, 4), [torch.randn(64, 8)]
        >>> solver = secateur.solvers.SparseGPT(damping=0.05)
        >>> config = {"pattern": "2:4"}
        >>> secateur.prune(layer, config, calibration=inputs, solver=solver).sparsity
        0.5
    """

    damping: float = 0.01
    columns: int = 128

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if not self.damping > 0 or self.columns < 1:
            raise ConfigError(f"damping must be above 0 and columns at least 1, found {self.damping}, {self.columns}.")

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        if (solution := problem.solve_by_rows()) is not None:
            return solution
        factor_GFF = factorize_inverse(damp(problem.known_gram, self.damping))
        sweep = _ColumnSweep(problem, factor_GFF)
        step = problem.column_step(self.columns)
        if step is None:
            sweep.decide(0, sweep.features)
        group = problem.column_step(1) if problem.is_grouped else None
        for start, stop in _strips(sweep.features, step or self.columns):
            if step is not None and group is None:
                sweep.decide(start, stop)
            sweep.eliminate(start, stop, group)
        return sweep.solution()


class _ColumnSweep:
    """The corrected weights, each divided by its column's diagonal element, and which of them are pruned."""

    def __init__(self, problem: Problem, factor_GFF: torch.Tensor) -> None:
        self.problem = problem
        self.is_grouped = problem.is_grouped
        self.diagonal_GF1 = factor_GFF.diagonal(dim1=-2, dim2=-1)[..., None]
        # After division by the diagonal, the square of an error is its cost, and no further divisions are needed.
        self.factor_GFF = factor_GFF / self.diagonal_GF1.transpose(1, 2)
        self.weight_GFR = _transpose(problem.weight).div_(self.diagonal_GF1)
        self.is_pruned_GFR = torch.zeros_like(self.weight_GFR, dtype=torch.bool)
        self.errors_GFR = torch.empty_like(self.weight_GFR)
        tensors = (self.weight_GFR, self.is_pruned_GFR, self.errors_GFR)
        self._columns = list(zip(*(tensor.unbind(1) for tensor in tensors), strict=True))

    @property
    def features(self) -> int:
        """Number of columns."""
        return self.weight_GFR.shape[1]

    def decide(self, start: int, stop: int) -> None:
        """Select the weights to prune in columns `start` to `stop` by their current values."""
        scores_GCR = self.weight_GFR[:, start:stop].square()
        if self.is_grouped:
            keep_GCR = self.problem.select_in_group(scores_GCR)
        elif stop - start == self.features:
            keep_GCR = self.problem.select(scores_GCR.transpose(1, 2)).transpose(1, 2)
        else:
            keep_GCR = self.problem.select_in_columns(scores_GCR.transpose(1, 2), start).transpose(1, 2)
        torch.logical_not(keep_GCR, out=self.is_pruned_GFR[:, start:stop])

    def eliminate(self, start: int, stop: int, group: int | None) -> None:
        """Prune the selected weights of columns `start` to `stop`, and correct all later columns.

        Args:
            start: First column.
            stop: End of the range, exclusive.
            group: Columns per N:M group, selected when reached; ``None``: all weights are selected already.
        """
        strip = STRIP if group is None else max(1, STRIP // group) * group
        for first, last in _strips(stop - start, strip):
            first, last = start + first, start + last
            for column in range(first, last):
                if group is not None and (column - start) % group == 0:
                    self.decide(column, column + group)
                self._remove(column, last)
            self._correct(first, last, stop)
        self._correct(start, stop, self.features)

    def solution(self) -> Solution:
        """Return the remaining weights and their mask."""
        weight_GFR = self.weight_GFR.mul_(self.diagonal_GF1).masked_fill_(self.is_pruned_GFR, 0.0)
        return Solution(weight=weight_GFR.transpose(1, 2), keep=~self.is_pruned_GFR.transpose(1, 2))

    def _remove(self, column: int, last: int) -> None:
        """Prune the selected weights of a column, and correct the columns after it, up to `last`."""
        weight_GR, is_pruned_GR, error_GR = self._columns[column]
        torch.mul(weight_GR, is_pruned_GR, out=error_GR)
        if column + 1 < last:
            row_GC1 = self.factor_GFF[:, column, column + 1 : last, None]
            self.weight_GFR[:, column + 1 : last].baddbmm_(row_GC1, error_GR[:, None], alpha=-1)

    def _correct(self, first: int, last: int, end: int) -> None:
        """Propagate the errors of columns `first` to `last` to the columns up to `end`."""
        if last < end:
            factor_GCC = self.factor_GFF[:, first:last, last:end].transpose(1, 2)
            self.weight_GFR[:, last:end].baddbmm_(factor_GCC, self.errors_GFR[:, first:last], alpha=-1)


def _transpose(matrix_GRF: torch.Tensor) -> torch.Tensor:
    """Return a transposed copy. Copying matrix by matrix lets torch copy in tiles."""
    transposed_GFR = matrix_GRF.new_empty((len(matrix_GRF), matrix_GRF.shape[2], matrix_GRF.shape[1]))
    for target_FR, source_RF in zip(transposed_GFR, matrix_GRF, strict=True):
        target_FR.copy_(source_RF.T)
    return transposed_GFR


def _strips(total: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, total)) for start in range(0, total, step))
