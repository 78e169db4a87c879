"""Models and weights in Keras's own files."""

from __future__ import annotations

from pathlib import Path

import keras

from secateur.errors import ModelLoadError

__all__ = ["fill_keras", "from_file"]


def from_file(file: Path) -> keras.Model:
    """The model in a ``.keras`` file, not compiled.

    Raises:
        ModelLoadError: Keras cannot read it.
    """
    try:
        return keras.saving.load_model(file, compile=False)
    # Zip files, HDF5, JSON and whatever layers the file names: each with its own errors.
    except Exception as error:
        raise ModelLoadError(f"Keras cannot read a model from {str(file)!r}: {_first_line(error)}") from error


def fill_keras(model: keras.Model, file: Path) -> None:
    """Put the weights of a ``.weights.h5`` file into a model.

    Raises:
        ModelLoadError: Keras cannot read them, or they are not those of the model.
    """
    try:
        model.load_weights(file)
    # As above.
    except Exception as error:
        raise ModelLoadError(f"Keras cannot put {str(file)!r} into the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
