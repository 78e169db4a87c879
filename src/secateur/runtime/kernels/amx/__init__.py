"""Kernels that multiply tiles of bfloat16 with Intel AMX, and the small-batch kernel for the bitmask format."""

from __future__ import annotations

from secateur.runtime.kernels.amx.bitmask_small_batch import BitmaskSmallBatchKernel
from secateur.runtime.kernels.amx.bitmask_tiles import BitmaskTileKernel
from secateur.runtime.kernels.amx.column_tiles import Bfloat16ColumnTileKernel, Float32ColumnTileKernel

__all__ = ["Bfloat16ColumnTileKernel", "BitmaskSmallBatchKernel", "BitmaskTileKernel", "Float32ColumnTileKernel"]
