"""What is asked for, from a file and from flags."""

from __future__ import annotations

from pathlib import Path

from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["settings_of"]


def settings_of(path: Path | None, pattern: str | None, sparsity: float | None) -> PruningConfig:
    """The file's configuration, with the flags in place of what it says.

    Raises:
        ConfigError: The file cannot be read or is no configuration.
    """
    settings = PruningConfig()
    if path is not None:
        try:
            settings = PruningConfig.from_yaml(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    flags = {"pattern": pattern, "target_sparsity": sparsity}
    return PruningConfig.from_dict(settings.to_dict() | {key: flag for key, flag in flags.items() if flag is not None})
