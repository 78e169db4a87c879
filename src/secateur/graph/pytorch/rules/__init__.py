"""Rules for the operators of torch, one file per family. Importing the package registers them."""

from secateur.graph.pytorch.rules import (
    attention,
    combination,
    convolution,
    elementwise,
    indexing,
    linear,
    norms,
    recurrent,
    reduction,
    shapes,
    spatial,
)

__all__ = [
    "attention",
    "combination",
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "norms",
    "recurrent",
    "reduction",
    "shapes",
    "spatial",
]
