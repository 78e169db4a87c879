"""Rank the units of a group by scores that do not depend on which other units are removed."""

from __future__ import annotations

import torch

from secateur.errors import ScoreError
from secateur.solvers.unit_problem import RemovalPath, UnitProblem

__all__ = ["rank_by_score", "sum_by_unit"]


def rank_by_score(problem: UnitProblem, scores_U: torch.Tensor) -> RemovalPath:
    """Remove the units with the lowest scores first; the loss is the sum of the scores.

    On ties, the lower index is kept. Negative scores count as no loss.

    Args:
        problem: The problem.
        scores_U: Score of each unit.

    Raises:
        ScoreError: A score is ``nan``.

    Examples:
        >>> from secateur.patterns.rounding import KeepRule
        >>> scores = torch.tensor([3.0, 1.0, 2.0, 2.0])
        >>> rule = KeepRule(units=4)
        >>> problem = UnitProblem(name="ffn", rule=rule, consumers=[], scores=scores)
        >>> path = rank_by_score(problem, scores)
        >>> path.order.tolist(), path.losses.tolist()
        ([1, 3, 2, 0], [0.0, 1.0, 3.0, 5.0, 8.0])
    """
    scores_U = scores_U.detach().to("cpu", torch.float64)
    if bool(scores_U.isnan().any()):
        raise ScoreError(
            f"group {problem.name!r}: scores must be numbers, found nan. Check the weights, gradients and calibration "
            f"data of its layers."
        )
    parts = problem.rule.parts
    # Sorting the reversed scores puts the higher index first among equals.
    last = len(scores_U) // parts - 1
    order_PU = last - scores_U.view(parts, -1).flip(1).argsort(dim=1, stable=True)
    order_PU += torch.arange(parts)[:, None] * (last + 1)
    order = order_PU.T.reshape(-1)
    losses = torch.zeros(len(scores_U) + 1, dtype=torch.float64)
    losses[1:] = scores_U[order].clamp(min=0).cumsum(dim=0)
    return RemovalPath(order=order, losses=losses)


def sum_by_unit(values_F: torch.Tensor, unit_of_F: torch.Tensor, units: int) -> torch.Tensor:
    """Sum values of features, along the first axis, over the features of each unit.

    Args:
        values_F: The values, of shape (F, …).
        unit_of_F: The unit of each feature; -1: none.
        units: Number of units.

    Examples:
        >>> sum_by_unit(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1, 0, -1, 1]), 2)
        tensor([2., 9.])
    """
    # Features without unit are summed into one more unit at the end.
    sums = values_F.new_zeros((units + 1, *values_F.shape[1:]))
    return sums.index_add_(0, torch.where(unit_of_F < 0, units, unit_of_F), values_F)[:units]
