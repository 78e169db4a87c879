"""Which units of a weight are pruned: scores in, boolean masks out."""

from secateur.frameworks import WeightView
from secateur.patterns.base import (
    PATTERNS,
    ArrayBasePattern,
    BasePattern,
    KerasBasePattern,
    PytorchBasePattern,
    get_pattern,
    register_pattern,
)
from secateur.patterns.block import BlockPattern
from secateur.patterns.layout import BlockLayout, Layout, TurnedLayout, Units
from secateur.patterns.nm import KeepOfGroupPattern

__all__ = [
    "PATTERNS",
    "ArrayBasePattern",
    "BasePattern",
    "BlockLayout",
    "BlockPattern",
    "KeepOfGroupPattern",
    "KerasBasePattern",
    "Layout",
    "PytorchBasePattern",
    "TurnedLayout",
    "Units",
    "WeightView",
    "get_pattern",
    "register_pattern",
]
