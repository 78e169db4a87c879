"""Merge different settings for different layers into one configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur._wording import format_list, suggest_name
from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["LayerSettings", "check_keys", "match_names", "merge_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSettings:
    """Settings for a set of layers.

    Attributes:
        names: Regular expressions that match whole layer names; empty: all layers that are pruned by default.
        settings: Keys of `PruningConfig` that may differ between layers.
    """

    names: tuple[str, ...] = ()
    settings: Mapping[str, Any]


def merge_settings(parts: Sequence[LayerSettings], **common: Any) -> PruningConfig:
    """Build one configuration in which each set of layers is ranked separately and reaches its own target.

    Args:
        parts: One or more sets of layers. If there are several, each needs names.
        common: Keys of `PruningConfig` for all layers.

    Raises:
        ConfigError: The configuration is not valid, or two sets share a name.

    Examples:
        >>> settings = LayerSettings(names=("a", "b"), settings={"pattern": "2:4"})
        >>> merge_settings([settings]).op_names
        ('a', 'b')
    """
    first = parts[0]
    if len(parts) == 1:
        return PruningConfig(**first.settings, op_names=first.names, **common)
    names = [name for part in parts for name in part.names]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"Each layer can have only one set of settings, found {format_list(map(repr, repeated))} more than once. "
            f"Make the names more specific."
        )
    rules = {
        name: {**part.settings, "pruning_group": str(index)} for index, part in enumerate(parts) for name in part.names
    }
    return PruningConfig(**first.settings, op_names=tuple(rules), layers=rules, **common)


def match_names(names: Iterable[str]) -> str:
    """Build one regular expression that matches only these names.

    The expression is never itself a layer name, so layers that cannot be pruned stay dense without an error.

    Examples:
        >>> match_names(["fc", "head"])
        '(?:fc|head)'
    """
    return f"(?:{'|'.join(map(re.escape, names))})"


def check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise `ConfigError` if a key is unknown; the message suggests the most similar known key."""
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}.{suggest_name(str(key), known)} Known: {', '.join(sorted(known))}."
            )
