"""Models and weights in Keras's own files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import BinaryIO

import keras

from secateur._files import open_file
from secateur._json import parse_json
from secateur._model_limits import ModelLimits
from secateur._third_party import translate_errors
from secateur.artifact.keras import check_description
from secateur.errors import ArtifactError, ModelLoadError
from secateur.models.archives import check_hdf5, check_zip

__all__ = ["fill_keras", "from_file"]

CONFIG = "config.json"
HDF5 = "model.weights.h5"


def from_file(file: Path) -> keras.Model:
    """The model in a ``.keras`` file, not compiled.

    Raises:
        ModelLoadError: Keras cannot read it, or it describes a larger model than it has weights for.
    """
    with translate_errors(ModelLoadError, f"Keras cannot read a model from {str(file)!r}"):
        with open_file(file) as held:
            _check_archive(held, file)
        model = keras.saving.load_model(file, compile=False)
        if not isinstance(model, keras.Model):
            raise ArtifactError(f"it describes no model, found {type(model).__name__}")
        return model


def fill_keras(model: keras.Model, file: Path) -> None:
    """Put the weights of a ``.weights.h5`` file into a model.

    Raises:
        ModelLoadError: Keras cannot read them, or they are not those of the model.
    """
    with translate_errors(ModelLoadError, f"Keras cannot put {str(file)!r} into the model"):
        with open_file(file) as held:
            _sizes(held, file, held.seek(0, io.SEEK_END))
        model.load_weights(file)


def _check_archive(held: BinaryIO, file: Path) -> None:
    """Refuse a file that would take far more memory than its weights do."""
    members = check_zip(held, file)
    if absent := [name for name in (CONFIG, HDF5) if name not in members]:
        raise ArtifactError(f"it has no {absent[0]}")
    with zipfile.ZipFile(held) as archive:
        description = parse_json(archive.read(CONFIG), file)
        sizes = _sizes(io.BytesIO(archive.read(HDF5)), file, held.seek(0, io.SEEK_END))
    check_description(description, ModelLimits.from_stored(len(sizes), sum(sizes)), file)


def _sizes(held: BinaryIO, file: Path, stored: int) -> list[int]:
    """How many numbers each dataset of an HDF5 file holds."""
    import h5py

    with h5py.File(held, "r") as weights:
        return check_hdf5(weights, file, stored)
