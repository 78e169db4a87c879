"""The recipe of a run: its solver, refiners and allocation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secateur._wording import format_list
from secateur.allocations import ALLOCATIONS, Allocation, ReportedSensitivity, ReportedShares, Uniform
from secateur.allocations.reported import ReportedAllocation
from secateur.errors import CalibrationError, ConfigError
from secateur.oneshot.pytorch.calibration.calibration_loss import Loss
from secateur.planning.layer_targets import TargetSource
from secateur.refiners import REFINERS, BlockRefiner, LayerRefiner, ModelRefiner, Refiner
from secateur.refiners.base import UnitRefiner
from secateur.results import LayerSharesSource, SensitivityReport
from secateur.solvers import SOLVERS, Solver, UnitSolver

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A solver, refiners in the order in which they run, and an allocation.

    Attributes:
        solver: Prunes each layer, or each group of units.
        refiners: Repair the kept weights.
        allocation: Decides how much of each layer is pruned.
        loss: Computes the loss whose gradients rank units, from the outputs of the model and the batch; ``None``: see
            `compute_loss`.
        minutes: Time limit of the run, which refiners of the whole model keep; ``None``: no limit.
        permute: Whether channels are reordered first, so that pruning removes less important weights.
        skips_blocks: Whether refiners of blocks are left out, instead of an error, if the model has no stack of blocks.
    """

    solver: Solver | UnitSolver
    refiners: tuple[Refiner, ...]
    allocation: Allocation
    loss: Loss | None = None
    minutes: float | None = None
    permute: bool = False
    skips_blocks: bool = False

    @classmethod
    def from_names(
        cls,
        solver: str | Solver | UnitSolver,
        refine: str | Refiner | Iterable[str | Refiner] = (),
        allocation: str | Allocation | SensitivityReport | LayerSharesSource = "uniform",
    ) -> Recipe:
        """Build a recipe from names or objects; the result of a scan or a search becomes an allocation.

        Raises:
            UnknownNameError: A name is not registered.
            ConfigError: A value is neither a name nor an object of its kind, or a search does not tell how to
                distribute a target.
        """
        members = tuple(refine) if isinstance(refine, Iterable) and not isinstance(refine, str) else (refine,)
        refiners = tuple(_create(member, Refiner, REFINERS) for member in members)
        if isinstance(allocation, SensitivityReport):
            allocation = ReportedSensitivity(report=allocation)
        elif isinstance(allocation, LayerSharesSource):
            allocation = ReportedShares(shares=allocation.get_layer_shares())
        return cls(
            _create(solver, (Solver, UnitSolver), SOLVERS), refiners, _create(allocation, Allocation, ALLOCATIONS)
        )

    def refuse_without_data(self) -> None:
        """Raise `CalibrationError` if a member, or the search for orders of channels, needs calibration data."""
        if self.permute:
            raise CalibrationError("permute needs calibration data, found none. Pass calibration=batches.")
        if members := self.data_dependent:
            raise CalibrationError(
                f"{type(members[0]).__name__} needs calibration data, found none. Pass calibration=batches, in the "
                f"form that the model accepts; for a language model, 32 sequences of 512 tokens of ordinary text are "
                f"enough."
            )
        if not isinstance(self.allocation, (Uniform, ReportedAllocation)):
            raise CalibrationError(
                f"allocation {type(self.allocation).__name__} is used with calibration data only. Pass "
                f"calibration=batches, or choose 'uniform', 'global', a sensitivity report or a trial of a search."
            )

    @property
    def data_dependent(self) -> list[Solver | UnitSolver | Refiner | Allocation]:
        """The members that need calibration data."""
        members: tuple[Solver | UnitSolver | Refiner | Allocation, ...] = (self.solver, *self.refiners, self.allocation)
        return [member for member in members if getattr(member, "needs", "data") != "nothing"]

    @property
    def layer_solver(self) -> Solver:
        """The solver of single layers; see `refuse_unit_solver`."""
        assert isinstance(self.solver, Solver)
        return self.solver

    @property
    def unit_solver(self) -> UnitSolver:
        """The solver of groups of units; see `refuse_layer_members`."""
        assert isinstance(self.solver, UnitSolver)
        return self.solver

    def refuse_unit_solver(self) -> None:
        """Raise `ConfigError` if the solver, or a refiner, only supports groups of units."""
        if not isinstance(self.solver, Solver):
            raise ConfigError(_explain_kind("solver", self.solver, "groups of units", "single layers", Solver))
        for refiner in self.refiners:
            if isinstance(refiner, UnitRefiner) and not isinstance(refiner, LayerRefiner):
                raise ConfigError(_explain_kind("refiner", refiner, "groups of units", "single layers", LayerRefiner))

    def refuse_layer_members(self) -> None:
        """Raise `ConfigError` if the solver, or a refiner, only supports single layers."""
        if not isinstance(self.solver, UnitSolver):
            raise ConfigError(_explain_kind("solver", self.solver, "single layers", "groups of units", UnitSolver))
        for refiner in self.refiners:
            if isinstance(refiner, LayerRefiner) and not isinstance(refiner, UnitRefiner):
                raise ConfigError(_explain_kind("refiner", refiner, "single layers", "groups of units", UnitRefiner))

    def refuse_several_ranks(self, ranks: int) -> None:
        """Raise `ConfigError` if a refiner needs all batches in one process, and there are several."""
        members: list[BlockRefiner | ModelRefiner] = [*self.block_refiners, *self.model_refiners]
        if ranks > 1 and (alone := [member for member in members if not member.supports_ranks]):
            raise ConfigError(
                f"refine: {type(alone[0]).__name__} does not support several processes (supports_ranks), and "
                f"{ranks} prune together. Leave it out, or start one process."
            )

    @property
    def unit_refiners(self) -> tuple[UnitRefiner, ...]:
        """The refiners of layers that read units."""
        return tuple(refiner for refiner in self.refiners if isinstance(refiner, UnitRefiner))

    @property
    def needs_unit_gram(self) -> bool:
        """Whether pruning needs Gram matrices of the layers that read units; otherwise, norms are enough."""
        refiners = (refiner.unit_needs for refiner in self.unit_refiners)
        return "gram" in {self.unit_solver.unit_needs, self.unit_solver.repair_needs, *refiners}

    @property
    def layer_refiners(self) -> tuple[LayerRefiner, ...]:
        """The refiners of single layers."""
        return tuple(refiner for refiner in self.refiners if isinstance(refiner, LayerRefiner))

    @property
    def block_refiners(self) -> tuple[BlockRefiner, ...]:
        """The refiners of blocks."""
        return tuple(refiner for refiner in self.refiners if isinstance(refiner, BlockRefiner))

    @property
    def model_refiners(self) -> tuple[ModelRefiner, ...]:
        """The refiners of the whole model."""
        return tuple(refiner for refiner in self.refiners if isinstance(refiner, ModelRefiner))

    @property
    def target_source(self) -> TargetSource | None:
        """The result by which the target is distributed; ``None``: there is none."""
        return self.allocation.source if isinstance(self.allocation, ReportedAllocation) else None

    @property
    def sensitivity(self) -> SensitivityReport | None:
        """The sensitivity report by which the target is distributed; ``None``: there is none."""
        return self.allocation.report if isinstance(self.allocation, ReportedSensitivity) else None

    @property
    def needs_gram(self) -> bool:
        """Whether Gram matrices are needed; otherwise, norms are enough."""
        return "gram" in {self.layer_solver.needs, *(refiner.needs for refiner in self.layer_refiners)}

    def __str__(self) -> str:
        members: tuple[Solver | UnitSolver | Refiner, ...] = (self.solver, *self.refiners)
        order = " in a new order of channels" if self.permute else ""
        return " + ".join(map(_describe, members)) + f" over {_describe(self.allocation)}{order}"


def _describe(member: Solver | UnitSolver | Refiner | Allocation) -> str:
    """Return the same text for the same settings in every process, unlike the default ``repr``."""
    if type(member).__repr__ is not object.__repr__:
        return repr(member)
    plain = {name: value for name, value in vars(member).items() if isinstance(value, (bool, int, float, str))}
    return f"{type(member).__name__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def _explain_kind(kind: str, member: Any, found: str, needed: str, base: type) -> str:
    """Return an error for a member that supports another kind of problem, with the names of those that fit."""
    registry: Any = SOLVERS if kind == "solver" else REFINERS
    names = format_list(repr(name) for name, item in registry.items() if issubclass(item, base))
    patterns = "'channels' or 'heads'" if needed == "groups of units" else "'2:4' or '4x1'"
    return (
        f"{kind} must support {needed}, which patterns such as {patterns} prune, found {type(member).__name__}, which "
        f"supports {found}. Use one of {names}."
    )


def _create(value: Any, kind: type | tuple[type, ...], registry: Any) -> Any:
    if isinstance(value, str):
        return registry.find(value)()
    if isinstance(value, kind):
        return value
    names = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
    raise ConfigError(f"{registry.kind} must be a name or an instance of {names}, found {value!r}.")
