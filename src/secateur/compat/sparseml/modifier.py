"""A modifier of a recipe, and how its keys are read."""

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
"""Later name of a key → first name."""

TOLERANCE = 0.01
"""How far a sparsity may be from the one that an N:M pattern has."""


@dataclass(frozen=True, slots=True)
class Modifier:
    """One modifier.

    Attributes:
        name: Its class name.
        values: Its keys, with evaluated formulas.
        is_tagged: Whether it is written as a YAML tag, as in early SparseML, where some keys have another meaning.
    """

    name: str
    values: Mapping[str, Any]
    is_tagged: bool

    def get_required(self, values: Mapping[str, Any], key: str) -> Any:
        """The value of a key among `values`, the keys of this modifier under their first names.

        Raises:
            ConfigError: The key is missing.
        """
        if values.get(key) is None:
            raise ConfigError(f"{self.name}: {key} must be given. It has {', '.join(self.values) or 'no keys'}.")
        return values[key]

    def describe_key(self, key: str) -> str:
        """A key for error messages, under the name that the recipe gives it."""
        written = next((new for new, old in SYNONYMS.items() if old == key and new in self.values), key)
        return f"{self.name}: {written}"

    def check_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings if they make a valid configuration.

        Raises:
            ConfigError: They do not.
        """
        try:
            PruningConfig(**settings)
        except ConfigError as error:
            raise type(error)(f"{self.name}: {error}") from error
        return settings
