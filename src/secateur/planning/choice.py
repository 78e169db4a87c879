"""Which layers a configuration means: each with what happens to it, or the reason why nothing does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secateur._wording import format_list, suggest_name
from secateur.config import PruningConfig
from secateur.errors import LayerError, UnknownNameError
from secateur.planning.layers import Candidate

__all__ = ["Choice", "choose"]

FAMILIES = ("Linear", "Conv")
"""Type names that may be given although a model has no such layer."""


SEPARATORS = {".": "[.].*", "/": "/.*"}
"""What stands between the names of a part and a layer in it, in torch and in Keras → an expression for all in it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to happen to a layer: a configuration, or a reason why it stays dense.

    Attributes:
        candidate: The layer.
        config: What happens to it; ``None`` where it stays dense.
        reason: Why it stays dense.
        is_wish: Whether somebody said so, rather than the layer being unfit; then layers that share the weight stay
            dense too.
    """

    candidate: Candidate
    config: PruningConfig | None = None
    reason: str | None = None
    is_wish: bool = False


def choose(config: PruningConfig, candidates: Sequence[Candidate], modules: Sequence[str]) -> list[Choice]:
    """Decide for each candidate, in order.

    Args:
        config: The configuration.
        candidates: Layers that have a weight of two axes or more.
        modules: Names of all modules of the model, with and without such a weight.

    Raises:
        UnknownNameError: A name, expression or type in the configuration means no layer.
        LayerError: A layer that was named cannot be pruned.
    """
    _check_names(config, [candidate.name for candidate in candidates], modules)
    _check_types(config, candidates)
    alone = _is_alone(candidates)
    choices = _settle_shared([_choose_one(config, candidate, alone=alone) for candidate in candidates])
    pruned = {choice.candidate.weight_id for choice in choices if choice.config is not None}
    for choice in choices:
        if choice.reason is not None and choice.candidate.weight_id not in pruned:
            refuse_if_named(config, choice.candidate.name, choice.reason)
    return choices


def refuse_if_named(config: PruningConfig, name: str, reason: str) -> None:
    """Raise `LayerError` if a layer that stays dense was asked for by its very name."""
    if name in config.op_names or config.layers.get(name) is not None:
        raise LayerError(f"layer {name!r} was named but cannot be pruned: {reason}")


def _choose_one(config: PruningConfig, candidate: Candidate, *, alone: bool) -> Choice:
    name, types = candidate.name, candidate.types
    if (pattern := _first_match(config.excluded_op_names, name)) is not None:
        return Choice(candidate, reason=f"excluded by {pattern!r}", is_wish=True)
    own = config.for_layer(name, types)
    if own is None:
        return Choice(candidate, reason="left dense by a rule for its name or type", is_wish=True)
    if candidate.reason is not None:
        return Choice(candidate, reason=candidate.reason)
    has_rule = _first_match(config.layers, name) is not None
    is_named = has_rule or _first_match(config.op_names, name) is not None
    if config.op_names and not is_named:
        return Choice(candidate, reason="not among op_names")
    if not has_rule and not set(types) & {*config.pruning_op_types, *config.layer_types}:
        return Choice(candidate, reason=f"type is not among pruning_op_types ({', '.join(config.pruning_op_types)})")
    if own.kind == "pattern_lock":
        return Choice(candidate, config=_locked(_fill_scope(own)))
    if candidate.is_output and not is_named and not alone:
        return Choice(candidate, reason="output layer: dense unless op_names or layers name it", is_wish=True)
    return Choice(candidate, config=_fill_scope(own))


def _fill_scope(config: PruningConfig) -> PruningConfig:
    """The settings with a scope, so that layers which leave it out are ranked with those that say ``"global"``."""
    return config if config.pruning_scope else config.model_copy(update={"pruning_scope": "global"})


def _locked(config: PruningConfig) -> PruningConfig:
    """Settings under which every zero is held, whatever the layer's shape: single weights, no target and no bounds."""
    free = {"target_sparsity": 0.0, "min_sparsity_ratio_per_op": 0.0, "max_sparsity_ratio_per_op": 1.0}
    return PruningConfig.from_dict(config.model_dump() | free | {"pattern": "1x1"})


def _settle_shared(choices: list[Choice]) -> list[Choice]:
    """A weight that several layers share is pruned once, and not at all if one of them must stay dense."""
    dense = {choice.candidate.weight_id: choice.candidate.name for choice in choices if choice.is_wish}
    owners: dict[int, str] = {}
    for choice in choices:
        if choice.reason is None and choice.candidate.weight_id not in dense:
            owners.setdefault(choice.candidate.weight_id, choice.candidate.name)
    return [_settle(choice, dense, owners) for choice in choices]


def _settle(choice: Choice, dense: Mapping[int, str], owners: Mapping[int, str]) -> Choice:
    name, weight = choice.candidate.name, choice.candidate.weight_id
    if choice.reason is None and weight in dense:
        return Choice(choice.candidate, reason=f"shares its weight with {dense[weight]!r}, which stays dense")
    if owners.get(weight, name) != name:
        return Choice(choice.candidate, reason=f"shares its weight with {owners[weight]!r} and is pruned there")
    return choice


def _is_alone(candidates: Sequence[Candidate]) -> bool:
    """Whether only one layer is of a family that patterns know; then it is pruned although it is the output."""
    return sum(not set(FAMILIES).isdisjoint(candidate.types) for candidate in candidates) == 1


def _first_match(patterns: Iterable[str], name: str) -> str | None:
    return next((pattern for pattern in patterns if re.fullmatch(pattern, name)), None)


def _check_names(config: PruningConfig, layers: Sequence[str], modules: Sequence[str]) -> None:
    for key in ("op_names", "excluded_op_names", "layers"):
        known = modules if key == "excluded_op_names" else layers
        for pattern in getattr(config, key):
            if not any(re.fullmatch(pattern, name) for name in known):
                raise UnknownNameError(f"{key}: {pattern!r} {_mismatch(pattern, layers, modules)}")


def _mismatch(pattern: str, layers: Sequence[str], modules: Sequence[str]) -> str:
    for separator, within in SEPARATORS.items():
        if any(name.startswith(pattern + separator) for name in layers):
            return f"is no layer but holds some. For all of them write {pattern + within!r}."
    if pattern in modules:
        return "has no weight of two axes or more, so there is nothing to prune in it."
    return f"matches no layer.{suggest_name(pattern, layers)} Layers: {format_list(layers, limit=12)}."


def _check_types(config: PruningConfig, candidates: Sequence[Candidate]) -> None:
    present = dict.fromkeys(kind for candidate in candidates for kind in candidate.types)
    for key in ("pruning_op_types", "layer_types"):
        for kind in getattr(config, key):
            if kind not in present and kind not in FAMILIES:
                hint = suggest_name(kind, [*present, *FAMILIES])
                raise UnknownNameError(f"{key}: no layer has type {kind!r}.{hint} Types: {', '.join(present)}.")
