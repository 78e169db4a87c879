"""Models by reference: what a command line can name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur._packages import need, need_keras, shipped_folder
from secateur.errors import UnknownNameError, UnsupportedModelError
from secateur.models.code import from_code

__all__ = ["load_model"]

CONFIG_FILE = "config.json"
KERAS_FILE = ".keras"


def load_model(reference: str) -> Any:
    """The model that a text refers to.

    Args:
        reference: ``package.module:name`` of a model or of a function that returns one, importable or in the current
            directory; or a ``.keras`` file; or a transformers folder: a path, or ``package/folder`` within an installed
            package. From a folder the model is built on the meta device: every layer and shape, no weights.

    Raises:
        UnknownNameError: There is nothing of that name.
        UnsupportedModelError: The folder is none of transformers.
        ModelLoadError: The code or the folder fails to build its model.
        MissingPackageError: A package is needed and not installed.

    Example:
        >>> load_model("torch.nn:Identity")
        Identity()
    """
    if reference.endswith(KERAS_FILE):
        return _from_keras_file(Path(reference))
    folder = _folder(reference)
    if folder is not None:
        return _from_folder(folder)
    module, colon, name = reference.partition(":")
    if not colon:
        raise UnknownNameError(
            f"{reference!r} is no folder. A model is 'package.module:name' of a model or of a function that returns "
            f"one, a {KERAS_FILE} file, or a folder with transformers' {CONFIG_FILE}; models on a hub are downloaded "
            f"first."
        )
    if module.endswith(".py"):
        suggestion = ".".join(Path(module).with_suffix("").parts)
        raise UnknownNameError(f"{reference!r}: give the module, not its file: '{suggestion}:{name}'.")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise UnknownNameError(f"{reference!r} is not of the form 'package.module:name'.")
    return from_code(module, name)


def _folder(reference: str) -> Path | None:
    """The folder of that path, here or in an installed package."""
    if (path := Path(reference)).is_dir():
        return path
    package, slash, rest = reference.partition("/")
    return shipped_folder(package, rest) if slash and package.isidentifier() else None


def _from_keras_file(file: Path) -> Any:
    if not file.is_file():
        raise UnknownNameError(f"There is no file {str(file)!r}.")
    need_keras()
    from secateur.models.keras import from_file

    return from_file(file)


def _from_folder(folder: Path) -> Any:
    if not (folder / CONFIG_FILE).is_file():
        raise UnsupportedModelError(f"The folder {str(folder)!r} has no {CONFIG_FILE}, so it is none of transformers.")
    need("torch", "transformers", extra="transformers")
    from secateur.models.pytorch import from_folder

    return from_folder(folder)
