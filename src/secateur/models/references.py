"""Load the model that a reference names: code, a file, a transformers folder or an artifact."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur._huggingface.folders import CONFIG_FILE
from secateur._manifest_file import MANIFEST, is_artifact
from secateur._packages import find_package_file, find_package_folder, require_keras, require_packages
from secateur.artifact import Artifact, load
from secateur.artifact.source import Source
from secateur.errors import ConfigError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.models.python_objects import load_object

__all__ = ["TrainedModel", "find_artifact_path", "find_transformers_path", "is_packed", "load_model", "load_trained"]

NEEDS_CODE = (
    "Name the transformers folder that it belongs to, or the code that builds the model as package.module:name; "
    "secateur prune and secateur inspect read the file with --weights."
)

FOREIGN_FILES = {
    ".onnx": ("an ONNX file", "Prune the torch or Keras model first, and export the pruned model to ONNX."),
    ".tflite": ("a TensorFlow Lite file", "Prune the Keras model first, and convert the pruned model."),
    ".pb": ("a TensorFlow graph", "Save the Keras model as a .keras file."),
    ".h5": ("a file of Keras weights or an old Keras model", "Save the model as a .keras file."),
    ".pt": ("a torch file of weights", NEEDS_CODE),
    ".pth": ("a torch file of weights", NEEDS_CODE),
    ".safetensors": ("a file of weights", NEEDS_CODE),
}
"""Suffix of a file that cannot be read as a model → what it is, and what to do."""

KERAS_FILE = ".keras"
GGUF_FILE = ".gguf"
KERAS_WEIGHTS = ".weights.h5"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model with its weights, and its source.

    Attributes:
        model: The model.
        path: Its transformers folder or GGUF file; ``None``: it has another source.
    """

    model: Any
    path: Path | None = None

    @property
    def companions(self) -> Any:
        """What to save with the model: an object with ``save_pretrained``, such as a tokenizer, or ``None``."""
        if self.path is None:
            return None
        from secateur.models.pytorch import CompanionSaver

        return CompanionSaver(self.path)

    def open_checkpoint(self) -> Source | None:
        """Open the files that the model was loaded from, to write the pruned model over them.

        Returns:
            The tensors and other files; ``None``: it was not loaded from a transformers folder.

        Raises:
            ArtifactError: A file cannot be read, or must not be copied.
        """
        if self.path is None or self.path.is_file():
            return None
        from secateur.models.pytorch import open_model_folder

        return open_model_folder(self.path)


def load_model(reference: str) -> Any:
    """Load the model that a reference names, without weights if a plan does not need them.

    Args:
        reference: One of:

            - ``package.module:name`` of a model, or of a function that builds one, in the current directory or an
              installed package;
            - a ``.keras`` file;
            - a transformers folder or a ``.gguf`` file: a path, or ``package/path`` within an installed package. The
              model is built on the meta device, with all layers and shapes but no weights;
            - an artifact of a transformers or Keras model.

    Raises:
        UnknownNameError: The reference does not exist.
        UnsupportedModelError: The folder is neither a transformers folder nor an artifact.
        ModelLoadError: The model cannot be built from the code, the file or the folder.
        MissingPackageError: A required package is not installed.

    Examples:
        >>> load_model("torch.nn:Identity")
        Identity()
    """
    if (path := find_transformers_path(reference)) is not None:
        from secateur.models.pytorch import load_architecture

        return load_architecture(path)
    if (artifact := find_artifact_path(reference)) is not None:
        return load(artifact)
    return _load_keras_file(Path(reference)) if reference.endswith(KERAS_FILE) else _load_from_code(reference)


def load_trained(reference: str, weights: Path | None = None) -> TrainedModel:
    """Load the model that a reference names, with its weights.

    Args:
        reference: See `load_model`.
        weights: A file with weights for a model that code builds: a safetensors file, a state dict that
            ``torch.save`` wrote, or a Keras ``.weights.h5`` file. ``None``: the model already has its weights.

    Raises:
        SecateurError: See `load_model`; or the weights cannot be read, or do not belong to the model.
    """
    path = find_transformers_path(reference)
    is_code = path is None and not reference.endswith(KERAS_FILE) and find_artifact_path(reference) is None
    if weights is not None and not is_code:
        raise ConfigError(
            f"weights is only for a model that code builds, but {reference!r} includes its weights. Leave it out."
        )
    if (artifact := find_artifact_path(reference)) is not None:
        return TrainedModel(load(artifact), path)
    if path is not None:
        from secateur.models.pytorch import load_pretrained

        return TrainedModel(load_pretrained(path), path)
    model = _load_from_code(reference) if is_code else _load_keras_file(Path(reference))
    if weights is not None:
        _load_weights(model, weights)
    return TrainedModel(model)


def find_transformers_path(reference: str) -> Path | None:
    """Find the transformers folder or GGUF file that a reference names; ``None``: it names something else.

    Raises:
        UnknownNameError: There is no such file.
        UnsupportedModelError: The folder is neither a transformers folder nor an artifact.
        MissingPackageError: A package that is required to read it is not installed.
    """
    package, slash, rest = reference.partition("/")
    is_in_package = bool(slash) and package.isidentifier()
    if reference.endswith(GGUF_FILE):
        file = Path(reference)
        if not os.path.isfile(file):
            file = (find_package_file(package, rest) if is_in_package else None) or file
        _check_exists(file)
        require_packages("torch", "transformers", "accelerate", "gguf", extra="demo")
        return file
    folder = Path(reference) if os.path.isdir(reference) else None
    folder = folder or (find_package_folder(package, rest) if is_in_package else None)
    if folder is not None and (find_artifact_path(str(folder)) is None or os.path.isfile(folder / CONFIG_FILE)):
        if not os.path.isfile(folder / CONFIG_FILE):
            raise UnsupportedModelError(
                f"The folder {str(folder)!r} has no {CONFIG_FILE}, so it is not a transformers folder, and no "
                f"{MANIFEST}, so it is not an artifact."
            )
        require_packages("torch", "transformers", extra="transformers")
        return folder
    return None


def find_artifact_path(reference: str) -> Path | None:
    """Find the artifact that a reference names; ``None``: it names something else."""
    folder = Path(reference)
    return folder if is_artifact(folder) else None


def is_packed(folder: Path) -> bool:
    """Whether a folder is an artifact with packed tensors, which other tools cannot read.

    Raises:
        ArtifactError: The folder is a damaged artifact.
    """
    if find_artifact_path(str(folder)) is None:
        return False
    return any(entry.packer is not None for entry in Artifact(folder).manifest.tensors.values())


def _load_from_code(reference: str) -> Any:
    module, colon, name = reference.partition(":")
    if (hint := FOREIGN_FILES.get(Path(reference).suffix.lower())) is not None:
        kind, advice = hint
        raise UnsupportedModelError(f"{reference!r} is {kind}, which Secateur does not read. {advice}")
    if not colon:
        raise UnknownNameError(
            f"{reference!r} is not a folder. Pass 'package.module:name' of a model or of a function that builds "
            f"one, a {KERAS_FILE} or {GGUF_FILE} file, or a transformers folder with {CONFIG_FILE}. Download "
            f"models from a hub first."
        )
    if module.endswith(".py"):
        suggestion = ".".join(Path(module).with_suffix("").parts)
        raise UnknownNameError(f"{reference!r}: must name a module, not its file. Write '{suggestion}:{name}'.")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UnknownNameError(f"{reference!r} must have the form 'package.module:name'.")
    return load_object(module, name)


def _load_keras_file(file: Path) -> Any:
    _check_exists(file)
    require_keras()
    from secateur.models.keras import load_keras_file

    return load_keras_file(file)


def _load_weights(model: Any, weights: Path) -> None:
    _check_exists(weights)
    if detect_framework(model) == "pytorch":
        from secateur.models.pytorch import load_weights

        return load_weights(model, weights)
    if not weights.name.endswith(KERAS_WEIGHTS):
        raise ConfigError(
            f"The weights of a Keras model are read from a {KERAS_WEIGHTS} file, found {str(weights)!r}. "
            f"Write one with model.save_weights('name{KERAS_WEIGHTS}')."
        )
    from secateur.models.keras import load_keras_weights

    return load_keras_weights(model, weights)


def _check_exists(file: Path) -> None:
    if not os.path.isfile(file):
        raise UnknownNameError(f"There is no file {str(file)!r}.")
