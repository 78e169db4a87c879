"""What a search can choose for a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.config import ConfigLike, make_config
from secateur.errors import ConfigError
from secateur.frameworks import import_leaf
from secateur.searching.candidate import CandidateFactory
from secateur.searching.layer_groups import group_layers
from secateur.searching.space import PruningSpace

__all__ = ["make_factory"]

SLIM_KEYS = ("granularity", "allow_inexact")
"""Settings of patterns whose units have slices in several layers."""


def make_factory(model: Any, space: PruningSpace, config: ConfigLike | None) -> CandidateFactory:
    """Return the settings of a search for a model.

    Args:
        model: The model.
        space: The space.
        config: Settings that all trials share.

    Raises:
        SecateurError: A pattern fits no layer, or a group contains none.
    """
    base = (
        {}
        if config is None
        else dict(config)
        if isinstance(config, Mapping)
        else make_config(config).model_dump(exclude_defaults=True)
    )
    for key in ("pattern", "target_sparsity"):
        if key in base:
            raise ConfigError(f"config must leave {key} to the space, found {base[key]!r}. Move it to the space.")
    slim_base = {key: base.pop(key) for key in SLIM_KEYS if key in base}
    plan, compute_digest = (
        import_leaf("secateur.planning", model).plan,
        import_leaf("secateur.analysis", model).compute_digest,
    )
    groups = space.groups if isinstance(space.groups, Mapping) else {}
    patterns = {*space.pattern, *(name for settings in groups.values() for name in settings.get("pattern", ()))}
    layers, sizes, digests = {}, dict[str, int](), dict[str, str]()
    for pattern in sorted(patterns):
        made = make_config({**base, "pattern": pattern})
        planned = plan(model, made, prune_frozen=True)
        layers[pattern] = [layer.name for layer in planned.layers if layer.is_pruned]
        sizes |= {layer.name: layer.weights for layer in planned.layers}
        for bound in planned.patterns:
            digests |= {name: compute_digest(name, bound) for name in bound.views if name not in digests}
    ordered = list(dict.fromkeys(name for names in layers.values() for name in names))
    return CandidateFactory(
        space=space,
        base=base,
        slim_base=slim_base,
        groups=group_layers(space, ordered),
        layers={pattern: frozenset(names) for pattern, names in layers.items()},
        sizes=sizes,
        digests=digests,
    )
