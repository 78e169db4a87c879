"""Complete the entries of ``pruning_configs``, and find their layers by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from secateur._wording import format_list, suggest_name
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.errors import ConfigError

__all__ = ["DEFAULTS", "Layer", "complete_element", "match_layers", "prunes_heads", "warn_of_unknown_keys"]

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {
    "target_sparsity": 0.9,
    "pruning_type": "snip_momentum",
    "pattern": "4x1",
    "op_names": [],
    "excluded_op_names": [],
    "start_step": 0,
    "end_step": 0,
    "pruning_scope": "global",
    "pruning_frequency": 1,
    "min_sparsity_ratio_per_op": 0.0,
    "max_sparsity_ratio_per_op": 0.98,
    "sparsity_decay_type": "exp",
    "pruning_op_types": ["Conv", "Linear"],
    "low_memory_usage": False,
    "criterion_type": "snip_momentum",
    "resume_from_pruned_checkpoint": False,
    "lock_init_sparsity": False,
    "reg_type": None,
    "reg_coeff": 0.0,
    "criterion_reduce_type": "mean",
    "parameters": {},
}
"""Key → default value in the documentation of Intel Neural Compressor."""


class Layer(NamedTuple):
    """A layer with a weight.

    Attributes:
        name: Name in the model.
        kind: Class name.
        is_output: Whether it is the model's classifier or language-model head.
        has_heads: Whether it is a projection of an attention layer whose heads are known.
    """

    name: str
    kind: str
    is_output: bool
    has_heads: bool = False


def complete_element(element: Mapping[str, Any], common: Mapping[str, Any]) -> DotDict:
    """Complete an element with the common keys and the defaults; ``None`` counts as missing.

    Keys in ``parameters`` count as keys of the element.

    Examples:
        >>> complete_element({"pattern": "2:4"}, {"end_step": 10}).end_step
        10
    """
    given = [{key: value for key, value in part.items() if value is not None} for part in (common, element)]
    settings = DotDict({**DEFAULTS, **given[0], **given[1]})
    if not isinstance(settings.parameters, Mapping):
        raise ConfigError(
            f"parameters must be a dictionary such as {{'reg_coeff': 0.1}}, found {settings.parameters!r}."
        )
    settings.update({key: value for key, value in settings.parameters.items() if key not in given[1]})
    for key in ("op_names", "excluded_op_names", "pruning_op_types"):
        settings[key] = _to_list(settings[key])
    return settings


def warn_of_unknown_keys(settings: Mapping[str, Any], where: str) -> None:
    """Log a warning that names the unknown keys, which are ignored."""
    unknown = [_add_suggestion(str(key), DEFAULTS) for key in settings if key not in DEFAULTS]
    if unknown:
        logger.warning("%s: unknown keys are ignored: %s", where, format_list(unknown))


def prunes_heads(element: Mapping[str, Any]) -> bool:
    """Whether an element prunes whole attention heads.

    Examples:
        >>> prunes_heads({"pattern": "mha"}), prunes_heads({"pattern": "4x1"})
        (True, False)
    """
    return isinstance(element["pattern"], str) and "mha" in element["pattern"]


def match_layers(
    element: Mapping[str, Any], layers: Sequence[Layer], modules: Collection[str], where: str
) -> list[str]:
    """Return the names of the layers of an element.

    The output layer of the model stays dense unless ``op_names`` contains its exact name.

    Args:
        element: A completed element.
        layers: All layers with a weight of at least two axes.
        modules: Names of all modules.
        where: Location of the element, for messages.

    Raises:
        ConfigError: A name is not a regular expression.
    """
    if prunes_heads(element):
        return _match_attention(layers, where)
    _warn_of_unmatched_names(element, layers, modules, where)
    names, excluded = element["op_names"], element["excluded_op_names"]
    matched = [
        layer.name
        for layer in layers
        if any(kind in layer.kind for kind in element["pruning_op_types"])
        and (not layer.is_output or layer.name in names)
        and (not names or _matches_any(names, layer.name))
        and not _matches_any(excluded, layer.name)
    ]
    if not matched:
        logger.warning(
            "%s matches no layer, so it prunes nothing: op_names=%s, pruning_op_types=%s, excluded_op_names=%s. The "
            "output layer is only included if op_names contains its exact name. Layers: %s.",
            where,
            names,
            element["pruning_op_types"],
            excluded,
            format_list((layer.name for layer in layers), limit=12),
        )
    return matched


def _match_attention(layers: Sequence[Layer], where: str) -> list[str]:
    """Return the projections of all attention layers of the model, regardless of the names in the element."""
    matched = [layer.name for layer in layers if layer.has_heads]
    if not matched:
        logger.warning(
            "%s prunes nothing: no attention layer with known heads was found. Pass dataloader to prepare_pruning to "
            "find heads by running the model.",
            where,
        )
    return matched


def _warn_of_unmatched_names(
    element: Mapping[str, Any], layers: Sequence[Layer], modules: Collection[str], where: str
) -> None:
    names = [layer.name for layer in layers]
    for key, known in (("op_names", names), ("excluded_op_names", modules)):
        unmatched = [
            _add_suggestion(expression, known)
            for expression in element[key]
            if not any(_matches_any((expression,), name) for name in known)
        ]
        if unmatched:
            logger.warning("%s: %s that match no layer: %s", where, key, format_list(unmatched, limit=5))


def _add_suggestion(name: str, known: Collection[str]) -> str:
    """Quote a name, with the most similar known name in parentheses."""
    suggestion = suggest_name(name, known).strip()
    return f"{name!r} ({suggestion})" if suggestion else repr(name)


def _matches_any(expressions: Iterable[str], name: str) -> bool:
    expressions = tuple(expressions)
    try:
        return any(re.search(expression, name) for expression in expressions)
    except re.error as error:
        raise ConfigError(f"{format_list(map(repr, expressions))} is not a regular expression: {error}.") from error


def _to_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
