"""Load models and weights from ``.keras`` and ``.weights.h5`` files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np

from secateur._files import open_file
from secateur._json import parse_json
from secateur._model_limits import ModelLimits
from secateur._third_party import translate_errors
from secateur._wording import format_value
from secateur.artifact.keras import check_description
from secateur.errors import ArtifactError, CalibrationError, ModelLoadError
from secateur.models.archives import check_hdf5, check_zip, read_npz

__all__ = ["load_keras_file", "load_keras_weights", "make_random_arrays", "read_arrays"]

CONFIG = "config.json"
HDF5 = "model.weights.h5"


def load_keras_file(file: Path) -> keras.Model:
    """Load the model in a ``.keras`` file, without compiling it.

    Raises:
        ModelLoadError: Keras cannot read the file, or it describes a model that is larger than its weights.
    """
    with translate_errors(ModelLoadError, f"Keras cannot read a model from {str(file)!r}"):
        with open_file(file) as binary:
            _check_archive(binary, file)
        model = keras.saving.load_model(file, compile=False)
        if not isinstance(model, keras.Model):
            raise ArtifactError(f"it must describe a model, found {type(model).__name__}")
        return model


def load_keras_weights(model: keras.Model, file: Path) -> None:
    """Load the weights of a ``.weights.h5`` file into a model.

    Raises:
        ModelLoadError: Keras cannot read the file, or its weights do not belong to the model.
    """
    with translate_errors(ModelLoadError, f"Keras cannot load {str(file)!r} into the model"):
        with open_file(file) as binary:
            _count_elements(binary, file, binary.seek(0, io.SEEK_END))
        model.load_weights(file)


def make_random_arrays(model: keras.Model, batch: int) -> list[Any] | None:
    """Make random numbers for each input of a model, the same in every call; ``None``: their shapes are not known."""
    generator = np.random.default_rng(0)
    shapes = [tuple(tensor.shape[1:]) for tensor in getattr(model, "inputs", None) or ()]
    if not shapes or any(None in shape for shape in shapes):
        return None
    return [generator.standard_normal((batch, *shape), dtype=np.float32) for shape in shapes]


def read_arrays(file: Path, batch: int) -> list[Any]:
    """Read the first rows of the inputs in an ``.npz`` file.

    Raises:
        CalibrationError: The file cannot be read, is empty, or has something else.
    """
    arrays = [_select_rows(name, array, batch, file) for name, array in read_npz(file).items()]
    if not arrays:
        raise CalibrationError(f"{str(file)!r} must have at least one array, found none.")
    return arrays


def _select_rows(name: str, array: Any, batch: int, file: Path) -> Any:
    if array.ndim == 0 or array.dtype.kind not in "biufc":
        raise CalibrationError(
            f"{str(file)!r} must have arrays of numbers with one row per example, found {format_value(name)}: "
            f"{array.dtype}, {list(array.shape)}."
        )
    return array[:batch]


def _check_archive(binary: BinaryIO, file: Path) -> None:
    """Raise `ArtifactError` if loading a file would take much more memory than its weights."""
    members = check_zip(binary, file)
    if missing := [name for name in (CONFIG, HDF5) if name not in members]:
        raise ArtifactError(f"it has no {missing[0]}")
    with zipfile.ZipFile(binary) as archive:
        description = parse_json(archive.read(CONFIG), file)
        sizes = _count_elements(io.BytesIO(archive.read(HDF5)), file, binary.seek(0, io.SEEK_END))
    check_description(description, ModelLimits.from_stored(len(sizes), sum(sizes)), file)


def _count_elements(binary: BinaryIO, file: Path, size: int) -> list[int]:
    """Count the elements of each dataset in an HDF5 file."""
    import h5py

    with h5py.File(binary, "r") as weights:
        return check_hdf5(weights, file, size)
