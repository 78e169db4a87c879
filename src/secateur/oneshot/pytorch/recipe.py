"""How to prune: a solver, what repairs its result, and how layers share the target."""

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
    """A solver and refiners, in the order in which they act, and an allocation.

    Attributes:
        solver: The solver.
        refiners: The refiners.
        allocation: How much of each layer goes.
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
            UnknownNameError: A name means nothing.
            ConfigError: Something else was given.
        """
        given = tuple(refine) if isinstance(refine, Iterable) and not isinstance(refine, str) else (refine,)
        refiners = tuple(_made(one, Refiner, REFINERS) for one in given)
        return cls(_made(solver, Solver, SOLVERS), refiners, _made(allocation, Allocation, ALLOCATIONS))

    def refuse_without_data(self) -> None:
        """Raise `CalibrationError` if a part of it reads what only calibration data can tell."""
        if reading := self.reading:
            raise CalibrationError(
                f"{type(reading[0]).__name__} needs calibration data, found none. Pass calibration=batches, in the "
                f"form that the model takes; 32 sequences of 512 tokens of ordinary text serve a language model."
            )

    @property
    def reading(self) -> list[Solver | Refiner | Allocation]:
        """The parts that read what only calibration data can tell."""
        parts: tuple[Solver | Refiner | Allocation, ...] = (self.solver, *self.refiners, self.allocation)
        return [part for part in parts if getattr(part, "needs", "data") != "nothing"]

    @property
    def layer_refiners(self) -> tuple[LayerRefiner, ...]:
        """Those that repair single layers."""
        return tuple(one for one in self.refiners if isinstance(one, LayerRefiner))

    @property
    def block_refiners(self) -> tuple[BlockRefiner, ...]:
        """Those that repair blocks."""
        return tuple(one for one in self.refiners if isinstance(one, BlockRefiner))

    @property
    def model_refiners(self) -> tuple[ModelRefiner, ...]:
        """Those that repair the whole model."""
        return tuple(one for one in self.refiners if isinstance(one, ModelRefiner))

    @property
    def needs_gram(self) -> bool:
        """Whether Gram matrices are needed, rather than norms."""
        return self.solver.needs == "gram" or bool(self.layer_refiners)

    def __str__(self) -> str:
        acting: tuple[Solver | Refiner, ...] = (self.solver, *self.refiners)
        return " + ".join(map(_shown, acting)) + f" over {_shown(self.allocation)}"


def _shown(part: Solver | Refiner | Allocation) -> str:
    """The same text for the same settings in every process, as what Python shows of an object by itself is not."""
    if type(part).__repr__ is not object.__repr__:
        return repr(part)
    plain = {name: value for name, value in vars(part).items() if isinstance(value, (bool, int, float, str))}
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def _made(given: Any, kind: type, registry: Any) -> Any:
    if isinstance(given, str):
        return registry.find(given)()
    if isinstance(given, kind):
        return given
    raise ConfigError(f"A {registry.kind} must be a name or a {kind.__name__}, found {given!r}.")
