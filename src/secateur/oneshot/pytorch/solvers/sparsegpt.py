r"""Remove weights one column after another, and let the columns to come make up for what each loses.

Legend: G groups, R rows (output channels), F input features, C columns (input features) looked at together. Weights are
held transposed, so that a column lies in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from secateur.errors import ConfigError
from secateur.oneshot.pytorch.linalg import damped, inverse_factor
from secateur.oneshot.pytorch.problem import Problem, Solution
from secateur.oneshot.pytorch.solvers.base import Solver, register_solver

__all__ = ["SparseGPT"]

STRIP = 16
"""Columns between which losses are passed on one by one; beyond, a strip's losses go by one product."""


@register_solver("sparsegpt")
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Solver):
    r"""Optimal brain surgeon with one order of columns for all rows.

    With :math:`(X^\top X + \lambda I)^{-1} = U^\top U`, U upper triangular, removing weight w of column j costs
    :math:`w^2 / U_{jj}^2`, and the columns k > j are corrected by :math:`-w\, U_{jk} / U_{jj}`. What stays is chosen
    from the weights as corrected so far, `columns` columns at a time, and of N:M each group when its turn comes. Units
    that span more columns than that, as channels do, are chosen once, at the start.

    Attributes:
        damping: λ as a share of the mean diagonal element, > 0.
        columns: Columns decided on together, ≥ 1.

    Raises:
        ConfigError: A value is out of range.

    Source:
        Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
        arXiv:2301.00774, algorithm 1.
    """

    damping: float = 0.01
    columns: int = 128

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "gram"

    def __post_init__(self) -> None:
        if not self.damping > 0 or self.columns < 1:
            raise ConfigError(f"damping must be above 0 and columns at least 1, found {self.damping}, {self.columns}.")

    def solve(self, problem: Problem) -> Solution:
        """See `Solver.solve`."""
        factor_GFF = inverse_factor(damped(problem.known_gram, self.damping))
        diagonal_GF = factor_GFF.diagonal(dim1=-2, dim2=-1)
        weight_GFR = problem.weight.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        keep_GFR = torch.ones_like(weight_GFR, dtype=torch.bool)
        if (step := self._step(problem)) is None:
            scores_GRF = (problem.weight / diagonal_GF[:, None]).square_()
            keep_GFR = problem.keep(scores_GRF).transpose(1, 2).contiguous()
        for start, stop in _strips(weight_GFR.shape[1], step or STRIP):
            if step is not None:
                scores_GCR = (weight_GFR[:, start:stop] / diagonal_GF[:, start:stop, None]).square_()
                chosen = problem.keep_in_columns(scores_GCR.transpose(1, 2), start)
                keep_GFR[:, start:stop] = chosen.transpose(1, 2)
            _eliminate(weight_GFR, keep_GFR, factor_GFF, start, stop)
        keep_GRF = keep_GFR.transpose(1, 2).contiguous()
        return Solution(weight=weight_GFR.transpose(1, 2).contiguous(), keep=keep_GRF)

    def _step(self, problem: Problem) -> int | None:
        """Columns that are decided on together; a group of N:M as late as can be."""
        step = problem.column_step(self.columns)
        return step if step is None or not problem.is_grouped else problem.column_step(1)


def _strips(total: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, total)) for start in range(0, total, step))


def _eliminate(
    weight_GFR: torch.Tensor, keep_GFR: torch.Tensor, factor_GFF: torch.Tensor, start: int, stop: int
) -> None:
    """Remove what does not stay in columns `start` to `stop`, and correct all columns behind."""
    errors_GCR = torch.empty_like(weight_GFR[:, start:stop])
    for first, last in _strips(stop - start, STRIP):
        first, last = start + first, start + last
        for column in range(first, last):
            row_GF = factor_GFF[:, column, column:last]
            removed = weight_GFR[:, column] * ~keep_GFR[:, column]
            error_GR = removed / row_GF[:, :1]
            errors_GCR[:, column - start] = error_GR
            weight_GFR[:, column:last].baddbmm_(row_GF[:, :, None], error_GR[:, None], alpha=-1)
        if last < stop:
            _correct(weight_GFR, errors_GCR[:, first - start : last - start], factor_GFF, (first, last, stop))
    _correct(weight_GFR, errors_GCR, factor_GFF, (start, stop, weight_GFR.shape[1]))
    weight_GFR[:, start:stop] *= keep_GFR[:, start:stop]


def _correct(
    weight_GFR: torch.Tensor, errors_GCR: torch.Tensor, factor_GFF: torch.Tensor, columns: tuple[int, int, int]
) -> None:
    """Pass the errors of the columns between the first two numbers on to those between the last two."""
    first, last, end = columns
    if last < end:
        weight_GFR[:, last:end].baddbmm_(factor_GFF[:, first:last, last:end].transpose(1, 2), errors_GCR, alpha=-1)
