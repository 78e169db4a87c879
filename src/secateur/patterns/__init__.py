"""Which units of a weight may live: scores in, boolean masks out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.patterns import base
from secateur.patterns.base import PATTERNS, BasePattern, get_pattern, register_pattern
from secateur.patterns.block import BlockPattern
from secateur.patterns.layout import BlockLayout, Layout, TurnedLayout, Units
from secateur.patterns.nm import KeepOfGroupPattern
from secateur.patterns.view import WeightView

if TYPE_CHECKING:
    from secateur.patterns.array import ArrayBasePattern as ArrayBasePattern
    from secateur.patterns.keras import KerasBasePattern as KerasBasePattern
    from secateur.patterns.pytorch import PytorchBasePattern as PytorchBasePattern

__all__ = [
    "PATTERNS",
    "BasePattern",
    "BlockLayout",
    "BlockPattern",
    "KeepOfGroupPattern",
    "Layout",
    "TurnedLayout",
    "Units",
    "WeightView",
    "get_pattern",
    "register_pattern",
]

LAZY = {"KerasBasePattern", "ArrayBasePattern", "PytorchBasePattern"}
"""Names that importing loads a framework for; a star import leaves them out."""


def __dir__() -> list[str]:
    return sorted({*__all__, *LAZY})


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
