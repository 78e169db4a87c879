"""What a Keras description asks for, found without allocating it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras

from secateur.artifact.building import Limits

__all__ = ["check_description"]


def check_description(description: Mapping[str, Any], limits: Limits, path: Path) -> None:
    """Refuse a description of a model that is larger than its weights.

    The model is built once in a `keras.StatelessScope`, where variables have shapes and no values, in a thread of its
    own: Keras keeps a list of such variables, and the numbers in the names of layers, per thread.

    A description with registered classes that cannot be built this way is not checked.

    Args:
        description: What `keras.saving.serialize_keras_object` returned.
        limits: What the model may have.
        path: Where the description is, for the message.

    Raises:
        ArtifactError: The model is larger.
        Exception: Keras cannot build it; the class is one of Keras's.
    """
    description = _without_states(description)
    known = {name: keras.saving.get_registered_object(name) for name in _names(description)}
    custom = {name: found for name, found in known.items() if found is not None}
    try:
        with ThreadPoolExecutor(1) as executor:
            shapes = executor.submit(_weight_shapes, description, custom).result()
    # Classes of the user's may create variables with values, which the scope refuses.
    except Exception:
        if custom:
            return
        raise
    limits.check(len(shapes), sum(map(math.prod, shapes)), path)


def _weight_shapes(description: Any, custom: Mapping[str, Any]) -> list[tuple[int, ...]]:
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(description, custom_objects=dict(custom), safe_mode=True)
    return [tuple(variable.shape) for variable in getattr(model, "weights", ())]


def _without_states(description: Any) -> Any:
    """The description without optimizers, and without states of recurrent layers, which come with values."""
    if isinstance(description, Mapping):
        return {
            name: False if name == "stateful" else _without_states(found)
            for name, found in description.items()
            if name != "compile_config"
        }
    return [_without_states(found) for found in description] if isinstance(description, list) else description


def _names(description: Any) -> Iterator[str]:
    """Every text that may name a class that the user has registered."""
    left = [description]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping | list):
            left += found.values() if isinstance(found, Mapping) else found
