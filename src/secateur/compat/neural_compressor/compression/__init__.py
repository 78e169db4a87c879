"""Provide the package `neural_compressor.compression`: pruning, distillation and the search of hyperparameters."""

__all__: list[str] = []
