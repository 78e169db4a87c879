"""Select the layers to prune from a configuration, and explain why the others stay dense."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from secateur._name_patterns import find_pattern, matches_any
from secateur._wording import format_count, format_list, format_reasons, suggest_name
from secateur.config import PruningConfig
from secateur.errors import LayerError, UnknownNameError
from secateur.patterns.base import get_pattern_class
from secateur.planning.layers import LAYER_FAMILIES, Candidate, LayerDecision
from secateur.planning.output_layer import explain_default
from secateur.planning.tied_weights import resolve_tied_weights

__all__ = ["has_lock", "list_couplings", "raise_if_named", "select_layers"]

SEPARATORS = {".": "[.].*", "/": "/.*"}
"""Separator between a part of a model and its layers, in torch and in Keras → an expression that matches them all."""


DEFAULT_TYPES = PruningConfig.model_fields["pruning_op_types"].default


def select_layers(
    config: PruningConfig, candidates: Sequence[Candidate], modules: Sequence[str]
) -> list[LayerDecision]:
    """Decide for each candidate, in order, whether and how it is pruned.

    Args:
        config: The configuration.
        candidates: Layers whose weight has at least two axes.
        modules: Names of all modules of the model, with or without such a weight.

    Raises:
        UnknownNameError: A name, expression or type in the configuration matches no layer.
        LayerError: A layer that the configuration names cannot be pruned, or the weight of a selected layer is a tensor
            subclass.
    """
    _check_names(config, list(dict.fromkeys(name for layer in candidates for name in layer.names)), modules)
    _check_types(config, candidates)
    _check_weights(config, candidates)
    decisions = resolve_tied_weights([_decide(config, candidate, candidates) for candidate in candidates])
    pruned = {decision.candidate.weight_id for decision in decisions if decision.config is not None}
    for decision in decisions:
        if decision.reason is not None and decision.candidate.weight_id not in pruned:
            raise_if_named(config, decision.candidate.names, decision.reason)
    return decisions


def has_lock(config: PruningConfig) -> bool:
    """Whether a configuration, or a rule in it, locks zeros."""
    rules = [rule for rules in (config.layers, config.layer_types) for rule in rules.values() if rule is not None]
    return any(kind == "pattern_lock" for kind in (config.kind, *(rule.get("kind") for rule in rules)))


def list_couplings(config: PruningConfig) -> set[str]:
    """List the kinds of units with slices in several layers, such as ``"channels"``, that a configuration prunes.

    Examples:
        >>> list_couplings(PruningConfig(pattern="2:4"))
        set()
        >>> list_couplings(PruningConfig(pattern="heads"))
        {'heads'}
    """
    rules = [rule for rules in (config.layers, config.layer_types) for rule in rules.values() if rule is not None]
    patterns = {config.pattern, *(rule["pattern"] for rule in rules if "pattern" in rule)}
    return {kind for pattern in patterns if (kind := get_pattern_class(pattern).coupling) is not None}


def raise_if_named(config: PruningConfig, names: Sequence[str], reason: str) -> None:
    """Raise `LayerError` if the configuration names a layer that cannot be pruned."""
    if any(name in config.op_names or config.layers.get(name) is not None for name in names):
        raise LayerError(f"layer {names[0]!r} was named but cannot be pruned: {reason}")


def _decide(config: PruningConfig, candidate: Candidate, candidates: Sequence[Candidate]) -> LayerDecision:
    names, types = candidate.names, candidate.types
    if (pattern := find_pattern(config.excluded_op_names, *names)) is not None:
        return LayerDecision(candidate, reason=f"excluded by {pattern!r}", is_requested_dense=True)
    ruled = next((name for name in names if find_pattern(config.layers, name) is not None), None)
    settings = config.for_layer(ruled or candidate.name, types)
    if settings is None:
        return LayerDecision(candidate, reason="left dense by a rule for its name or type", is_requested_dense=True)
    is_locked, has_rule = settings.kind == "pattern_lock", ruled is not None
    if candidate.reason is not None and not (is_locked and candidate.is_frozen):
        return LayerDecision(candidate, reason=candidate.reason)
    if candidate.only_locks and not is_locked:
        return LayerDecision(candidate, reason=f"{types[0]} is not a supported layer type")
    is_named = has_rule or find_pattern(config.op_names, *names) is not None
    if config.op_names and not is_named:
        return LayerDecision(candidate, reason="not among op_names")
    if not has_rule and not _selects_type(config, candidate):
        return LayerDecision(
            candidate, reason=f"type is not among pruning_op_types ({', '.join(config.pruning_op_types)})"
        )
    if is_locked:
        return LayerDecision(candidate, config=_lock_zeros(_fill_scope(settings), candidate))
    keeps_outputs = get_pattern_class(settings.pattern).keeps_outputs
    shown = replace(candidate, is_output=False) if keeps_outputs else candidate
    if not is_named and (reason := explain_default(shown, candidates)) is not None:
        return LayerDecision(candidate, reason=reason, is_requested_dense=True)
    return LayerDecision(candidate, config=_fill_scope(settings))


def _selects_type(config: PruningConfig, candidate: Candidate) -> bool:
    """Whether the configuration selects the type of a layer; a lock selects every type by default."""
    if candidate.only_locks and config.pruning_op_types == DEFAULT_TYPES:
        return True
    return bool({*candidate.types} & {*config.pruning_op_types, *config.layer_types})


def _fill_scope(config: PruningConfig) -> PruningConfig:
    """Set the default scope, so that layers without a scope are ranked with those that have ``"global"``."""
    return config if config.pruning_scope else config.model_copy(update={"pruning_scope": "global"})


def _lock_zeros(config: PruningConfig, candidate: Candidate) -> PruningConfig:
    """Return settings that keep every zero of any weight: single weights, no target and no bounds.

    A pattern that finds the locked weights itself stays, for weights that patterns support.
    """
    asks_pattern = not candidate.only_locks and get_pattern_class(config.pattern).finds_locked_weights
    free = {"target_sparsity": 0.0, "min_sparsity_ratio_per_op": 0.0, "max_sparsity_ratio_per_op": 1.0}
    single = {"pattern": config.pattern if asks_pattern else "1x1", "granularity": 1, "allow_inexact": False}
    return PruningConfig.from_dict(config.model_dump() | free | single)


def _check_names(config: PruningConfig, layers: Sequence[str], modules: Sequence[str]) -> None:
    for key in ("op_names", "excluded_op_names", "layers"):
        names = {*modules, *layers} if key == "excluded_op_names" else set(layers)
        for pattern in getattr(config, key):
            if not matches_any(pattern, names):
                raise UnknownNameError(f"{key}: {pattern!r} {_explain_mismatch(pattern, layers, modules)}")


def _explain_mismatch(pattern: str, layers: Sequence[str], modules: Sequence[str]) -> str:
    for separator, within in SEPARATORS.items():
        if any(name.startswith(pattern + separator) for name in layers):
            return f"is not a layer but contains layers. For all of them write {pattern + within!r}."
    if pattern in modules:
        return "has no weight with at least two axes, so there is nothing to prune in it."
    contained = f".*{pattern}.*"
    if count := sum(re.search(pattern, name) is not None for name in layers):
        return (
            f"matches no layer, because whole names must match. It occurs in {format_count(count, 'name')}; for "
            f"{'it' if count == 1 else 'all of them'} write {contained!r}.{suggest_name(pattern, layers)} Layers: "
            f"{format_list(layers, limit=12)}."
        )
    return f"matches no layer.{suggest_name(pattern, layers)} Layers: {format_list(layers, limit=12)}."


def _check_weights(config: PruningConfig, candidates: Sequence[Candidate]) -> None:
    """Raise `LayerError` if the configuration selects a layer whose weight must not be skipped silently."""
    refused = [candidate for candidate in candidates if candidate.is_refused and _is_selected(config, candidate)]
    if refused:
        reasons = format_reasons((candidate.name, candidate.reason or "") for candidate in refused)
        raise LayerError(
            f"{format_count(len(refused), 'layer')} cannot be pruned:\n{reasons}\nTo leave them dense, name them in "
            f"excluded_op_names."
        )


def _is_selected(config: PruningConfig, candidate: Candidate) -> bool:
    plain = replace(candidate, reason=None)
    return _decide(config, plain, [plain]).config is not None


def _check_types(config: PruningConfig, candidates: Sequence[Candidate]) -> None:
    present = dict.fromkeys(kind for candidate in candidates for kind in candidate.types)
    for key in ("pruning_op_types", "layer_types"):
        for kind in getattr(config, key):
            if kind not in present and kind not in LAYER_FAMILIES:
                hint = suggest_name(kind, [*present, *sorted(LAYER_FAMILIES)])
                raise UnknownNameError(f"{key}: no layer has type {kind!r}.{hint} Types: {', '.join(present)}.")
