"""Give each layer its own target in a configuration, by the result of a scan or a search."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from secateur.config import NOT_PER_LAYER, ConfigLike, PruningConfig, make_config
from secateur.frameworks import import_leaf
from secateur.planning import plan
from secateur.planning.layer_targets import TargetSource, find_layer_targets
from secateur.results import LayerShares, LayerSharesSource, SensitivityReport

__all__ = ["assign_targets"]


def assign_targets(model: Any, config: ConfigLike, report: SensitivityReport | LayerSharesSource) -> PruningConfig:
    """Return a configuration that prunes each layer to its own target.

    By a sensitivity report, the sum of losses is smallest; by a trial of a search, layers lose in the same proportions.

    This is for `secateur.prepare` and `secateur.keras`, which have no allocation. All layers together still reach the
    target of the configuration, exactly.

    Args:
        model: The dense model that was scanned or searched for.
        config: The configuration, with a pattern and a target.
        report: The result of `secateur.sensitivity` for this model, or a trial of `secateur.search`.

    Raises:
        ConfigError: The result is of another model, lacks a layer or the pattern, or does not reach the target.
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
    source = report.get_layer_shares() if isinstance(report, LayerSharesSource) else report
    settings, leaf = make_config(config), import_leaf("secateur.analysis", model)
    rules: dict[str, dict[str, Any]] = {}
    for pattern in plan(model, _set_default_scope(settings, source)).patterns:
        if pattern.views:
            changed = {
                key: value
                for key, value in pattern.config
                if key not in NOT_PER_LAYER and value != getattr(settings, key)
            }
            targets = find_layer_targets(source, pattern, partial(leaf.compute_digest, pattern=pattern))
            rules |= {
                re.escape(name): changed | {"target_sparsity": target, "pruning_scope": "local"}
                for name, target in targets.items()
            }
    return PruningConfig.from_dict(dict(settings) | {"layers": rules | dict(settings.layers)})


def _set_default_scope(config: PruningConfig, source: TargetSource) -> PruningConfig:
    """Return a configuration without the default bound of global rankings, because a trial may have exceeded it."""
    if config.pruning_scope is not None or not isinstance(source, LayerShares):
        return config
    return config.model_copy(update={"pruning_scope": "local"})
