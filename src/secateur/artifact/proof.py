"""Whether the zeros of a weight are those of a pattern."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur.artifact.manifest import Claim
from secateur.errors import ConfigError
from secateur.frameworks.view import WeightView
from secateur.patterns.base import BasePattern, get_pattern

__all__ = ["fits", "unfounded", "violation"]

LAYER = "weight"


def violation(
    specification: str, view: WeightView, nonzero: npt.NDArray[np.bool_], claim: Claim | None = None
) -> str | None:
    """What speaks against the pattern; ``None``: it holds.

    Args:
        specification: The pattern.
        view: Where the weight's channels lie.
        nonzero: Where it is not zero, in its shape as stored.
        claim: How much of it was pruned: at least so many units must be zero, and a weight that stayed may be zero by
            chance. ``None``: something must be pruned, and every zero must belong to a unit that is.
    """
    pattern = _fitting(specification, view)
    if isinstance(pattern, str):
        return pattern
    ((name, units),) = pattern.units.items()
    if claim is not None and claim.units != units.count:
        return f"it has {units.count:,} units, and {claim.units:,} were written down"
    if not nonzero.any():
        return None
    masks = {LAYER: nonzero}
    if claim is None:
        if nonzero.all():
            return "nothing of it is zero"
        return pattern.violations(masks).get(LAYER)
    alive = pattern.units_without_zeros(masks)
    pruned = units.count - count_true(alive[name])
    if pruned < claim.pruned_units:
        return f"{pruned:,} units of it are zero, and {claim.pruned_units:,} were pruned"
    return None


def unfounded(specification: str, view: WeightView, stored: npt.NDArray[np.bool_]) -> str | None:
    """What speaks against a pattern that was found in a weight rather than asked for; ``None``: it is there.

    Args:
        specification: The pattern: every group must have it if it is N:M, and at least one unit must be zero if not.
        view: Where the weight's channels lie.
        stored: Where it is anything but a zero without sign, in its shape as stored.
    """
    pattern = _fitting(specification, view)
    if isinstance(pattern, str):
        return pattern
    pruned = max(1, pattern.pruned_units(pattern.target_sparsity))
    (units,) = pattern.units.values()
    claim = Claim(pattern=specification, units=units.count, pruned_units=pruned)
    return violation(specification, view, stored, claim)


def fits(specification: str, view: WeightView) -> bool:
    """Whether a pattern tiles a weight of that shape.

    Raises:
        UnknownNameError: There is no such pattern.
    """
    return LAYER not in _pattern(specification, view).invalid_layers


def _fitting(specification: str, view: WeightView) -> BasePattern | str:
    """The pattern on the weight, or why there is none."""
    try:
        pattern = _pattern(specification, view)
    except ConfigError as error:
        return f"the pattern cannot be proved: {error}"
    return pattern.invalid_layers.get(LAYER, pattern)


def _pattern(specification: str, view: WeightView) -> BasePattern:
    settings = {"pattern": specification, "target_sparsity": None if ":" in specification else 0.0}
    return get_pattern(settings, {LAYER: view}, "array")
