"""Provide the package `neural_compressor.adaptor.tf_utils`."""

__all__: list[str] = []
