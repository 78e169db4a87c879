"""Import modifiers that prune in one shot with calibration data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.compat._imported_run import ImportedRun
from secateur.compat._layer_settings import check_keys
from secateur.compat.sparseml.layer_names import match_modules
from secateur.compat.sparseml.modifier import TOLERANCE, Modifier
from secateur.config import PruningConfig
from secateur.errors import ConfigError

__all__ = ["ONE_SHOT", "import_one_shot"]

ONE_SHOT = {"SparseGPTModifier": "sparsegpt", "WandaPruningModifier": "wanda"}
"""One-shot modifier → solver."""

ONE_SHOT_KEYS = (
    "sparsity",
    "mask_structure",
    "targets",
    "ignore",
    "sparsity_profile",
    "owl_m",
    "owl_lmbda",
    "block_size",
    "dampening_frac",
    # The following only affect how the result is computed.
    "sequential_targets",
    "sequential_update",
    "offload_hessians",
)

UNSUPPORTED = {
    "preserve_sparsity_mask": "keeping the zeros of a model in one-shot pruning",
    "quantize": "quantization",
}
"""Unsupported key of a one-shot modifier → its meaning."""

GROUPS = re.compile(r"(\d+):(\d+)")


def import_one_shot(modifier: Modifier, name: str) -> ImportedRun:
    """Import a one-shot modifier.

    Raises:
        ConfigError: A key is unknown or not supported, or a value is out of bounds.
    """
    values = modifier.values
    check_keys(values, (*ONE_SHOT_KEYS, *UNSUPPORTED), modifier.name)
    for key, meaning in UNSUPPORTED.items():
        if values.get(key):
            raise ConfigError(f"{modifier.name}: {key} is not supported: {meaning}. Leave it out.")
    names, types = match_modules(values.get("targets", "Linear"), modifier.describe_key("targets"))
    if names and types:
        raise ConfigError(
            f"{modifier.describe_key('targets')} must contain either names or types, found both: {values['targets']!r}."
        )
    excluded, dense_types = match_modules(values.get("ignore") or [], modifier.describe_key("ignore"))
    settings = modifier.check_settings(
        {
            **_get_pattern_and_target(values, modifier),
            "op_names": names,
            "excluded_op_names": excluded,
            "layer_types": dict.fromkeys(dense_types),
            **({"pruning_op_types": types} if types else {}),
        },
    )
    sizes = {"block_size": "columns", "dampening_frac": "damping"} if modifier.name == "SparseGPTModifier" else {}
    return ImportedRun(
        name=name,
        config=PruningConfig(**settings),
        solver=ONE_SHOT[modifier.name],
        solver_settings={setting: values[key] for key, setting in sizes.items() if values.get(key) is not None},
        **_read_allocation(values, modifier),
    )


def _get_pattern_and_target(values: Mapping[str, Any], modifier: Modifier) -> dict[str, Any]:
    """Read the pattern and the target; in a mask structure, N counts the removed weights."""
    sparsity, mask = values.get("sparsity"), values.get("mask_structure", "0:0")
    if mask in ("unstructured", "0:0"):
        if not isinstance(sparsity, int | float):
            raise ConfigError(
                f"{modifier.describe_key('sparsity')} must be a number, found {sparsity!r}. For different values per "
                f"layer, write rules in a PruningConfig."
            )
        return {"pattern": "1x1", "target_sparsity": sparsity}
    match = GROUPS.fullmatch(str(mask))
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise ConfigError(
            f"{modifier.describe_key('mask_structure')} must be N:M with N of every M removed, found {mask!r}."
        )
    removed, group = int(match[1]), int(match[2])
    if sparsity is not None and (not isinstance(sparsity, int | float) or abs(sparsity - removed / group) > TOLERANCE):
        raise ConfigError(
            f"{modifier.describe_key('sparsity')} must be {removed / group:g} for mask_structure={mask!r}, which "
            f"removes {removed} of {group}, found {sparsity!r}."
        )
    return {"pattern": f"{group - removed}:{group}"}


def _read_allocation(values: Mapping[str, Any], modifier: Modifier) -> dict[str, Any]:
    profile = values.get("sparsity_profile")
    if profile is None:
        return {}
    if str(profile).lower() != "owl":
        raise ConfigError(f"{modifier.describe_key('sparsity_profile')} must be 'owl', found {profile!r}.")
    settings = {"outlier": values.get("owl_m"), "spread": values.get("owl_lmbda")}
    given = {key: value for key, value in settings.items() if value is not None}
    return {"allocation": "owl", "allocation_settings": given}
