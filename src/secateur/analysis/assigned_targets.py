"""Give each layer its own target in a configuration, by a sensitivity report."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from secateur.config import NOT_PER_LAYER, ConfigLike, PruningConfig, make_config
from secateur.frameworks import import_leaf
from secateur.planning import plan
from secateur.planning.sensitivity_counts import find_layer_targets
from secateur.results import SensitivityReport

__all__ = ["assign_targets"]


def assign_targets(model: Any, config: ConfigLike, report: SensitivityReport) -> PruningConfig:
    """Return a configuration that prunes each layer to its own target, so that the sum of losses is smallest.

    It is for `secateur.prepare` and `secateur.keras`, which have no allocation. All layers together still reach the
    target of the configuration, exactly.

    Args:
        model: The dense model that was scanned.
        config: The configuration, with a pattern and a target.
        report: The result of `secateur.sensitivity` for this model.

    Raises:
        ConfigError: The report is of another model, lacks a layer or the pattern, or does not reach the target.
        UnsupportedModelError: The pattern couples layers.

    Examples:
        >>> import torch, secateur
        >>> layers = [torch.nn.Linear(8, 8) for _ in range(3)]
        >>> model = torch.nn.Sequential(*layers)
        >>> batches = [torch.randn(64, 8) for _ in range(4)]
        >>> report = secateur.sensitivity(model, batches, patterns="4x1")
        >>> config = {"pattern": "4x1", "target_sparsity": 0.5}
        >>> config = secateur.analysis.assign_targets(model, config, report)
        >>> sorted(config.layers)
        ['0', '1']
    """
    settings, leaf = make_config(config), import_leaf("secateur.analysis", model)
    rules: dict[str, dict[str, Any]] = {}
    for pattern in plan(model, settings).patterns:
        if pattern.views:
            changed = {
                key: value
                for key, value in pattern.config
                if key not in NOT_PER_LAYER and value != getattr(settings, key)
            }
            targets = find_layer_targets(report, pattern, partial(leaf.compute_digest, pattern=pattern))
            rules |= {
                re.escape(name): changed | {"target_sparsity": target, "pruning_scope": "local"}
                for name, target in targets.items()
            }
    return PruningConfig.from_dict(dict(settings) | {"layers": rules | dict(settings.layers)})
