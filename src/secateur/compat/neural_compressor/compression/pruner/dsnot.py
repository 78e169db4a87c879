"""Provide DSnoT, a refiner of `secateur.prune`; `prune_wanda` applies it with ``dsnot=True``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.refiners import DSnoT

__all__ = ["DSnoT"]


def __getattr__(name: str) -> Any:
    if name != "DSnoT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from secateur.refiners import DSnoT

    return DSnoT
