"""Read and check the configuration of a pattern that is created without a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["read_settings", "refuse_coupled_settings"]

COUPLED_SETTINGS = {"granularity": 1, "allow_inexact": False}
"""Keys that only patterns with units in several layers have → their defaults."""


def read_settings(config: Mapping[str, Any]) -> PruningConfig:
    """Read the configuration of a pattern that is created directly, whose class may not be registered.

    Examples:
        >>> read_settings({"pattern": "mine", "target_sparsity": 0.5}).pattern
        'mine'
    """
    settings = dict(config)
    pattern = settings.pop("pattern", None)
    if not isinstance(pattern, str):
        return PruningConfig.from_dict(config)
    return PruningConfig.from_dict(settings).model_copy(update={"pattern": pattern})


def refuse_coupled_settings(config: PruningConfig, coupling: str | None) -> None:
    """Raise `ConfigError` if a configuration has settings that only patterns with units in several layers have.

    Args:
        config: The configuration.
        coupling: See `BasePattern.coupling`.
    """
    if coupling is not None:
        return
    for key, default in COUPLED_SETTINGS.items():
        if (value := getattr(config, key)) != default:
            raise ConfigError(
                f"{key}={value} has no effect with pattern {config.pattern!r}, whose units are within single layers. "
                f"Set {key}={default}, or choose 'channels' or 'heads'."
            )
