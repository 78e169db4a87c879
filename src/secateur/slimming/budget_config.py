"""The configuration under a budget: which units may be removed by default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.config import ConfigLike, PruningConfig, make_config
from secateur.errors import ConfigError
from secateur.graph import Graph, Role
from secateur.planning.layer_selection import list_couplings

__all__ = ["TENTATIVE_SPARSITY", "make_budget_config"]

TENTATIVE_SPARSITY = 0.5
"""Placeholder target of the configuration under a budget, which has no effect."""


def make_budget_config(config: ConfigLike | None, graph: Graph) -> PruningConfig:
    """Return the configuration with which units are chosen under a budget.

    Args:
        config: The user's configuration; ``None``, or a mapping without a pattern: all heads and channels.
        graph: The dependencies of the model.

    Raises:
        ConfigError: The configuration has a target, or no pattern whose units can be removed.

    Examples:
        >>> make_budget_config("channels", Graph(groups=())).target_sparsity
        0.5
    """
    if config is None or (isinstance(config, Mapping) and "pattern" not in config):
        config = {**(config or {}), **_cover_everything(graph)}
    made = make_config(config)
    if not list_couplings(made):
        raise ConfigError(
            f"budget needs patterns whose units can be removed, 'channels' or 'heads', found {made.pattern!r}."
        )
    settings = [made.target_sparsity, *(rule.get("target_sparsity") for rule in _list_rules(made))]
    if (target := next((value for value in settings if value is not None), None)) is not None:
        raise ConfigError(
            f"budget and target_sparsity={target} are two targets. Leave target_sparsity out of the configuration: the "
            f"budget decides how much of each group is removed."
        )
    return made.model_copy(update={"target_sparsity": TENTATIVE_SPARSITY, "pruning_scope": "local"})


def _list_rules(config: PruningConfig) -> list[dict[str, object]]:
    return [dict(rule) for rules in (config.layers, config.layer_types) for rule in rules.values() if rule]


def _cover_everything(graph: Graph) -> dict[str, Any]:
    """Return settings that prune heads where the graph has them, and channels everywhere else."""
    layers = {
        member.parameter.rpartition(".")[0]
        for group in graph.groups
        if group.kind == "heads" and group.obstacle is None
        for member in group.members
        if member.role in (Role.PRODUCER, Role.CONSUMER)
    }
    rules = {re.escape(name): {"pattern": "heads"} for name in sorted(layers)}
    return {"pattern": "channels", "layers": rules}
