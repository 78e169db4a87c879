"""Models by reference: what a command line can name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from secateur._manifest_file import MANIFEST
from secateur._packages import find_package_file, find_package_folder, require_keras, require_packages
from secateur.artifact import Artifact, load
from secateur.errors import ConfigError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.models.code import from_code
from secateur.models.trained import TrainedModel

__all__ = ["TrainedModel", "artifact_path", "is_packed", "load_model", "load_trained", "transformers_path"]

CONFIG_FILE = "config.json"
KERAS_FILE = ".keras"
GGUF_FILE = ".gguf"
KERAS_WEIGHTS = ".weights.h5"


def load_model(reference: str) -> Any:
    """The model that a text refers to, as far as a plan needs it.

    Args:
        reference: ``package.module:name`` of a model or of a function that returns one, importable or in the current
            directory; or a ``.keras`` file; or a transformers folder or a ``.gguf`` file: a path, or
            ``package/path`` within an installed package. From these two the model is built on the meta device: every
            layer and shape, no weights; or an artifact that says how its model is built.

    Raises:
        UnknownNameError: There is nothing of that name.
        UnsupportedModelError: The folder is none of transformers.
        ModelLoadError: The code, the file or the folder fails to build its model.
        MissingPackageError: A package is needed and not installed.

    Example:
        >>> load_model("torch.nn:Identity")
        Identity()
    """
    if (path := transformers_path(reference)) is not None:
        from secateur.models.pytorch import architecture

        return architecture(path)
    if (artifact := artifact_path(reference)) is not None:
        return load(artifact)
    return _from_keras_file(Path(reference)) if reference.endswith(KERAS_FILE) else _from_code(reference)


def load_trained(reference: str, weights: Path | None = None) -> TrainedModel:
    """The model that a text refers to, with its weights and what belongs to it.

    Args:
        reference: See `load_model`.
        weights: A file with the weights of a model that code builds: a safetensors file, what ``torch.save`` wrote of a
            state dict, or Keras's ``.weights.h5``. ``None``: the model has them already.

    Raises:
        SecateurError: See `load_model`; or the weights cannot be read, or are not those of the model.
    """
    path = transformers_path(reference)
    is_code = path is None and not reference.endswith(KERAS_FILE) and artifact_path(reference) is None
    if weights is not None and not is_code:
        raise ConfigError(f"weights goes with a model that code builds, and {reference!r} has its own. Leave it out.")
    if (artifact := artifact_path(reference)) is not None:
        return TrainedModel(load(artifact), path)
    if path is not None:
        from secateur.models.pytorch import trained

        return TrainedModel(trained(path), path)
    model = _from_code(reference) if is_code else _from_keras_file(Path(reference))
    if weights is not None:
        _fill(model, weights)
    return TrainedModel(model)


def transformers_path(reference: str) -> Path | None:
    """The transformers folder or the GGUF file that a text refers to; ``None``: it refers to something else.

    Raises:
        UnknownNameError: There is no such file.
        UnsupportedModelError: The folder is none of transformers.
        MissingPackageError: A package is needed to read it and not installed.
    """
    package, slash, rest = reference.partition("/")
    is_shipped = bool(slash) and package.isidentifier()
    if reference.endswith(GGUF_FILE):
        file = Path(reference)
        if not os.path.isfile(file):
            file = (find_package_file(package, rest) if is_shipped else None) or file
        _refuse_missing(file)
        require_packages("torch", "transformers", "accelerate", "gguf", extra="demo")
        return file
    folder = Path(reference) if os.path.isdir(reference) else None
    folder = folder or (find_package_folder(package, rest) if is_shipped else None)
    if folder is not None and (artifact_path(str(folder)) is None or os.path.isfile(folder / CONFIG_FILE)):
        if not os.path.isfile(folder / CONFIG_FILE):
            raise UnsupportedModelError(
                f"The folder {str(folder)!r} has no {CONFIG_FILE}, so it is none of transformers, and no {MANIFEST}, "
                f"so it is no artifact."
            )
        require_packages("torch", "transformers", extra="transformers")
        return folder
    return None


def artifact_path(reference: str) -> Path | None:
    """The folder of that path if it is an artifact."""
    folder = Path(reference)
    return folder if os.path.isfile(folder / MANIFEST) else None


def is_packed(folder: Path) -> bool:
    """Whether a folder is an artifact in which something is packed, so that other tools cannot read it.

    Raises:
        ArtifactError: It is an artifact, and damaged.
    """
    if artifact_path(str(folder)) is None:
        return False
    return any(entry.packer is not None for entry in Artifact(folder).manifest.tensors.values())


def _from_code(reference: str) -> Any:
    module, colon, name = reference.partition(":")
    if not colon:
        raise UnknownNameError(
            f"{reference!r} is no folder. A model is 'package.module:name' of a model or of a function that returns "
            f"one, a {KERAS_FILE} or {GGUF_FILE} file, or a folder with transformers' {CONFIG_FILE}; models on a hub "
            f"are downloaded first."
        )
    if module.endswith(".py"):
        suggestion = ".".join(Path(module).with_suffix("").parts)
        raise UnknownNameError(f"{reference!r}: give the module, not its file: '{suggestion}:{name}'.")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UnknownNameError(f"{reference!r} is not of the form 'package.module:name'.")
    return from_code(module, name)


def _from_keras_file(file: Path) -> Any:
    _refuse_missing(file)
    require_keras()
    from secateur.models.keras import from_file

    return from_file(file)


def _fill(model: Any, weights: Path) -> None:
    _refuse_missing(weights)
    if detect_framework(model) == "pytorch":
        from secateur.models.pytorch import fill

        return fill(model, weights)
    if not weights.name.endswith(KERAS_WEIGHTS):
        raise ConfigError(
            f"The weights of a Keras model are read from a {KERAS_WEIGHTS} file, found {str(weights)!r}. "
            f"model.save_weights('name{KERAS_WEIGHTS}') writes one."
        )
    from secateur.models.keras import fill_keras

    return fill_keras(model, weights)


def _refuse_missing(file: Path) -> None:
    if not os.path.isfile(file):
        raise UnknownNameError(f"There is no file {str(file)!r}.")
