"""Provide the package `neural_compressor.compression.pruner.pruners`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._wording import suggest_name
from secateur.compat.neural_compressor._translation import name_pruner, split_pruning_type
from secateur.compat.neural_compressor.compression.pruner.criteria import CRITERIA
from secateur.compat.neural_compressor.compression.pruner.pruners import (
    basic,
    block_mask,
    mha,
    pattern_lock,
    progressive,
    retrain_free,
    sparse_gpt,
)
from secateur.compat.neural_compressor.compression.pruner.pruners.base import PRUNERS, BasePruner, register_pruner
from secateur.errors import UnknownNameError

__all__ = [
    "FRAMEWORK",
    "PRUNERS",
    "BasePruner",
    "basic",
    "block_mask",
    "get_pruner",
    "mha",
    "parse_valid_pruner_types",
    "pattern_lock",
    "progressive",
    "register_pruner",
    "retrain_free",
    "sparse_gpt",
]

FRAMEWORK = {"pytorch": "pt", "keras": "keras"}


def parse_valid_pruner_types() -> list[str]:
    """Return the pruning types that the registered criteria allow, and ``"pattern_lock"``.

    Examples:
        >>> parse_valid_pruner_types()[:2]
        ['magnitude', 'magnitude_progressive']
    """
    return [name + ending for name in CRITERIA for ending in ("", "_progressive")] + ["pattern_lock"]


def get_pruner(config: Any, modules: Mapping[str, Any], framework: str = "pytorch") -> Any:
    """Create the pruner that is registered for ``config["pruning_type"]``, outside a run.

    Args:
        config: An element of ``pruning_configs`` with all keys; ``criterion_type`` and ``progressive`` are set.
        modules: Layer name → layer.
        framework: ``"pytorch"`` or ``"keras"``.

    Raises:
        UnknownNameError: No pruner is registered for it.
        UnsupportedModelError: It only exists in a run.

    Examples:
        >>> import torch
        >>> from secateur.compat.neural_compressor import WeightPruningConfig
        >>> settings = {"pruning_type": "magnitude", "pattern": "1x1", "target_sparsity": 0.5}
        >>> (element,) = WeightPruningConfig([settings]).complete_elements()
        >>> pruner = get_pruner(element, {"fc": torch.nn.Linear(4, 4)})
        >>> pruner.on_step_begin(0)
        >>> int(pruner.masks["fc"].sum())
        8
    """
    if framework not in FRAMEWORK:
        raise UnknownNameError(f"Unknown framework {framework!r}. Known: {', '.join(FRAMEWORK)}.")
    name = name_pruner(config, framework)
    if name not in PRUNERS:
        raise UnknownNameError(
            f"Unknown pruning_type {config['pruning_type']!r}.{suggest_name(name, PRUNERS)} Known: "
            f"{', '.join(parse_valid_pruner_types())}. Registered pruners: {', '.join(PRUNERS)}."
        )
    criterion, config["progressive"] = split_pruning_type(config)
    if criterion in CRITERIA:
        config["criterion_type"] = criterion
    return PRUNERS[name](config, modules)
