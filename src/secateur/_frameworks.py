"""Which framework a model belongs to, and where its code lies."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from secateur.errors import UnsupportedModelError

__all__ = ["framework_of", "leaf"]


def framework_of(model: Any) -> str:
    """``"keras"`` or ``"pytorch"``; loads neither, for whoever has a model has loaded its framework.

    On its torch backend a Keras model is a torch module as well; it counts as Keras's.

    Raises:
        UnsupportedModelError: It is a model of neither.

    Example:
        >>> import torch
        >>> framework_of(torch.nn.Linear(2, 2))
        'pytorch'
    """
    keras, torch = sys.modules.get("keras"), sys.modules.get("torch")
    if keras is not None and isinstance(model, keras.Layer):
        return "keras"
    if torch is not None and isinstance(model, torch.nn.Module):
        return "pytorch"
    raise UnsupportedModelError(f"A torch.nn.Module or a keras.Model is needed, found {type(model).__name__}.")


def leaf(package: str, model: Any) -> Any:
    """The module of `package` that serves the model's framework.

    Raises:
        UnsupportedModelError: The model is of no framework that is served.
    """
    return import_module(f"{package}.{framework_of(model)}")
