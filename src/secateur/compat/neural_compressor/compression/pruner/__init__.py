"""Provide the package `neural_compressor.compression.pruner`."""
