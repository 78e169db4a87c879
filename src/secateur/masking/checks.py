"""Refuse weights and masks that are not as they should be."""

from __future__ import annotations

from collections.abc import Mapping

from secateur._array import has_nan
from secateur.errors import ScoreError, StateError
from secateur.masking.run import HeldWeight

__all__ = ["refuse_nan", "refuse_violations"]


def refuse_nan(weights: Mapping[str, HeldWeight]) -> None:
    """Raise `ScoreError` if a weight has ``nan``."""
    for name, weight in weights.items():
        if has_nan(weight.stored):
            raise ScoreError(f"layer {name!r}: weights must be numbers, found nan. Restore it before pruning.")


def refuse_violations(wrong: Mapping[str, str]) -> None:
    """Raise `StateError` if there are any, as `Run.violations` returns them."""
    if wrong:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in wrong.items())
        raise StateError(f"The masks or weights of {len(wrong)} layers are not as they should be:{lines}")
