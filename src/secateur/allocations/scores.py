"""The scores that allocations compare layers by.

Legend: G groups, R rows, F input features.
"""

from __future__ import annotations

import torch

from secateur.solvers.problem import Problem

__all__ = ["mean_score", "scores_per_layer"]


def scores_per_layer(problem: Problem) -> dict[str, torch.Tensor]:
    """Layer → ``|W[i,j]| · ‖X[j]‖``, of shape (G, R, F)."""
    scores_GRF = problem.weight.abs() * problem.norms[:, None]
    return {part.name: scores_GRF[:, slice(*part.rows)] for part in problem.parts}


def mean_score(scores_GRF: torch.Tensor) -> float:
    """What the scores of a layer are measured by; 1 where all are zero.

    A weight whose score is the mean counts as much in one layer as in another. The root of the mean square, by which
    the energy of all outputs would be 1, does not serve: in language models a few features of some layers are hundreds
    of times as large as the rest, and beside them all other weights of such a layer would count for nothing.
    """
    return float(scores_GRF.mean(dtype=torch.float64)) or 1.0
