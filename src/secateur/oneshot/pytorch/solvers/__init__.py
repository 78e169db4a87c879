"""Solvers: each prunes layers that read the same inputs, from what is known of those inputs."""

from __future__ import annotations

from secateur.oneshot.pytorch.solvers.alps import ALPS
from secateur.oneshot.pytorch.solvers.base import SOLVERS, Solver, register_solver
from secateur.oneshot.pytorch.solvers.magnitude import Magnitude
from secateur.oneshot.pytorch.solvers.ria import RIA
from secateur.oneshot.pytorch.solvers.sparsegpt import SparseGPT
from secateur.oneshot.pytorch.solvers.wanda import Wanda

__all__ = ["ALPS", "RIA", "SOLVERS", "Magnitude", "Solver", "SparseGPT", "Wanda", "register_solver"]
