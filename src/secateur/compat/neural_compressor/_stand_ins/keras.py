"""Create Keras layers from the weights in files."""

from __future__ import annotations

import keras

from secateur._array import Array
from secateur.frameworks import WeightView

__all__ = ["make_layer"]

KINDS = {2: keras.layers.Dense, 3: keras.layers.Conv1D, 4: keras.layers.Conv2D, 5: keras.layers.Conv3D}


def make_layer(view: WeightView, nonzero: Array) -> keras.Layer | None:
    """Return a layer whose kernel is 1.0 where `nonzero` is true, and 0.0 elsewhere.

    Args:
        view: The view of its kernel.
        nonzero: Booleans in the shape of the kernel.

    Returns:
        The layer; ``None`` if the kernel is not that of a dense layer or a convolution, with output channels last.
    """
    *kernel, inputs, outputs = (*range(len(view.shape)),)
    if len(view.shape) not in KINDS or not view.outputs_last or view.input_axes != (inputs,):
        return None
    size = tuple(view.shape[axis] for axis in kernel)
    settings = {"kernel_size": size, "groups": view.groups} if size else {}
    layer = KINDS[len(view.shape)](view.shape[outputs], use_bias=False, **settings)
    layer.build((None, *size, view.shape[inputs] * view.groups))
    layer.kernel.assign(nonzero.astype("float32"))
    return layer
