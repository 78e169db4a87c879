"""Rules for Keras's layers and operations, one file per family. Importing the package registers them."""

from secateur.graph.keras.rules import (
    attention,
    combination,
    convolution,
    elementwise,
    indexing,
    linear,
    norms,
    opaque,
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
    "opaque",
    "reduction",
    "shapes",
    "spatial",
]
