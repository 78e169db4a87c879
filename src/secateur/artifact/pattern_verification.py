"""Verify that the zeros of a weight are those of a pattern."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from secateur._array import count_true
from secateur.artifact.manifest import Claim
from secateur.errors import ConfigError, UnknownNameError
from secateur.frameworks.view import WeightView
from secateur.patterns.base import BasePattern, get_pattern

__all__ = ["find_verified_pattern", "fits_pattern", "restate_claim", "verify_pattern", "verify_recognized_pattern"]

LAYER = "weight"

WRITTEN = re.compile(r"(pt|keras)[A-Z][^()]*(\([^()]+\))?")
"""Names of pattern classes for Intel Neural Compressor that prune single weights."""

MIN_EXPLAINED = 0.99
"""Smallest share of the zeros in pruned units for which a weight in another layout still has the pattern."""


def verify_pattern(
    specification: str, view: WeightView, nonzero: npt.NDArray[np.bool_], claim: Claim | None = None
) -> str | None:
    """Explain why a weight does not have a pattern; ``None``: it has the pattern.

    Args:
        specification: The pattern.
        view: The axes of the weight.
        nonzero: Which weights are not zero, in the shape as stored.
        claim: How much was pruned: at least that many units must be zero, and other weights may be zero by chance.
            ``None``: something must be pruned, and every zero must belong to a pruned unit.
    """
    pattern = _bind_pattern(find_verified_pattern(specification, view, claim), view)
    if isinstance(pattern, str):
        return pattern
    ((name, units),) = pattern.units.items()
    if claim is not None and claim.units != units.count:
        return f"it has {units.count:,} units, but the manifest says {claim.units:,}"
    if not nonzero.any():
        return None
    masks = {LAYER: nonzero}
    if claim is None:
        if nonzero.all():
            return "it has no zeros"
        return pattern.violations(masks).get(LAYER)
    alive = pattern.find_nonzero_units(masks)
    pruned = units.count - count_true(alive[name])
    if pruned < claim.pruned_units:
        return f"{pruned:,} of its units are zero, but {claim.pruned_units:,} were pruned"
    return None


def find_verified_pattern(specification: str, view: WeightView, claim: Claim | None) -> str:
    """Return the pattern by which a weight is verified.

    This is the requested one, or ``"1x1"`` for a class for Intel Neural Compressor that is not registered or does not
    define which weights of a file are pruned together.

    Args:
        specification: The requested pattern.
        view: The axes of the weight.
        claim: How much was pruned.
    """
    try:
        return _get_pattern(specification, view).verified_as
    except UnknownNameError:
        has_single_weights = claim is not None and claim.units == math.prod(view.shape)
        return "1x1" if has_single_weights and WRITTEN.fullmatch(specification) else specification
    except ConfigError:
        return specification


def verify_recognized_pattern(specification: str, view: WeightView, nonzero: npt.NDArray[np.bool_]) -> str | None:
    """Explain why a weight does not have a pattern that was recognized, not requested; ``None``: it has the pattern.

    Args:
        specification: The pattern. For N:M, it must hold in every group; for others, at least one unit must be zero.
        view: The axes of the weight.
        nonzero: Which weights are not ``+0.0``, in the shape as stored.
    """
    pattern = _bind_pattern(specification, view)
    if isinstance(pattern, str):
        return pattern
    pruned = max(1, pattern.count_pruned_units(pattern.target_sparsity))
    (units,) = pattern.units.values()
    claim = Claim(pattern=specification, units=units.count, pruned_units=pruned)
    return verify_pattern(specification, view, nonzero, claim)


def restate_claim(
    specification: str, view: WeightView, nonzero: npt.NDArray[np.bool_], error: float | None = None
) -> Claim:
    """State what is pruned in a weight that is written in a different layout than it was pruned in.

    If most of its zeros are outside of pruned units, because rows or columns have another order, the pattern is
    ``1x1``.

    Args:
        specification: The pattern in which it was pruned.
        view: The axes of the weight as it is written.
        nonzero: Which weights are not zero, in the shape as stored.
        error: The error of the layer's outputs, which does not depend on the layout.
    """
    zeros = nonzero.size - count_true(nonzero)
    pattern = _bind_pattern(specification, view)
    if not isinstance(pattern, str):
        ((name, units),) = pattern.units.items()
        pruned = units.count - count_true(pattern.find_nonzero_units({LAYER: nonzero})[name])
        is_explained = pruned * nonzero.size >= zeros * units.count * MIN_EXPLAINED
        if is_explained or verify_pattern(specification, view, nonzero) is None:
            return Claim(pattern=specification, units=units.count, pruned_units=pruned, error=error)
    return Claim(pattern="1x1", units=nonzero.size, pruned_units=zeros, error=error)


def fits_pattern(specification: str, view: WeightView) -> bool:
    """Whether a pattern tiles a weight of that shape.

    Raises:
        UnknownNameError: There is no such pattern.
    """
    return LAYER not in _get_pattern(specification, view).invalid_layers


def _bind_pattern(specification: str, view: WeightView) -> BasePattern | str:
    """Apply the pattern to the weight, or explain why it does not fit."""
    try:
        pattern = _get_pattern(specification, view)
    except ConfigError as error:
        return f"the pattern cannot be verified: {error}"
    return pattern.invalid_layers.get(LAYER, pattern)


def _get_pattern(specification: str, view: WeightView) -> BasePattern:
    settings = {"pattern": specification, "target_sparsity": None if ":" in specification else 0.0}
    return get_pattern(settings, {LAYER: view}, "array")
