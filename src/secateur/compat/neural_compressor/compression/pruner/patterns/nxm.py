"""Blocks of N output channels and M input channels."""

from __future__ import annotations

from typing import Any

from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    KerasBasePattern,
    PytorchBasePattern,
    register_pattern,
)
from secateur.frameworks import get_framework

__all__ = ["KerasPatternNxM", "PytorchPatternNxM"]


def _measure_block(pattern: Any, module: Any) -> tuple[int, int]:
    rows, columns = pattern.core_pattern_name().split("x")
    outputs, positions, inputs = get_framework(pattern.framework).get_view(module).canonical_shape
    return outputs if rows == "channel" else int(rows), positions * inputs if columns == "channel" else int(columns)


@register_pattern("ptNxM")
class PytorchPatternNxM(PytorchBasePattern):
    """Blocks in torch layers."""

    def core_pattern_name(self) -> str:
        """Return the pattern without its prefix."""
        return str(self.pattern.rpartition("_")[2])

    def get_block_size_dict(self, data: Any = None) -> dict[str, tuple[int, int]]:
        """Return the block of each layer, in output and input channels."""
        return {name: _measure_block(self, self.modules[name]) for name in (self.modules if data is None else data)}


@register_pattern("kerasNxM")
class KerasPatternNxM(KerasBasePattern):
    """Blocks in Keras layers."""

    def core_pattern_name(self) -> str:
        """Return the pattern without its prefix."""
        return str(self.pattern.rpartition("_")[2])

    def get_block_size_dict(self, data: Any = None) -> dict[str, tuple[int, int]]:
        """Return the block of each layer, in output and input channels."""
        return {name: _measure_block(self, self.modules[name]) for name in (self.modules if data is None else data)}
