"""Prune by the weights alone: a run of no steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.config import PruningConfig
from secateur.criteria import CRITERIA
from secateur.errors import ConfigError
from secateur.masking.run import PrunedWeight, Run, build_report, refuse_nan, refuse_violations
from secateur.oneshot.interrupts import defer_interrupts
from secateur.planning import Plan
from secateur.results import PruningReport

__all__ = ["drop_schedule", "prune_weights"]

AT_ONCE = {"start_step": 0, "end_step": None, "sparsity_decay_type": "one_shot"}
"""All that is to be pruned goes before the first step."""


def drop_schedule(config: PruningConfig | Mapping[str, Any]) -> PruningConfig:
    """The configuration under which a run of no steps reaches its target.

    Raises:
        ConfigError: A criterion in it ranks by gradients.
    """
    config = config if isinstance(config, PruningConfig) else PruningConfig.from_dict(config)
    rules = {
        key: {name: None if rule is None else _timeless(rule) for name, rule in getattr(config, key).items()}
        for key in ("layers", "layer_types")
    }
    settings = PruningConfig.from_dict(config.model_dump() | AT_ONCE | rules)
    for rule in (dict(settings), *settings.layers.values(), *settings.layer_types.values()):
        name = (rule or {}).get("criterion") or (rule or {}).get("pruning_type")
        if name is not None and CRITERIA.find(name).needs_gradient:
            raise ConfigError(
                f"criterion must not need gradients, found {name!r}: there are none without training. Rank by "
                f"'magnitude', or prune while the model trains with secateur.prepare."
            )
    return settings


def prune_weights(plan: Plan, weights: Mapping[str, PrunedWeight], model_weights: int) -> PruningReport:
    """Choose masks for all layers of a plan, and set to zero what they prune.

    Args:
        plan: Made from what `drop_schedule` returned.
        weights: Layer → its weight, for every layer to be pruned.
        model_weights: Weights of the whole model.

    Raises:
        ScoreError: A weight or a score is ``nan``; no weight is changed then.
    """
    refuse_nan(weights)
    runs = [Run(pattern, weights) for pattern in plan.patterns if pattern.views]
    for run in runs:
        run.start()
    with defer_interrupts():  # all weights, or none
        for weight in weights.values():
            weight.apply_mask()
    refuse_violations({name: reason for run in runs for name, reason in run.violations().items()})
    return build_report(runs, plan.dense, step=0, model_weights=model_weights)


def _timeless(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if key not in AT_ONCE}
