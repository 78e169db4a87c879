"""Remove units one by one, each time the one that costs least, as structured optimal brain surgeon does.

Legend: U units that are still in the matrices, W features per unit, J = U · W features; Q features removed since the
matrices were last corrected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secateur.patterns.rounding import KeepRule
from secateur.solvers.unit_loss import UnitLoss
from secateur.solvers.unit_problem import RemovalPath

__all__ = ["eliminate_units"]

PENDING = 64
"""Features whose corrections of the matrices are applied together, in one product."""

TIE = 1e-9
"""Relative difference below which losses count as equal, so that rounding errors do not decide which unit to remove."""


def eliminate_units(losses: Sequence[UnitLoss], rule: KeepRule, max_removed: int | None = None) -> RemovalPath:
    """Remove units, each time the one with the lowest loss of those whose part may lose one.

    The inverses and weights of all layers are corrected after each removal, so each loss is the exact one without all
    units removed so far. On ties, the lower index is kept.

    Args:
        losses: The losses of the layers that read the units, at least one.
        rule: The number of units and parts.
        max_removed: Number of units after which the others follow without being ranked; ``None``: rank all.
    """
    eliminations = [_Elimination(loss) for loss in losses]
    units = torch.arange(rule.units, device=losses[0].inverse.device)
    part_of_U = units // max(1, rule.units // rule.parts)
    has_lost_P = torch.zeros(rule.parts, dtype=torch.bool, device=units.device)
    is_removed_U = torch.zeros_like(units, dtype=torch.bool)
    limit, pending = max(1, PENDING // max(loss.width for loss in losses)), 0
    order: list[int] = []
    steps: list[float] = []
    ranked = rule.units if max_removed is None else min(rule.units, -(-max_removed // rule.parts) * rule.parts)
    for count in range(ranked):
        if count % rule.parts == 0:
            has_lost_P.zero_()
        scores_U = torch.stack([elimination.scores() for elimination in eliminations]).sum(dim=0)
        position = _find_last_least(scores_U.masked_fill_(is_removed_U | has_lost_P[part_of_U], torch.inf))
        steps.append(sum(elimination.remove(position) for elimination in eliminations))
        order.append(int(units[position]))
        is_removed_U[position], has_lost_P[part_of_U[position]] = True, True
        pending += 1
        if pending == limit:
            for elimination in eliminations:
                elimination.correct(~is_removed_U)
            units, part_of_U = units[~is_removed_U], part_of_U[~is_removed_U]
            is_removed_U, pending = torch.zeros_like(units, dtype=torch.bool), 0
    rest = units[~is_removed_U].view(rule.parts, -1).T.flatten().tolist()
    cumulative = torch.tensor([0.0, *steps, *[0.0] * len(rest)], dtype=torch.float64).cumsum(dim=0)
    return RemovalPath(order=torch.tensor([*order, *rest], dtype=torch.int64), losses=cumulative)


def _find_last_least(scores: torch.Tensor) -> int:
    """Return the last index of the lowest score, or of one that only differs by a rounding error."""
    limit = scores.min() * (1 + TIE)
    return len(scores) - 1 - int((scores <= limit).flip(0).int().argmax())


class _Elimination:
    """The matrices of one layer, which lack the corrections for the last removals.

    Removing the features I of a unit with ``B_II = L Lᵀ`` changes B by ``-Vᵀ V`` with ``V = L⁻¹ B_I:``, and the weights
    by ``-W_:I L⁻ᵀ V``. So it changes ``M = Wᵀ W`` by ``-(Vᵀ T + Tᵀ V)`` with ``T = L⁻¹ M_I: − ½ N V`` and
    ``N = L⁻¹ M_II L⁻ᵀ``, and it costs ``tr(N)``.
    """

    def __init__(self, loss: UnitLoss) -> None:
        self.width = loss.width
        self.inverse_JJ, self.energy_JJ = loss.inverse, loss.energy
        self.inverse_UWW, self.energy_UWW = (_read_blocks(matrix, self.width) for matrix in (loss.inverse, loss.energy))
        self._clear()

    def scores(self) -> torch.Tensor:
        """Return the loss that the removal of each unit adds, of shape (U,)."""
        if self.width == 1:
            return (self.energy_UWW / self.inverse_UWW).view(-1)
        solved_UWW: torch.Tensor = torch.linalg.solve(self.inverse_UWW, self.energy_UWW)
        return solved_UWW.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_(min=0)

    def remove(self, position: int) -> float:
        """Remove a unit and return the loss that this adds."""
        start, stop, done = position * self.width, (position + 1) * self.width, self.used
        pending_VQJ, pending_TQJ = self.pending_VQJ[:done], self.pending_TQJ[:done]
        link_QW, change_QW = pending_VQJ[:, start:stop], pending_TQJ[:, start:stop]
        inverse_WJ = torch.addmm(self.inverse_JJ[start:stop], link_QW.T, pending_VQJ, alpha=-1)
        energy_WJ = torch.addmm(self.energy_JJ[start:stop], link_QW.T, pending_TQJ, alpha=-1)
        energy_WJ.addmm_(change_QW.T, pending_VQJ, alpha=-1)
        lower_WW = torch.linalg.cholesky(inverse_WJ[:, start:stop])
        V_WJ = torch.linalg.solve_triangular(lower_WW, inverse_WJ, upper=False)
        T_WJ = torch.linalg.solve_triangular(lower_WW, energy_WJ, upper=False)
        cost_WW = torch.linalg.solve_triangular(lower_WW, T_WJ[:, start:stop].T, upper=False)
        T_WJ.addmm_(cost_WW.T, V_WJ, alpha=-0.5)
        self.inverse_UWW -= _multiply_blocks(V_WJ, V_WJ, self.width)
        product_UWW = _multiply_blocks(V_WJ, T_WJ, self.width)
        self.energy_UWW -= product_UWW + product_UWW.mT
        self.pending_VQJ[done : done + self.width], self.pending_TQJ[done : done + self.width] = V_WJ, T_WJ
        self.used += self.width
        # Some matrix of full rank, for the scores of a unit that is removed but not dropped yet.
        self.inverse_UWW[position].copy_(torch.eye(self.width))
        return max(0.0, float(cost_WW.trace()))

    def correct(self, keep_U: torch.Tensor) -> None:
        """Apply all pending corrections, and drop the units that are removed."""
        left = keep_U.repeat_interleave(self.width).nonzero()[:, 0]
        V_QJ, T_QJ = self.pending_VQJ[: self.used, left], self.pending_TQJ[: self.used, left]
        self.inverse_JJ = self.inverse_JJ[left][:, left].addmm_(V_QJ.T, V_QJ, alpha=-1)
        self.energy_JJ = self.energy_JJ[left][:, left].addmm_(V_QJ.T, T_QJ, alpha=-1)
        self.energy_JJ.addmm_(T_QJ.T, V_QJ, alpha=-1)
        self.inverse_UWW, self.energy_UWW = self.inverse_UWW[keep_U], self.energy_UWW[keep_U]
        self._clear()

    def _clear(self) -> None:
        self.used = 0
        self.pending_VQJ = self.inverse_JJ.new_empty((max(PENDING, self.width), len(self.inverse_JJ)))
        self.pending_TQJ = torch.empty_like(self.pending_VQJ)


def _read_blocks(matrix_JJ: torch.Tensor, width: int) -> torch.Tensor:
    """Return the block of each unit on the diagonal, of shape (U, W, W)."""
    units = len(matrix_JJ) // width
    blocks: torch.Tensor = matrix_JJ.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return blocks.contiguous()


def _multiply_blocks(first_QJ: torch.Tensor, second_QJ: torch.Tensor, width: int) -> torch.Tensor:
    """Return ``Aᵀ B`` of the columns of each unit, of shape (U, W, W)."""
    if width == 1:
        return (first_QJ * second_QJ).view(-1, 1, 1)
    first_UWQ = first_QJ.view(len(first_QJ), -1, width).permute(1, 2, 0)
    return first_UWQ @ second_QJ.view(len(second_QJ), -1, width).permute(1, 0, 2)
