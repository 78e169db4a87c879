"""The index of a checkpoint in several files, as transformers writes it."""

from __future__ import annotations

import re
from typing import Any

from secateur._wording import format_value

__all__ = ["read_weight_map"]

RESERVED = re.compile(r"\.*|.*[/\\:].*|.{256,}", re.DOTALL)
"""Names that lead out of a folder, here or on another system, or that no system has."""


def read_weight_map(index: Any) -> dict[str, str]:
    """Tensor → name of the file that holds it, which is in the index's own folder.

    Args:
        index: The index, as read from JSON.

    Raises:
        ValueError: It is no index, names no file, or names one outside of the folder.

    Example:
        >>> read_weight_map({"weight_map": {"bias": "model-1.safetensors"}})
        {'bias': 'model-1.safetensors'}
        >>> read_weight_map({"weight_map": {"bias": "../model.safetensors"}})
        Traceback (most recent call last):
        ValueError: '../model.safetensors' is no name of a file in the folder
    """
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError("'weight_map' must say for each tensor in which file it is")
    if not places:
        raise ValueError("'weight_map' must name the files of all tensors, found nothing in it")
    if strange := [name for name in places.values() if RESERVED.fullmatch(name) or not name.isprintable()]:
        raise ValueError(f"{format_value(strange[0])} is no name of a file in the folder")
    return places
