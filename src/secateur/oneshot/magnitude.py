"""Prune in one shot by the weights alone, without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from secateur.config import REGROWING_KINDS, ConfigLike, PruningConfig, make_config
from secateur.criteria import CRITERIA
from secateur.errors import ConfigError
from secateur.masking.run import PrunedWeight, Run, build_report, refuse_nan, refuse_violations
from secateur.oneshot.interrupts import defer_interrupts
from secateur.patterns import BasePattern, get_pattern
from secateur.planning import Plan
from secateur.planning.layer_targets import TargetSource, find_layer_targets
from secateur.results import PruningReport, SensitivityReport

__all__ = ["drop_schedule", "find_gradient_criterion", "prune_weights"]

ONE_SHOT = {"start_step": 0, "end_step": None, "sparsity_decay_type": "one_shot"}
"""Settings that prune everything before the first step."""


def drop_schedule(
    config: ConfigLike, *, default_scope: Literal["global", "local"] = "local", has_gradients: bool = False
) -> PruningConfig:
    """Return a configuration with which a run of zero steps reaches its target, or of one step if it has gradients.

    Without a scope, each layer is ranked separately, because no training compensates for layers that lose too much.

    Args:
        config: The configuration.
        default_scope: The scope of a configuration without one.
        has_gradients: Whether criteria may need gradients.

    Raises:
        ConfigError: One of its criteria needs gradients, and there are none, or one of its kinds regrows.
    """
    config = make_config(config)
    _refuse_regrowth(config)
    rules = {
        key: {name: None if rule is None else _drop_one_shot_keys(rule) for name, rule in getattr(config, key).items()}
        for key in ("layers", "layer_types")
    }
    scope = {"pruning_scope": config.pruning_scope or default_scope}
    start = {"start_step": 1 if has_gradients else 0}
    settings = PruningConfig.from_dict(config.model_dump() | ONE_SHOT | start | scope | rules)
    if not has_gradients and (name := find_gradient_criterion(settings)) is not None:
        raise ConfigError(
            f"criterion must not need gradients, found {name!r}: there are none without training. Rank by 'magnitude', "
            f"pass calibration data with a loss, or prune while the model trains with secateur.prepare."
        )
    return settings


def find_gradient_criterion(config: PruningConfig) -> str | None:
    """Return the first criterion of a configuration or of its rules that needs gradients; ``None``: none does."""
    for rule in (dict(config), *config.layers.values(), *config.layer_types.values()):
        name: str | None = (rule or {}).get("criterion") or (rule or {}).get("pruning_type")
        if name is not None and CRITERIA.find(name).needs_gradient:
            return name
    return None


def _refuse_regrowth(config: PruningConfig) -> None:
    for rule in (dict(config), *config.layers.values(), *config.layer_types.values()):
        if (kind := (rule or {}).get("kind")) in REGROWING_KINDS:
            raise ConfigError(
                f"kind={kind!r} regrows weights while the model trains. Use it with secateur.prepare, or leave it "
                f"out to prune once."
            )


def prune_weights(
    plan: Plan,
    weights: Mapping[str, PrunedWeight],
    model_weights: int,
    *,
    source: TargetSource | None = None,
) -> PruningReport:
    """Select masks for all layers of a plan, and set the pruned weights to zero.

    Args:
        plan: A plan made with the result of `drop_schedule`.
        weights: Layer → its weight, for every layer to prune.
        model_weights: Number of weights of the whole model.
        source: The result by which the target is distributed over layers; ``None``: the plan does so.

    Raises:
        ConfigError: The result is of another model, or does not reach the target.
        ScoreError: A weight or a score is ``nan``. No weight is changed in that case.
    """
    refuse_nan(weights)
    patterns = [pattern for pattern in plan.patterns if pattern.views]
    if source is not None:
        patterns = [part for pattern in patterns for part in _divide_target(pattern, weights, source)]
    runs = [Run(pattern, weights) for pattern in patterns]
    for run in runs:
        run.start()
    with defer_interrupts():  # all weights, or none
        for weight in weights.values():
            weight.apply_mask()
    refuse_violations({name: reason for run in runs for name, reason in run.violations().items()})
    report = build_report(runs, plan.dense, step=0, model_weights=model_weights)
    if source is not None:
        losses = source.losses if isinstance(source, SensitivityReport) else None
        configs = tuple(pattern.config for pattern in plan.patterns if pattern.views)
        report = replace(report, configs=configs, sensitivity=losses)
    report.warn_of_nearly_empty_layers()
    return report


def _divide_target(
    pattern: BasePattern, weights: Mapping[str, PrunedWeight], source: TargetSource
) -> list[BasePattern]:
    """Replace a pattern by one for each layer, with targets that are exactly the number of units it loses."""
    targets = find_layer_targets(source, pattern, lambda name: weights[name].compute_digest())
    return [
        get_pattern(
            pattern.config.model_copy(update={"target_sparsity": target, "pruning_scope": "local"}),
            {name: pattern.modules[name]},
            pattern.framework.name,
        )
        for name, target in targets.items()
    ]


def _drop_one_shot_keys(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the keys that have no effect, and a scope that leaves the choice to the configuration."""
    return {
        key: value for key, value in rule.items() if key not in ONE_SHOT and (key, value) != ("pruning_scope", None)
    }
