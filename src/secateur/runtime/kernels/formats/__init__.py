"""Memory formats of packed weights.

A format stores the nonzero weights of a matrix and their positions in the order in which its kernels read them. Formats
are plain data. `dispatch` selects the kernels that read them.

| format | used for |
| --- | --- |
| `BlockFormat` | blocks such as ``4x1`` |
| `UnstructuredFormat` | unstructured sparsity, and N:M that no other format supports |
| `NMFormat` | N:M, small batches or low density |
| `OutputPairFormat` | N:M, large batches and high density |
| `ColumnTileFormat` | AMX, where sixteen outputs share their zeros or nearly everything is zero |
| `BitmaskFormat` | AMX, everything else |
"""

from __future__ import annotations

from secateur.runtime.kernels.formats.base import AmxFormat, WeightFormat
from secateur.runtime.kernels.formats.bitmask import BitmaskFormat
from secateur.runtime.kernels.formats.block import BlockFormat
from secateur.runtime.kernels.formats.column_tiles import ColumnTileFormat
from secateur.runtime.kernels.formats.nm import NMFormat
from secateur.runtime.kernels.formats.output_pairs import OutputPairFormat
from secateur.runtime.kernels.formats.unstructured import UnstructuredFormat

__all__ = [
    "AmxFormat",
    "BitmaskFormat",
    "BlockFormat",
    "ColumnTileFormat",
    "NMFormat",
    "OutputPairFormat",
    "UnstructuredFormat",
    "WeightFormat",
]
