"""Define `Modifier`, one modifier of a recipe, and read its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["SYNONYMS", "TOLERANCE", "Modifier"]

SYNONYMS = {
    "start": "start_epoch",
    "end": "end_epoch",
    "update": "update_frequency",
    "targets": "params",
    "update_scheduler": "inter_func",
    "mask_structure": "mask_type",
    "apply_globally": "global_sparsity",
}
"""Newer name of a key → original name."""

TOLERANCE = 0.01
"""Maximum difference between a sparsity in a recipe and the one that its N:M pattern produces."""


@dataclass(frozen=True, slots=True)
class Modifier:
    """One modifier of a recipe.

    Attributes:
        name: Class name.
        values: Key → value, with formulas evaluated.
        is_tagged: Whether it is written as a YAML tag, as in early SparseML, where some keys have a different meaning.
    """

    name: str
    values: Mapping[str, Any]
    is_tagged: bool

    def get_required(self, values: Mapping[str, Any], key: str) -> Any:
        """Return the value of a required key from `values`, the keys of this modifier under their original names.

        Raises:
            ConfigError: The key is missing.
        """
        if values.get(key) is None:
            raise ConfigError(f"{self.name}: {key} must be given, found only: {', '.join(self.values) or 'no keys'}.")
        return values[key]

    def describe_key(self, key: str) -> str:
        """Format a key for error messages, under the name used in the recipe."""
        used_name = next((new for new, old in SYNONYMS.items() if old == key and new in self.values), key)
        return f"{self.name}: {used_name}"

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings after checking that they form a valid configuration.

        Raises:
            ConfigError: They do not form a valid configuration.
        """
        try:
            PruningConfig(**settings)
        except ConfigError as error:
            raise type(error)(f"{self.name}: {error}") from error
        return settings
