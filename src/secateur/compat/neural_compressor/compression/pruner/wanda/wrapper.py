"""Provide `neural_compressor.compression.pruner.wanda.wrapper.WrappedGPT`, which needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.compat.neural_compressor.compression.pruner.wanda.pytorch import WrappedGPT

__all__ = ["WrappedGPT"]


def __getattr__(name: str) -> Any:
    if name != "WrappedGPT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from secateur.compat.neural_compressor.compression.pruner.wanda.pytorch import WrappedGPT

    return WrappedGPT
