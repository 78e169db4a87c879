"""Layers that are pruned in different ways, put together into one configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur._wording import format_list, suggest_name
from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["Part", "any_of", "merged", "refuse_unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Layers that are to be pruned in one way.

    Attributes:
        names: Regular expressions for whole names; empty: all layers that are pruned unless one is named.
        settings: Keys of `PruningConfig` that may differ from layer to layer.
    """

    names: tuple[str, ...] = ()
    settings: Mapping[str, Any]


def merged(parts: Sequence[Part], **common: Any) -> PruningConfig:
    """One configuration under which each part is ranked by itself and reaches its own target.

    Args:
        parts: At least one; of several each has names.
        common: Keys of `PruningConfig` that hold for all layers.

    Raises:
        ConfigError: It is no valid configuration, or two parts have the same name.

    Example:
        >>> merged([Part(names=("a", "b"), settings={"pattern": "2:4"})]).op_names
        ('a', 'b')
    """
    first = parts[0]
    if len(parts) == 1:
        return PruningConfig(**first.settings, op_names=first.names, **common)
    every = [name for part in parts for name in part.names]
    if twice := [name for name in dict.fromkeys(every) if every.count(name) > 1]:
        raise ConfigError(
            f"Layers must be pruned in one way only, found {format_list(map(repr, twice))} more than once. Make the "
            f"names narrower."
        )
    rules = {
        name: {**part.settings, "pruning_group": str(index)} for index, part in enumerate(parts) for name in part.names
    }
    return PruningConfig(**first.settings, op_names=tuple(rules), layers=rules, **common)


def any_of(names: Iterable[str]) -> str:
    """One expression that just these names match, and that names none of them, so that each may turn out unfit.

    Example:
        >>> any_of(["fc", "head"])
        '(?:fc|head)'
    """
    return f"(?:{'|'.join(map(re.escape, names))})"


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise `ConfigError` if a key is not known, with the nearest that is."""
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}.{suggest_name(str(key), known)} Known: {', '.join(sorted(known))}."
            )
