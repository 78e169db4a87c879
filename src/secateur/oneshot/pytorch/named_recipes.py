"""Recipes by name: a solver and refiners that go together, within a time limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from secateur._wording import suggest_name
from secateur.errors import ConfigError, UnknownNameError
from secateur.refiners import Block, Distill, Refiner
from secateur.solvers import ALPS, OSSCAR, Solver, UnitSolver

__all__ = ["RECIPES", "Members", "choose_members"]

BLOCK_SHARE = 0.5
"""Share of the time limit for tuning single blocks; distillation gets the rest."""

EPOCHS = 6
"""Maximum number of passes over the calibration data, however much time there is; more hardly help or are harmful."""

UNITS_DENSE_SHARE = 0.5
"""Weight of the dense model's inputs in the targets of blocks from which units in several layers were removed."""

RATE = 0.002
"""Learning rate of distillation after single layers were pruned; for units in several, its default is better."""


class Members(NamedTuple):
    """The members of a recipe.

    Attributes:
        solver: Prunes each layer, or each group of units.
        refiners: Repair the kept weights, in order.
    """

    solver: Solver | UnitSolver
    refiners: tuple[Refiner, ...]


def _build_best(*, has_units: bool, minutes: float | None) -> Members:
    """Return the most accurate solver, and refiners of blocks and then of the whole model."""
    share = UNITS_DENSE_SHARE if has_units else Block.dense_share
    block = Block(minutes=None if minutes is None else BLOCK_SHARE * minutes, dense_share=share)
    distill = Distill(epochs=EPOCHS, rate=Distill.rate if has_units else RATE)
    return Members(OSSCAR() if has_units else ALPS(), (block, distill))


RECIPES: Mapping[str, Callable[..., Members]] = {"best": _build_best}
"""Name → function that builds the members, for single layers or for units in several, with or without a time limit."""


def choose_members(
    recipe: str | None, minutes: float | None, solver: Any, refine: Any, *, has_units: bool
) -> tuple[Any, Any]:
    """Return the solver and the refiners: those of the recipe, if there is one.

    Raises:
        ConfigError: Arguments contradict each other, or the time limit is not a positive number.
        UnknownNameError: There is no such recipe.
    """
    if recipe is None:
        if minutes is not None:
            raise ConfigError(
                "minutes is the time limit of a recipe, and none is given. Pass recipe='best', or "
                "refine=Distill(minutes=...)."
            )
        return solver, refine
    if recipe not in RECIPES:
        raise UnknownNameError(
            f"Unknown recipe {recipe!r}.{suggest_name(str(recipe), RECIPES)} Known: {', '.join(RECIPES)}."
        )
    for name, is_given in {"solver": solver != "magnitude", "refine": refine not in ((), [])}.items():
        if is_given:
            raise ConfigError(f"recipe={recipe!r} chooses the solver and the refiners. Leave out {name} or recipe.")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"minutes must be a number above 0, found {minutes}.")
    return RECIPES[recipe](has_units=has_units, minutes=minutes)
