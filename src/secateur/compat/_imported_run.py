"""Define `ImportedRun`, a pruning run from the configuration of another project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.config import PruningConfig
from secateur.errors import StateError
from secateur.oneshot import Calibration, Execution
from secateur.oneshot import prune as prune_in_one_shot
from secateur.training import PruningReport
from secateur.training import prepare as prepare_training

__all__ = ["ImportedRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRun:
    """A pruning run, imported from the configuration of another project.

    Attributes:
        name: Name in the other project, such as the stage of a recipe; may be empty.
        config: The configuration.
        solver: Solver of `secateur.prune` for one-shot pruning; ``None`` for pruning during training.
        solver_settings: Settings of the solver that differ from its defaults.
        allocation: Name of the allocation, which divides the target among layers; by default, the scope in `config`
            decides.
        allocation_settings: Settings of the allocation that differ from its defaults.

    Examples:
        >>> import torch
        >>> config = PruningConfig(pattern="2:4")
        >>> ImportedRun(config=config, solver="magnitude").prune(torch.nn.Linear(8, 4)).sparsity
        0.5
    """

    name: str = ""
    config: PruningConfig
    solver: str | None = None
    solver_settings: Mapping[str, Any] = field(default_factory=dict)
    allocation: str | None = None
    allocation_settings: Mapping[str, Any] = field(default_factory=dict)

    def prune(
        self,
        model: Any,
        *,
        calibration: Calibration | Iterable[Any] | None = None,
        execution: Execution | None = None,
    ) -> PruningReport:
        """Prune a model in one shot; see `secateur.prune`.

        Args:
            model: The model.
            calibration: Batches in the form that the model accepts, if the solver needs them.
            execution: Where and how a run with calibration data executes.

        Raises:
            StateError: The run prunes during training.
            SecateurError: See `secateur.prune`.
        """
        if self.solver is None:
            raise StateError(f"{self._label} prunes during training. Call prepare(model, optimizer=optimizer).")
        solver: Any = self.solver
        allocation: Any = self.allocation
        if self.solver_settings:
            from secateur.solvers import SOLVERS

            solver = SOLVERS.find(self.solver)(**self.solver_settings)
        if self.allocation is not None and self.allocation_settings:
            from secateur.allocations import ALLOCATIONS

            allocation = ALLOCATIONS.find(self.allocation)(**self.allocation_settings)
        return prune_in_one_shot(
            model,
            self.config,
            calibration=calibration,
            solver=solver,
            allocation=allocation,
            execution=execution,
        )

    def prepare(self, model: Any, *, optimizer: Any) -> Any:
        """Prepare a model for pruning during training; see `secateur.prepare`.

        Raises:
            StateError: The run prunes in one shot.
            SecateurError: See `secateur.prepare`.
        """
        if self.solver is not None:
            raise StateError(
                f"{self._label} prunes in one shot with {self.solver!r}. Call prune(model, calibration=batches)."
            )
        return prepare_training(model, self.config, optimizer=optimizer)

    @property
    def _label(self) -> str:
        return f"The run {self.name!r}" if self.name else "This run"
