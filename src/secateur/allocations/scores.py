"""Scores that make layers comparable.

Legend: G groups, R rows, F input features.
"""

from __future__ import annotations

import torch

from secateur.solvers.problem import Problem

__all__ = ["compute_layer_scores", "compute_mean_score"]


def compute_layer_scores(problem: Problem) -> dict[str, torch.Tensor]:
    """Return layer → ``|W[i,j]| · ‖X[j]‖``, of shape (G, R, F)."""
    scores_GRF = problem.weight.abs() * problem.norms[:, None]
    return {layer.name: scores_GRF[:, slice(*layer.rows)] for layer in problem.layers}


def compute_mean_score(scores_GRF: torch.Tensor) -> float:
    """Return the mean by which scores are normalized to compare layers; 1 if all scores are zero.

    The root mean square, which would normalize the output energy, works worse: in some layers of language models a few
    features are hundreds of times as large as the rest, and would make all other weights negligible.
    """
    return float(scores_GRF.mean(dtype=torch.float64)) or 1.0
