"""What reading any modifier takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.compat.sparseml.recipe import Modifier
from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["SYNONYMS", "TOLERANCE", "at", "checked", "needed"]

SYNONYMS = {
    "start": "start_epoch",
    "end": "end_epoch",
    "update": "update_frequency",
    "targets": "params",
    "update_scheduler": "inter_func",
    "mask_structure": "mask_type",
    "apply_globally": "global_sparsity",
}
"""Key of the later recipes → key of the first ones."""

TOLERANCE = 0.01
"""How far a sparsity may lie from what an N:M pattern makes."""


def checked(settings: dict[str, Any], modifier: Modifier) -> dict[str, Any]:
    """The settings, if a configuration can be made from them.

    Raises:
        ConfigError: It cannot.
    """
    try:
        PruningConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{modifier.name}: {error}") from error
    return settings


def needed(values: Mapping[str, Any], key: str, modifier: Modifier) -> Any:
    """The value of a key.

    Raises:
        ConfigError: There is none.
    """
    if values.get(key) is None:
        raise ConfigError(f"{modifier.name}: {key} must be given. It has {', '.join(modifier.values) or 'no keys'}.")
    return values[key]


def at(modifier: Modifier, key: str) -> str:
    """What errors call a key of a modifier, as it is written there."""
    written = next((new for new, old in SYNONYMS.items() if old == key and new in modifier.values), key)
    return f"{modifier.name}: {written}"
