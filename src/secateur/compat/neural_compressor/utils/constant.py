"""Provide the constants of `neural_compressor.utils.constant` that say which operators stay in float32."""

from __future__ import annotations

__all__ = ["FP32"]

FP32 = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
"""Setting of an operator that stays in float32."""
