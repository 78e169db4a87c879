"""Models in Keras's own files."""

from __future__ import annotations

from pathlib import Path

import keras

from secateur.errors import ModelLoadError

__all__ = ["from_file"]


def from_file(file: Path) -> keras.Model:
    """The model in a ``.keras`` file, not compiled.

    Raises:
        ModelLoadError: Keras cannot read it.
    """
    try:
        return keras.saving.load_model(file, compile=False)
    # Zip files, HDF5, JSON and whatever layers the file names: each with its own errors.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelLoadError(f"Keras cannot read a model from {str(file)!r}: {first_line}") from error
