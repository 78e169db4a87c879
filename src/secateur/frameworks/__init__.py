"""Detect the framework of a model, and access its layers and weights."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from secateur._packages import require_packages
from secateur.errors import UnknownNameError, UnsupportedModelError
from secateur.frameworks.base import Framework, NoFramework
from secateur.frameworks.view import WeightView

__all__ = ["FRAMEWORKS", "Framework", "NoFramework", "WeightView", "detect_framework", "get_framework", "import_leaf"]

FRAMEWORKS = {"pytorch": "torch", "keras": "keras", "array": "numpy"}
"""Framework → the package that it requires. ``"array"`` stands for plain arrays of any library."""


def detect_framework(model: Any) -> str:
    """Return the framework of a model, ``"keras"`` or ``"pytorch"``, without importing either.

    With Keras's torch backend, a Keras model is also a torch module. It counts as a Keras model.

    Raises:
        UnsupportedModelError: The object is neither a Keras model nor a torch module.

    Examples:
        >>> import torch
        >>> detect_framework(torch.nn.Linear(2, 2))
        'pytorch'
    """
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Layer):
        return "keras"
    if torch is not None and isinstance(model, torch.nn.Module):
        return "pytorch"
    raise UnsupportedModelError(f"The model must be a torch.nn.Module or a keras.Model, found {type(model).__name__}.")


def import_leaf(package: str, model: Any) -> Any:
    """Import the module of `package` for the framework of `model`, such as ``secateur.training.pytorch``.

    Raises:
        UnsupportedModelError: The framework of the model is not supported.
    """
    return import_module(f"{package}.{detect_framework(model)}")


def get_framework(name: str) -> Framework:
    """Return the framework with a name, importing it if necessary.

    Raises:
        UnknownNameError: There is no framework with that name.
        MissingPackageError: The framework is not installed.

    Examples:
        >>> view = WeightView(shape=(4, 2), output_axes=(0,), input_axes=(1,))
        >>> get_framework("array").get_view(view).canonical_shape
        (4, 1, 2)
    """
    if name not in FRAMEWORKS:
        raise UnknownNameError(f"Unknown framework {name!r}. Known: {', '.join(FRAMEWORKS)}.")
    require_packages(FRAMEWORKS[name], extra=FRAMEWORKS[name])
    framework: Framework = import_module(f"{__name__}.{name}").FRAMEWORK
    return framework
