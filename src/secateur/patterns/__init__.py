"""Sparsity patterns, which tile weights into units and turn scores into boolean masks."""

from secateur._deprecated import serve_old_names
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
from secateur.patterns.channels import ChannelsPattern
from secateur.patterns.heads import HeadsPattern
from secateur.patterns.nm import NMPattern
from secateur.patterns.slices import SliceTiling
from secateur.patterns.tiling import BlockTiling, OutputsLastTiling, Tiling, Units
from secateur.patterns.transposable import TransposableNMPattern

__getattr__ = serve_old_names(
    __name__,
    {
        "BlockLayout": "secateur.patterns:BlockTiling",
        "KeepOfGroupPattern": "secateur.patterns:NMPattern",
        "Layout": "secateur.patterns:Tiling",
        "TurnedLayout": "secateur.patterns:OutputsLastTiling",
    },
)

__all__ = [
    "PATTERNS",
    "ArrayBasePattern",
    "BasePattern",
    "BlockPattern",
    "BlockTiling",
    "ChannelsPattern",
    "HeadsPattern",
    "KerasBasePattern",
    "NMPattern",
    "OutputsLastTiling",
    "PytorchBasePattern",
    "SliceTiling",
    "Tiling",
    "TransposableNMPattern",
    "Units",
    "WeightView",
    "get_pattern",
    "register_pattern",
]
