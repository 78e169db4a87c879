"""Provide the package `neural_compressor.compression.pruner.patterns`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.compat.neural_compressor._user_patterns import find_type_name
from secateur.compat.neural_compressor.compression.pruner.patterns import mha, ninm, nxm
from secateur.compat.neural_compressor.compression.pruner.patterns.base import PATTERNS, register_pattern
from secateur.errors import UnknownNameError

__all__ = ["PATTERNS", "get_pattern", "mha", "ninm", "nxm", "register_pattern"]


def get_pattern(config: Any, modules: Mapping[str, Any] | None, framework: str = "pytorch") -> Any:
    """Create the registered pattern for ``config.pattern``.

    Args:
        config: An element of ``pruning_configs`` with all keys, such as those of ``complete_elements``.
        modules: Layer name → layer; ``None`` for attention heads.
        framework: ``"pytorch"`` or ``"keras"``.

    Raises:
        UnknownNameError: No class is registered for it.

    Examples:
        >>> import torch
        >>> from secateur.compat.neural_compressor.config import WeightPruningConfig
        >>> (element,) = WeightPruningConfig([{"pattern": "4x1"}]).complete_elements()
        >>> get_pattern(element, {"fc": torch.nn.Linear(3, 8)}).get_block_size_dict()
        {'fc': (4, 1)}
    """
    name = find_type_name(config["pattern"], framework)
    if name not in PATTERNS:
        raise UnknownNameError(f"Unknown pattern {config['pattern']!r}. Known: {', '.join(sorted(PATTERNS))}.")
    return PATTERNS[name](config, {} if modules is None else modules)
