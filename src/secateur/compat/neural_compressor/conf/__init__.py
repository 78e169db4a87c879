"""Provide the package `neural_compressor.conf`."""

__all__: list[str] = []
