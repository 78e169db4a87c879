"""Translate an element of ``pruning_configs`` to the keys of `PruningConfig`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from secateur._wording import suggest_name
from secateur.compat.neural_compressor._elements import DEFAULTS, prunes_heads
from secateur.compat.neural_compressor._user_calls import PREFIXES
from secateur.compat.neural_compressor._user_criteria import (
    CRITERIA,
    PRUNERS,
    REGS,
    SCHEDULERS,
    TF_CRITERIA,
    find_user_criterion,
    is_user_class,
    needs_first_gradient,
)
from secateur.compat.neural_compressor._user_patterns import find_user_pattern
from secateur.compat.schedules import register_quarter_cosine
from secateur.config import PruningConfig
from secateur.errors import ConfigError, UnknownNameError

__all__ = [
    "DECAYS",
    "PROGRESSIVE_STEPS",
    "is_one_shot",
    "name_pruner",
    "runs_user_pruner",
    "split_pruning_type",
    "translate_element",
    "warn_of_high_target",
]

logger = logging.getLogger(__name__)

CRITERION_NAMES = {
    "snip_momentum": "snip_momentum",
    "snip": "snip",
    "magnitude": "magnitude",
    "gradient": "gradient",
    "block_mask": "mask_gradient",
}
"""Pruning type → criterion."""

ONE_SHOT = {"sparse_gpt": "magnitude", "retrain_free": "mask_fisher"}
"""Pruning type that prunes in one shot with calibration data → criterion."""

PROGRESSIVE = "_progressive"
PROGRESSIVE_STEPS = 4

DECAYS = {"exp": "exponential", "cos": "quarter_cosine", "cube": "cube", "linear": "linear"}
"""Sparsity decay type → schedule."""

GROUPS = re.compile(r"([1-9]\d*):([1-9]\d*)")


def translate_element(element: Mapping[str, Any]) -> dict[str, Any]:
    """Translate all keys except those that select layers.

    Args:
        element: An element with all keys.

    Raises:
        ConfigError: A value is invalid, out of bounds or not supported.
    """
    kind, criterion = _read_kind_and_criterion(element)
    pattern, removable = _convert_pattern(element)
    settings: dict[str, Any] = {"kind": kind, "pattern": pattern}
    if kind == "pattern_lock":
        return settings
    settings |= {
        "target_sparsity": _read_target(element, removable),
        "criterion": criterion,
        "pruning_scope": "local" if element["pruning_type"] == "sparse_gpt" else element["pruning_scope"],
        "criterion_reduce_type": element["criterion_reduce_type"],
        "min_sparsity_ratio_per_op": element["min_sparsity_ratio_per_op"],
        "max_sparsity_ratio_per_op": element["max_sparsity_ratio_per_op"],
        "keep_zeros": bool(element["resume_from_pruned_checkpoint"] or element["lock_init_sparsity"]),
        "score_dtype": "bfloat16" if element["low_memory_usage"] else "float32",
        **_read_regularizer(element),
        **_read_timing(element, kind, criterion),
        **_read_parts(element, kind),
    }
    PruningConfig(**settings)
    return settings


def warn_of_high_target(element: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Log a warning if a target that the user set is above what the element allows.

    Args:
        element: The element.
        settings: What `translate_element` returned for it.
    """
    target, counted = element["target_sparsity"], settings.get("target_sparsity")
    if counted is not None and target not in (counted, DEFAULTS["target_sparsity"]):
        logger.warning(
            "target_sparsity=%s is above what pattern=%r and max_sparsity_ratio_per_op=%s allow, and counts as %s.",
            target,
            element["pattern"],
            element["max_sparsity_ratio_per_op"],
            counted,
        )


def is_one_shot(element: Mapping[str, Any]) -> bool:
    """Whether an element prunes in one shot with calibration data, rather than during training."""
    return element["pruning_type"] in ONE_SHOT


def split_pruning_type(element: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the name of the criterion of an element, and whether it prunes in parts.

    Examples:
        >>> split_pruning_type({"pruning_type": "snip_progressive"})
        ('snip', True)
        >>> split_pruning_type({"pruning_type": "basic", "criterion_type": "magnitude"})
        ('magnitude', False)
    """
    name = str(element["pruning_type"])
    base = name.removesuffix(PROGRESSIVE)
    return (str(element["criterion_type"]) if base == "basic" else base), name != base


def name_pruner(element: Mapping[str, Any], framework: str) -> str:
    """Return the name under which the pruner of an element is registered.

    Examples:
        >>> name_pruner({"pruning_type": "snip_progressive", "pattern": "4x1"}, "pytorch")
        'pt_progressive'
        >>> name_pruner({"pruning_type": "mine", "pattern": "4x1"}, "keras")
        'keras_mine'
    """
    name = str(element["pruning_type"])
    base = name.removesuffix(PROGRESSIVE)
    is_basic = base in CRITERIA and "block" not in base and "free" not in base
    kind = "mha" if prunes_heads(element) else "progressive" if base != name else "basic" if is_basic else name
    return f"{PREFIXES[framework]}_{kind}"


def runs_user_pruner(element: Mapping[str, Any], framework: str) -> bool:
    """Whether an element runs a user-defined pruner."""
    return is_user_class(PRUNERS.get(name_pruner(element, framework)))


def _read_kind_and_criterion(element: Mapping[str, Any]) -> tuple[str, str]:
    name = element["pruning_type"]
    if name == "pattern_lock":
        return "pattern_lock", "magnitude"
    if name in ONE_SHOT:
        return "iterative", ONE_SHOT[name]
    base, is_progressive = split_pruning_type(element)
    criterion = find_user_criterion(base, CRITERION_NAMES.__contains__) or CRITERION_NAMES.get(base)
    if criterion is None and any(runs_user_pruner(element, framework) for framework in PREFIXES):
        # Such a pruner ranks weights itself; the plan still shows its layers.
        criterion = CRITERION_NAMES.get(str(element["criterion_type"]), "magnitude")
    if criterion is None:
        bases = dict.fromkeys((*CRITERION_NAMES, *(each for each in (*CRITERIA, *TF_CRITERIA) if each not in ONE_SHOT)))
        known = (*bases, *(each + PROGRESSIVE for each in bases), "pattern_lock", *ONE_SHOT)
        raise UnknownNameError(
            f"Unknown pruning_type {name!r}.{suggest_name(str(name), known)} Known: {', '.join(known)}."
        )
    return ("progressive" if is_progressive else "iterative"), criterion


def _read_regularizer(element: Mapping[str, Any]) -> dict[str, Any]:
    """Return Secateur's regularizer, unless a user's class replaces it."""
    if is_user_class(REGS.get(element["reg_type"])):
        return {"reg_type": None, "reg_coeff": 0.0}
    return {"reg_type": element["reg_type"], "reg_coeff": element["reg_coeff"]}


def _convert_pattern(element: Mapping[str, Any]) -> tuple[str, float | None]:
    """Convert a pattern so that N counts the kept weights; also return the share that N:M removes."""
    pattern = element["pattern"]
    if not isinstance(pattern, str):
        raise ConfigError(f"pattern must be a string such as '4x1', found {pattern!r}.")
    if (user_pattern := find_user_pattern(pattern)) is not None:
        return user_pattern, None
    if prunes_heads(element):
        return "heads", None
    name = pattern.rpartition("_")[2]  # "tile_pattern_4x1"
    match = GROUPS.fullmatch(name)
    if match is None:
        return name, None
    removed, group = int(match[1]), int(match[2])
    if removed >= group:
        raise ConfigError(
            f"pattern {pattern!r}: N must be less than M, because N of every M weights are removed. Use '2:4', for "
            f"example."
        )
    return f"{group - removed}:{group}", removed / group


def _read_target(element: Mapping[str, Any], removable: float | None) -> Any:
    """Return the target, at most the maximum of a layer and the share that N:M removes."""
    target = element["target_sparsity"]
    bounds = [bound for bound in (element["max_sparsity_ratio_per_op"], removable) if isinstance(bound, int | float)]
    return min(target, *bounds) if bounds and isinstance(target, int | float) else target


def _read_parts(element: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the number of parts of a progressive run, which `BasePruner.progressive_configs` can change."""
    parts = element.get("progressive_steps", PROGRESSIVE_STEPS)
    return {"progressive_steps": parts} if kind == "progressive" and parts != PROGRESSIVE_STEPS else {}


def _read_timing(element: Mapping[str, Any], kind: str, criterion: str) -> dict[str, Any]:
    """Return the steps: the last update is the last whole ``pruning_frequency`` up to ``end_step``."""
    decay, frequency = element["sparsity_decay_type"], element["pruning_frequency"]
    has_scheduler = any(map(is_user_class, SCHEDULERS.values()))
    if decay not in DECAYS and not has_scheduler:
        raise UnknownNameError(
            f"Unknown sparsity_decay_type {decay!r}.{suggest_name(str(decay), DECAYS)} Known: {', '.join(DECAYS)}."
        )
    start, end = math.ceil(element["start_step"]), math.floor(element["end_step"])
    if end < start:
        raise ConfigError(f"end_step must not be less than start_step, found {end} < {start}.")
    if not isinstance(frequency, int | float) or frequency < 1:
        raise ConfigError(f"pruning_frequency must be at least 1, found {frequency!r}.")
    frequency = int(frequency)
    last = start + (end - start) // frequency * frequency
    timing: dict[str, Any] = {"pruning_frequency": frequency}
    if kind == "progressive" and (end - start <= element.get("progressive_steps", PROGRESSIVE_STEPS) or frequency == 1):
        timing["kind"] = "iterative"
    if last == start:
        # There is no gradient before the first step, so the only update is after it.
        start = last = max(start, 1) if needs_first_gradient(criterion) else start
        return timing | {"start_step": start, "end_step": last, "sparsity_decay_type": "one_shot"}
    schedule = register_quarter_cosine() if decay == "cos" else DECAYS.get(decay, "exponential")
    return timing | {"start_step": start, "end_step": last, "sparsity_decay_type": schedule}
