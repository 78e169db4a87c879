"""Provide the package `neural_compressor.evaluation`."""

__all__: list[str] = []
