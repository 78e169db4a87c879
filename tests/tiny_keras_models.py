"""A tiny Keras model, for every backend."""

from typing import Any

import keras


def net(seed: int = 0, dtype: Any = None) -> keras.Sequential:
    """Layers ``conv``, ``fc`` and the output ``out``; 128 + 1,152 weights are to be pruned.

    Only the output has a bias: tracing a step takes time for each variable.
    """
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((4, 4, 4)),
        keras.layers.Conv2D(8, 2, activation="relu", use_bias=False, name="conv", dtype=dtype),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(16, activation="relu", use_bias=False, name="fc", dtype=dtype),
        keras.layers.Dense(4, name="out", dtype=dtype),
    ]
    return keras.Sequential(layers, name="net")
