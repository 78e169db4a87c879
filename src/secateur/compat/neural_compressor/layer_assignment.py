"""Assign the layers of a model to the elements of ``pruning_configs``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from secateur._wording import format_list, suggest_name
from secateur.compat._layer_settings import LayerSettings, match_names, merge_settings
from secateur.compat.neural_compressor.config import Entry
from secateur.config import PruningConfig
from secateur.errors import ConfigError, UnknownNameError

__all__ = ["Layer", "assign_layers", "build_config"]


class Layer(NamedTuple):
    """A layer with a weight.

    Attributes:
        name: Name in the model.
        kind: Class name.
        is_output: Whether it is the model's classifier or language-model head.
    """

    name: str
    kind: str
    is_output: bool


def assign_layers(entries: Sequence[Entry], layers: Sequence[Layer], modules: Collection[str]) -> dict[str, int]:
    """Map each layer to the index of its entry; layers without an entry are omitted.

    Args:
        entries: The entries.
        layers: All layers with a weight of at least two axes.
        modules: Names of all modules.

    Raises:
        UnknownNameError: An expression matches no layer, or there is no layer of a type.
        ConfigError: Two entries match the same layer, or an entry matches none.
    """
    for entry in entries:
        _check_names_and_types(entry, layers, modules)
    owners: dict[str, int] = {}
    for has_names in (True, False):
        assigned = frozenset(owners)
        for index, entry in enumerate(entries):
            if bool(entry.op_names) != has_names:
                continue
            names = [name for name in _match_layers(entry, layers) if name not in assigned]
            _check_overlap(entries, owners, names, index)
            owners |= dict.fromkeys(names, index)
    for index, entry in enumerate(entries):
        if index not in owners.values():
            raise ConfigError(
                f"{entry.where} matches no layer: op_names={list(entry.op_names)}, pruning_op_types="
                f"{list(entry.pruning_op_types)}, excluded_op_names={list(entry.excluded_op_names)}. The output layer "
                "is only included if op_names contains its exact name. Layers: "
                f"{format_list((layer.name for layer in layers), limit=12)}."
            )
    return owners


def build_config(entries: Sequence[Entry], owners: Mapping[str, int]) -> PruningConfig:
    """Build the configuration that prunes exactly the assigned layers.

    Raises:
        ConfigError: The settings contradict each other.
    """
    parts = [
        LayerSettings(
            names=(match_names(name for name, owner in owners.items() if owner == index),), settings=entry.settings
        )
        for index, entry in enumerate(entries)
    ]
    types = tuple(dict.fromkeys(kind for entry in entries for kind in entry.pruning_op_types))
    return merge_settings(parts, pruning_op_types=types)


def _match_layers(entry: Entry, layers: Sequence[Layer]) -> list[str]:
    return [
        layer.name
        for layer in layers
        if any(kind in layer.kind for kind in entry.pruning_op_types)
        and (not layer.is_output or layer.name in entry.op_names)
        and (not entry.op_names or _matches_any(entry.op_names, layer.name))
        and not _matches_any(entry.excluded_op_names, layer.name)
    ]


def _check_overlap(entries: Sequence[Entry], owners: Mapping[str, int], names: Sequence[str], index: int) -> None:
    for name in names:
        if name in owners:
            raise ConfigError(
                f"layer {name!r} matches both {entries[owners[name]].where} and {entries[index].where}. Make their "
                f"op_names more specific, or add excluded_op_names to one of them."
            )


def _check_names_and_types(entry: Entry, layers: Sequence[Layer], modules: Collection[str]) -> None:
    names = [layer.name for layer in layers]
    for key, expressions, known in (
        ("op_names", entry.op_names, names),
        ("excluded_op_names", entry.excluded_op_names, modules),
    ):
        for expression in expressions:
            if not any(_matches_any((expression,), name) for name in known):
                raise UnknownNameError(
                    f"{entry.where}: {key}: {expression!r} matches no name.{suggest_name(expression, known)} "
                    f"Layers: {format_list(names, limit=12)}."
                )
    for kind in entry.pruning_op_types:
        if kind not in ("Conv", "Linear") and not any(kind in layer.kind for layer in layers):
            kinds = list(dict.fromkeys(layer.kind for layer in layers))
            raise UnknownNameError(
                f"{entry.where}: pruning_op_types: no layer has type {kind!r}.{suggest_name(kind, kinds)} "
                f"Types: {', '.join(kinds)}."
            )


def _matches_any(expressions: Sequence[str], name: str) -> bool:
    try:
        return any(re.search(expression, name) for expression in expressions)
    except re.error as error:
        raise ConfigError(f"{format_list(map(repr, expressions))} is not a regular expression: {error}.") from error
