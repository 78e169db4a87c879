"""Import modifiers that prune during training or keep zeros."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from secateur.compat._layer_settings import LayerSettings, check_keys
from secateur.compat.schedules import register_with_start
from secateur.compat.sparseml.layer_names import match_parameters
from secateur.compat.sparseml.modifier import SYNONYMS, TOLERANCE, Modifier
from secateur.criteria import CRITERIA
from secateur.errors import ConfigError

__all__ = ["CONSTANT", "GRADUAL", "read_layer_settings"]

GRADUAL = {
    "GMPruningModifier": ("magnitude", "local"),
    "GlobalMagnitudePruningModifier": ("magnitude", "global"),
    "MagnitudePruningModifier": ("magnitude", "local"),
    "MovementPruningModifier": ("movement", "local"),
}
"""Modifier that prunes during training → criterion and scope."""

CONSTANT = "ConstantPruningModifier"
"""Modifier that keeps zeros."""

GRADUAL_KEYS = (
    "init_sparsity",
    "final_sparsity",
    "start_epoch",
    "end_epoch",
    "update_frequency",
    "params",
    "inter_func",
    "scheduler_args",
    "mask_type",
    "global_sparsity",
    "leave_enabled",
    "log_types",
)
CONSTANT_KEYS = ("params", "start_epoch", "end_epoch", "update_frequency", "log_types")
FROM_PARAM = "__FROM_PARAM__"
MASKS = {"unstructured": "1x1", "block": "1x4", "block4": "1x4", "tensorrt": "2:4"}
"""Mask type → pattern."""

CHANNELS = {
    True: {"channel": "channelx1", "filter": "1xchannel"},
    False: {"channel": "1xchannel", "filter": "channelx1"},
}
"""Whether a modifier is a tag → mask type → pattern.

Originally, channels were inputs and filters were outputs; later it was the reverse.
"""

POLYNOMIALS = ("polynomial", "polynomial_decay")
SCHEDULES = {
    ("linear", None): "linear",
    ("cubic", None): "cubic",
    ("polynomial", 1): "linear",
    ("polynomial", 3): "cube",
    ("polynomial_decay", 1): "linear",
    ("polynomial_decay", 3): "cubic",
}
"""(name, exponent of a polynomial) → schedule."""

GROUPS = re.compile(r"([1-9]\d*):([1-9]\d*)")
BLOCK = re.compile(r"block_(\d+),(\d+)")


def read_layer_settings(modifier: Modifier, steps_per_epoch: int | None) -> Iterator[LayerSettings]:
    """Iterate over the settings of a modifier, with the layers that they are for.

    Raises:
        ConfigError: A key is unknown or not supported, or a value is out of bounds.
    """
    known = CONSTANT_KEYS if modifier.name == CONSTANT else GRADUAL_KEYS
    check_keys(modifier.values, (*known, *(new for new, old in SYNONYMS.items() if old in known)), modifier.name)
    values = {SYNONYMS.get(key, key): value for key, value in modifier.values.items()}
    if len(values) < len(modifier.values):
        raise ConfigError(
            f"{modifier.name}: each key can only have one of its names, found {', '.join(modifier.values)}."
        )
    if modifier.name == CONSTANT:
        if (start := values.get("start_epoch") or 0) > 0:
            raise ConfigError(
                f"{modifier.name}: start_epoch must be 0, found {start}. Zeros are kept from the first step on."
            )
        yield LayerSettings(
            names=match_parameters(modifier.get_required(values, "params"), modifier.describe_key("params")),
            settings={"kind": "pattern_lock"},
        )
        return
    for sparsity, names in _read_targets(values, modifier):
        yield LayerSettings(names=names, settings=_read_gradual(values, sparsity, modifier, steps_per_epoch))


def _read_targets(values: Mapping[str, Any], modifier: Modifier) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Iterate over the final sparsities, with the expressions for their layers."""
    final, params = modifier.get_required(values, "final_sparsity"), values.get("params")
    if isinstance(final, Mapping):
        if params:
            raise ConfigError(f"{modifier.name}: params must be [] if final_sparsity contains names, found {params!r}.")
        for sparsity, names in final.items():
            yield sparsity, match_parameters(names, modifier.describe_key("final_sparsity"))
    else:
        yield final, match_parameters(modifier.get_required(values, "params"), modifier.describe_key("params"))


def _read_gradual(
    values: Mapping[str, Any], final: Any, modifier: Modifier, steps_per_epoch: int | None
) -> dict[str, Any]:
    criterion, scope = GRADUAL[modifier.name]
    mask = values.get("mask_type", "unstructured")
    pattern = _read_pattern(mask, modifier)
    settings = {
        "kind": "iterative",
        "criterion": criterion,
        "pattern": pattern,
        "target_sparsity": _read_target(final, pattern, modifier),
        "pruning_scope": "global" if values.get("global_sparsity") else scope,
        "criterion_reduce_type": "l2" if modifier.is_tagged and mask in ("channel", "filter") else "mean",
        "keep_zeros": values.get("init_sparsity") == FROM_PARAM,
        **_read_timing(values, modifier, steps_per_epoch),
    }
    return modifier.check_settings(settings)


def _read_timing(values: Mapping[str, Any], modifier: Modifier, steps_per_epoch: int | None) -> dict[str, Any]:
    start, end = values.get("start_epoch") or 0, modifier.get_required(values, "end_epoch")
    every = values.get("update_frequency")
    for key, value in (("start_epoch", start), ("end_epoch", end), ("update_frequency", every)):
        if value is not None and not isinstance(value, int | float):
            raise ConfigError(f"{modifier.describe_key(key)} must be a number of epochs, found {value!r}.")
    if end < max(start, 0):
        raise ConfigError(f"{modifier.name}: end_epoch must not be less than start_epoch, found {end} < {start}.")
    if steps_per_epoch is None or steps_per_epoch < 1:
        raise ConfigError(
            f"steps_per_epoch must be given for {modifier.name}, which counts in epochs, found {steps_per_epoch}."
        )
    first, last = (round(max(epoch, 0) * steps_per_epoch) for epoch in (start, end))
    if CRITERIA.find(GRADUAL[modifier.name][0]).needs_gradient:
        # There is no gradient before the first step.
        first, last = max(first, 1), max(last, 1)
    return {
        "start_step": first,
        "end_step": last,
        "pruning_frequency": 1 if every is None or every <= 0 else max(1, round(every * steps_per_epoch)),
        "sparsity_decay_type": "one_shot" if first == last else _read_schedule(values, modifier),
    }


def _read_schedule(values: Mapping[str, Any], modifier: Modifier) -> str:
    name, initial = values.get("inter_func", "cubic"), values.get("init_sparsity", 0.0)
    arguments = values.get("scheduler_args")
    exponent = arguments.get("exponent", 2) if isinstance(arguments, Mapping) else 2
    schedule = SCHEDULES.get((str(name), exponent if name in POLYNOMIALS else None))
    if schedule is None:
        raise ConfigError(
            f"{modifier.describe_key('inter_func')} {name!r} is not supported. Use linear, cubic or a polynomial of "
            f"degree 1 or 3, or register a schedule with secateur.register_schedule."
        )
    if initial == FROM_PARAM:
        return schedule
    if not isinstance(initial, int | float) or not 0 <= initial <= 1:
        raise ConfigError(
            f"{modifier.describe_key('init_sparsity')} must be in [0, 1] or {FROM_PARAM}, found {initial!r}."
        )
    return register_with_start(schedule, float(initial))


def _read_pattern(mask: Any, modifier: Modifier) -> str:
    """Read the pattern of a mask type, where N counts the kept weights."""
    if isinstance(mask, list | tuple) and len(mask) == 2 and all(isinstance(one, int) for one in mask):
        rows, cols = ("channel" if size == -1 else str(size) for size in mask)
        return f"{rows}x{cols}"
    channels = CHANNELS[modifier.is_tagged]
    if isinstance(mask, str):
        if mask in MASKS or mask in channels:
            return MASKS.get(mask) or channels[mask]
        if match := BLOCK.fullmatch(mask):
            return f"{match[1]}x{match[2]}"
        if GROUPS.fullmatch(mask):
            return mask
    raise ConfigError(
        f"{modifier.describe_key('mask_type')} {mask!r} is not supported. Known: "
        f"{', '.join((*MASKS, *channels))}, N:M, and a list of two numbers."
    )


def _read_target(final: Any, pattern: str, modifier: Modifier) -> float | None:
    if not isinstance(final, int | float) or not 0 <= final <= 1:
        raise ConfigError(f"{modifier.describe_key('final_sparsity')} must be in [0, 1], found {final!r}.")
    match = GROUPS.fullmatch(pattern)
    if match is None:
        return float(final)
    keep, group = int(match[1]), int(match[2])
    sparsity = 1 - keep / group
    if abs(sparsity - final) > TOLERANCE:
        raise ConfigError(
            f"{modifier.describe_key('final_sparsity')} must be {sparsity:g} for {pattern}, which keeps {keep} of "
            f"{group}, found {final}."
        )
    return None
