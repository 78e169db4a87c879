"""Translate keys of Intel Neural Compressor to keys of `PruningConfig`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur._wording import suggest_name
from secateur.compat._layer_settings import check_keys
from secateur.compat.schedules import register_quarter_cosine
from secateur.criteria import CRITERIA
from secateur.errors import ConfigError, UnknownNameError

__all__ = ["get_solver", "translate_settings"]

CRITERION_NAMES = ("snip_momentum", "snip", "magnitude", "gradient")
PROGRESSIVE = "_progressive"
SOLVERS = {"sparse_gpt": "sparsegpt"}
"""Pruning type → solver for one-shot pruning."""

PRUNING_TYPES = (
    *CRITERION_NAMES,
    *(name + PROGRESSIVE for name in CRITERION_NAMES),
    "pattern_lock",
    *SOLVERS,
)

UNSUPPORTED = {
    "retrain_free": "pruning channels from the gradients of masks, without training",
    "block_mask": "learning block masks",
}
"""Unsupported pruning type → its description."""

DECAYS = {"exp": "exponential", "cos": "quarter_cosine", "cube": "cube", "linear": "linear"}
"""Sparsity decay type → schedule."""

GROUPS = re.compile(r"([1-9]\d*):([1-9]\d*)")


def translate_settings(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the keys that can differ between layers.

    Args:
        values: All keys, including defaults.
        given: The keys that the user set.

    Raises:
        ConfigError: A value is invalid, out of bounds or not supported.
    """
    kind, criterion = _read_kind_and_criterion(values)
    pattern, removable = _convert_pattern(values["pattern"])
    settings: dict[str, Any] = {"kind": kind, "pattern": pattern, "reg_type": values["reg_type"]}
    if kind == "pattern_lock":
        return settings
    return {
        **settings,
        "target_sparsity": _read_target(values, given, removable),
        "criterion": criterion,
        "pruning_scope": _read_scope(values, given),
        "pruning_frequency": values["pruning_frequency"],
        "criterion_reduce_type": values["criterion_reduce_type"],
        "min_sparsity_ratio_per_op": values["min_sparsity_ratio_per_op"],
        "max_sparsity_ratio_per_op": values["max_sparsity_ratio_per_op"],
        "keep_zeros": values["resume_from_pruned_checkpoint"],
        "score_dtype": "bfloat16" if values["low_memory_usage"] else "float32",
        "reg_coeff": _read_coefficient(values),
        **_read_timing(values, criterion),
    }


def get_solver(pruning_type: str) -> str | None:
    """Return the solver of a pruning type; ``None`` if it prunes during training."""
    return SOLVERS.get(pruning_type)


def _read_kind_and_criterion(values: Mapping[str, Any]) -> tuple[str, str]:
    name = values["pruning_type"]
    if name in UNSUPPORTED:
        raise ConfigError(
            f"pruning_type {name!r} is not supported: {UNSUPPORTED[name]}. Prune during training, for example with "
            f"pruning_type='magnitude_progressive', or with calibration data and pruning_type='sparse_gpt'."
        )
    if name not in PRUNING_TYPES:
        raise UnknownNameError(
            f"Unknown pruning_type {name!r}.{suggest_name(str(name), PRUNING_TYPES)} Known: {', '.join(PRUNING_TYPES)}."
        )
    criterion = name.removesuffix(PROGRESSIVE)
    if criterion not in CRITERION_NAMES:
        criterion = "magnitude"
    elif values["criterion_type"] not in (None, criterion):
        raise ConfigError(
            f"criterion_type must match pruning_type={name!r}, found {values['criterion_type']!r}. Leave it out, or "
            f"name the criterion in pruning_type."
        )
    kind = "progressive" if name.endswith(PROGRESSIVE) else "iterative"
    return ("pattern_lock" if name == "pattern_lock" else kind), criterion


def _convert_pattern(pattern: Any) -> tuple[str, float | None]:
    """Convert a pattern so that N counts the kept weights; also return the share that N:M removes."""
    if not isinstance(pattern, str):
        raise ConfigError(f"pattern must be a string such as '4x1', found {pattern!r}.")
    if "mha" in pattern:
        raise ConfigError(f"pattern {pattern!r} is not supported: whole attention heads cannot be pruned yet.")
    match = GROUPS.fullmatch(pattern)
    if match is None:
        return pattern, None
    removed, group = int(match[1]), int(match[2])
    if removed >= group:
        raise ConfigError(
            f"pattern {pattern!r}: N must be less than M, because N of every M weights are removed. Use '2:4', for "
            f"example."
        )
    return f"{group - removed}:{group}", removed / group


def _read_target(values: Mapping[str, Any], given: Mapping[str, Any], removable: float | None) -> float | None:
    if removable is None:
        return values["target_sparsity"]  # type: ignore[no-any-return]
    if "target_sparsity" not in given:
        return None
    target: float = given["target_sparsity"]
    if target > removable:
        raise ConfigError(
            f"target_sparsity={target} cannot be reached with pattern {values['pattern']!r}, which removes N of every "
            f"M weights and so prunes at most {removable:.6g}. Lower the target or raise N."
        )
    return target


def _read_scope(values: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Read the scope; by default, solvers prune all layers to the same sparsity."""
    is_default = "pruning_scope" not in given
    return "local" if is_default and get_solver(values["pruning_type"]) is not None else values["pruning_scope"]


def _read_timing(values: Mapping[str, Any], criterion: str) -> dict[str, Any]:
    start, end, decay = values["start_step"], values["end_step"], values["sparsity_decay_type"]
    if decay not in DECAYS:
        raise UnknownNameError(
            f"Unknown sparsity_decay_type {decay!r}.{suggest_name(str(decay), DECAYS)} Known: {', '.join(DECAYS)}."
        )
    if isinstance(start, int) and isinstance(end, int) and end < start:
        raise ConfigError(f"end_step must not be less than start_step, found {end} < {start}.")
    if CRITERIA.find(criterion).needs_gradient and start == 0:
        # There is no gradient before the first step, so the first update is after it.
        start, end = 1, max(end, 1)
    schedule = register_quarter_cosine() if decay == "cos" else DECAYS[decay]
    return {"start_step": start, "end_step": end, "sparsity_decay_type": "one_shot" if start == end else schedule}


def _read_coefficient(values: Mapping[str, Any]) -> Any:
    parameters = values["parameters"] or {}
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"parameters must be a dictionary such as {{'reg_coeff': 0.1}}, found {parameters!r}.")
    check_keys(parameters, ("reg_coeff",), "parameters")
    coefficients = {value for value in (values["reg_coeff"], parameters.get("reg_coeff")) if value is not None}
    if len(coefficients) > 1:
        raise ConfigError(f"reg_coeff must be given once, found {sorted(coefficients)}. Leave one of them out.")
    return coefficients.pop() if coefficients else 0.0
