"""Solvers, which prune layers from calibration data; needs torch."""

from __future__ import annotations

from secateur._packages import require_packages

require_packages("torch", extra="torch")

from secateur.oneshot.pytorch.problem import Problem, Solution  # noqa: E402 - says what is missing first
from secateur.oneshot.pytorch.solvers import (  # noqa: E402
    ALPS,
    RIA,
    SOLVERS,
    Magnitude,
    Solver,
    SparseGPT,
    Wanda,
    register_solver,
)

__all__ = [
    "ALPS",
    "RIA",
    "SOLVERS",
    "Magnitude",
    "Problem",
    "Solution",
    "Solver",
    "SparseGPT",
    "Wanda",
    "register_solver",
]
