"""Swap removed and kept units while this reduces the error of the layers that read them.

Legend: P removed and S kept units, W features per unit, I = P · W and K = S · W features of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from secateur.patterns.rounding import KeepRule
from secateur.solvers.unit_loss import UnitLoss

__all__ = ["exchange_units"]

TOLERANCE = 1e-9
"""Relative improvement below which units are not exchanged, so that rounding errors do not decide."""

MAX_ELEMENTS = 1 << 24
"""Maximum number of elements of a matrix of all pairs of units that are evaluated together."""


def exchange_units(losses: Sequence[UnitLoss], rule: KeepRule, keep_U: torch.Tensor, limit: int) -> torch.Tensor:
    """Swap the best pair of units while the loss falls, and return the new mask.

    The loss of each pair is exact: that of the least-squares fit of all layers without the removed units.

    Args:
        losses: The losses of the layers that read the units, at least one.
        rule: The parts within which units are exchanged.
        keep_U: The mask of the kept units.
        limit: Maximum number of exchanges.
    """
    device = losses[0].inverse.device
    keep_U = keep_U.to(device, copy=True)
    part_of_U = torch.arange(rule.units, device=device) // max(1, rule.units // rule.parts)
    for _ in range(limit):
        removed_P, kept_S = (~keep_U).nonzero()[:, 0], keep_U.nonzero()[:, 0]
        if not len(removed_P) or not len(kept_S):
            break
        neighborhoods = [_Neighborhood(loss, removed_P, kept_S) for loss in losses]
        total = sum(neighborhood.loss for neighborhood in neighborhoods)
        changes_PS = torch.stack([neighborhood.changes() for neighborhood in neighborhoods]).sum(dim=0)
        changes_PS.masked_fill_(part_of_U[removed_P][:, None] != part_of_U[kept_S], torch.inf)
        best = int(changes_PS.argmin())
        if not float(changes_PS.view(-1)[best]) < -TOLERANCE * total:
            break
        keep_U[removed_P[best // len(kept_S)]], keep_U[kept_S[best % len(kept_S)]] = True, False
    return keep_U


class _Neighborhood:
    """The change in the loss of one layer for each swap of a removed and a kept unit.

    With ``Γ = [B_II]⁻¹`` and ``D = -B_KI Γ``, the weights fitted without the removed units are ``W_:K + W_:I Dᵀ``, and
    the inverse of the Gram matrix of K is ``B_KK + D B_IK``. Unit p is restored with the weights ``w_p = W_:I Γ_:p
    [Γ_pp]⁻¹``, which changes the weights of unit s by ``-w_p D_spᵀ`` and its inverse by ``D_sp [Γ_pp]⁻¹ D_spᵀ``. Then s
    is removed with the weights it has.
    """

    def __init__(self, loss: UnitLoss, removed_P: torch.Tensor, kept_S: torch.Tensor) -> None:
        self.width = loss.width
        offsets_W = torch.arange(loss.width, device=removed_P.device)
        removed_I, kept_K = ((units[:, None] * loss.width + offsets_W).view(-1) for units in (removed_P, kept_S))
        inverse_IK, energy_II = loss.inverse[removed_I][:, kept_K], loss.energy[removed_I][:, removed_I]
        energy_IK = loss.energy[removed_I][:, kept_K]
        self.schur_II = torch.cholesky_inverse(torch.linalg.cholesky(loss.inverse[removed_I][:, removed_I]))
        self.link_IK = -(self.schur_II @ inverse_IK)
        product_IK = torch.addmm(energy_IK, energy_II, self.link_IK)
        projected_II = self.schur_II @ energy_II
        self.loss = float(projected_II.trace())
        self.inverse_SWW = self._read_diagonal(loss.inverse, kept_K) + self._multiply(self.link_IK, inverse_IK)
        self.energy_SWW = self._read_diagonal(loss.energy, kept_K) + self._multiply(self.link_IK, energy_IK)
        self.energy_SWW += self._multiply(product_IK, self.link_IK)
        self.cross_IK = self.schur_II @ product_IK
        schur_PWW = self._read_diagonal(self.schur_II, torch.arange(len(removed_I), device=removed_I.device))
        self.solved_PWW = torch.linalg.inv(schur_PWW)
        returned_PWW = self._multiply(projected_II.T, self.schur_II)
        self.gain_P = (self.solved_PWW * returned_PWW.mT).sum(dim=(1, 2))
        self.returned_PWW = self.solved_PWW @ returned_PWW @ self.solved_PWW

    def changes(self) -> torch.Tensor:
        """Return how much the loss changes if unit p is restored and unit s is removed, of shape (P, S)."""
        return torch.cat(list(self._iter_changes()))

    def _iter_changes(self) -> Iterator[torch.Tensor]:
        """Yield the changes for a few removed units at a time."""
        step = max(1, MAX_ELEMENTS // max(1, len(self.inverse_SWW) * self.width**2))
        for start in range(0, len(self.gain_P), step):
            units = slice(start, start + step)
            features = slice(start * self.width, (start + step) * self.width)
            link_PSWW, cross_PSWW = (self._split(matrix[features]) for matrix in (self.link_IK, self.cross_IK))
            solved_P1WW, returned_P1WW = (blocks[units, None] for blocks in (self.solved_PWW, self.returned_PWW))
            change_PSWW = self._apply(link_PSWW.mT, self._apply(solved_P1WW, cross_PSWW))
            energy_PSWW = self._apply(link_PSWW.mT, self._apply(returned_P1WW, link_PSWW))
            energy_PSWW += self.energy_SWW - change_PSWW - change_PSWW.mT
            inverse_PSWW = self.inverse_SWW + self._apply(link_PSWW.mT, self._apply(solved_P1WW, link_PSWW))
            yield self._divide(energy_PSWW, inverse_PSWW) - self.gain_P[units, None]

    def _apply(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first * second if self.width == 1 else first @ second

    def _divide(self, energy: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        """Return ``tr(inverse⁻¹ energy)`` of each block."""
        if self.width == 1:
            return (energy / inverse)[..., 0, 0]
        solved: torch.Tensor = torch.linalg.solve(inverse, energy)
        return solved.diagonal(dim1=-2, dim2=-1).sum(dim=-1)

    def _split(self, matrix_IK: torch.Tensor) -> torch.Tensor:
        """Return the block of each pair of units, of shape (P, S, W, W)."""
        rows, columns = (length // self.width for length in matrix_IK.shape)
        return matrix_IK.view(rows, self.width, columns, self.width).transpose(1, 2)

    def _read_diagonal(self, matrix_JJ: torch.Tensor, features_K: torch.Tensor) -> torch.Tensor:
        """Return the blocks of some units on the diagonal, of shape (S, W, W)."""
        features_SW = features_K.view(-1, self.width)
        return matrix_JJ[features_SW[:, :, None], features_SW[:, None]]

    def _multiply(self, first_IK: torch.Tensor, second_IK: torch.Tensor) -> torch.Tensor:
        """Return ``Aᵀ B`` of the columns of each unit, of shape (S, W, W)."""
        if self.width == 1:
            return (first_IK * second_IK).sum(dim=0).view(-1, 1, 1)
        first_SIW, second_SIW = (
            matrix.view(len(matrix), -1, self.width).transpose(0, 1) for matrix in (first_IK, second_IK)
        )
        return first_SIW.mT @ second_SIW
