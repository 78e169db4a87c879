"""Find the groups of coupled units in a Keras model."""

from secateur.graph.keras.tracing import trace

__all__ = ["trace"]
