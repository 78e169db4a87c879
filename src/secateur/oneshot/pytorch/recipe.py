"""The recipe of a run: its solver, refiners and allocation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secateur.allocations import ALLOCATIONS, Allocation
from secateur.errors import CalibrationError, ConfigError
from secateur.refiners import REFINERS, BlockRefiner, LayerRefiner, ModelRefiner, Refiner
from secateur.solvers import SOLVERS, Solver

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A solver, refiners in the order in which they run, and an allocation.

    Attributes:
        solver: Prunes each layer.
        refiners: Repair the kept weights.
        allocation: Decides how much of each layer is pruned.
    """

    solver: Solver
    refiners: tuple[Refiner, ...]
    allocation: Allocation

    @classmethod
    def from_names(
        cls,
        solver: str | Solver,
        refine: str | Refiner | Iterable[str | Refiner] = (),
        allocation: str | Allocation = "uniform",
    ) -> Recipe:
        """Build a recipe from names or objects.

        Raises:
            UnknownNameError: A name is not registered.
            ConfigError: A value is neither a name nor an object of its kind.
        """
        members = tuple(refine) if isinstance(refine, Iterable) and not isinstance(refine, str) else (refine,)
        refiners = tuple(_create(member, Refiner, REFINERS) for member in members)
        return cls(_create(solver, Solver, SOLVERS), refiners, _create(allocation, Allocation, ALLOCATIONS))

    def refuse_without_data(self) -> None:
        """Raise `CalibrationError` if a member needs calibration data."""
        if members := self.data_dependent:
            raise CalibrationError(
                f"{type(members[0]).__name__} needs calibration data, found none. Pass calibration=batches, in the "
                f"form that the model accepts; for a language model, 32 sequences of 512 tokens of ordinary text are "
                f"enough."
            )

    @property
    def data_dependent(self) -> list[Solver | Refiner | Allocation]:
        """The members that need calibration data."""
        members: tuple[Solver | Refiner | Allocation, ...] = (self.solver, *self.refiners, self.allocation)
        return [member for member in members if getattr(member, "needs", "data") != "nothing"]

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
    def needs_gram(self) -> bool:
        """Whether Gram matrices are needed; else norms are enough."""
        return "gram" in {self.solver.needs, *(refiner.needs for refiner in self.layer_refiners)}

    def __str__(self) -> str:
        members: tuple[Solver | Refiner, ...] = (self.solver, *self.refiners)
        return " + ".join(map(_describe, members)) + f" over {_describe(self.allocation)}"


def _describe(member: Solver | Refiner | Allocation) -> str:
    """Return the same text for the same settings in every process, unlike the default ``repr``."""
    if type(member).__repr__ is not object.__repr__:
        return repr(member)
    plain = {name: value for name, value in vars(member).items() if isinstance(value, (bool, int, float, str))}
    return f"{type(member).__name__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def _create(value: Any, kind: type, registry: Any) -> Any:
    if isinstance(value, str):
        return registry.find(value)()
    if isinstance(value, kind):
        return value
    raise ConfigError(f"{registry.kind} must be a name or an instance of {kind.__name__}, found {value!r}.")
