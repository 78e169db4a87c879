"""Solvers: choose which weights of a layer are kept, and with which values. Needs torch.

A `Solver` gets a `Problem`, the weights of layers that read the same inputs, and returns a `Solution`. A `UnitSolver`
gets a `UnitProblem`, the layers that read the channels or heads of a group, and returns a `RemovalPath`.
"""

from __future__ import annotations

from secateur._packages import require_packages

require_packages("torch", extra="torch")

from secateur.solvers.alps import ALPS  # noqa: E402 - after the check that torch is installed
from secateur.solvers.base import SOLVERS, Solver, UnitSolver, register_solver  # noqa: E402
from secateur.solvers.fisher import FisherPruning  # noqa: E402
from secateur.solvers.magnitude import Magnitude  # noqa: E402
from secateur.solvers.osscar import OSSCAR  # noqa: E402
from secateur.solvers.problem import Problem, Solution  # noqa: E402
from secateur.solvers.ria import RIA  # noqa: E402
from secateur.solvers.sparsegpt import SparseGPT  # noqa: E402
from secateur.solvers.taylor import TaylorExpansion  # noqa: E402
from secateur.solvers.unit_problem import ConsumerUpdate, RemovalPath, UnitConsumer, UnitProblem  # noqa: E402
from secateur.solvers.wanda import Wanda  # noqa: E402
from secateur.solvers.ziplm import ZipLM  # noqa: E402

__all__ = [
    "ALPS",
    "OSSCAR",
    "RIA",
    "SOLVERS",
    "ConsumerUpdate",
    "FisherPruning",
    "Magnitude",
    "Problem",
    "RemovalPath",
    "Solution",
    "Solver",
    "SparseGPT",
    "TaylorExpansion",
    "UnitConsumer",
    "UnitProblem",
    "UnitSolver",
    "Wanda",
    "ZipLM",
    "register_solver",
]
