"""Import configurations of torchao's sparsifiers.

Each function takes the arguments of the class or function of the same name in torchao and returns an `ImportedRun`,
whose ``prune`` method replaces ``prepare``, ``step`` and ``squash_mask``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from secateur._wording import format_list
from secateur.compat._imported_run import ImportedRun
from secateur.compat._layer_settings import LayerSettings, check_keys, merge_settings
from secateur.errors import ConfigError

__all__ = ["block_sparse_weight", "semi_sparse_weight", "wanda_sparsifier", "weight_norm_sparsifier"]

TensorConfig = Sequence[Mapping[str, Any]] | None
"""One mapping per tensor: its ``tensor_fqn`` and the settings that differ; ``None``: all linear layers."""

Settings = Callable[[Mapping[str, Any], str], dict[str, Any]]
"""A function that translates the settings of a tensor; its second argument is the location for error messages."""

NORMS = {1: "sum", 2: "l2"}
"""Norm of blocks → ``criterion_reduce_type``."""


def weight_norm_sparsifier(
    config: TensorConfig = None,
    *,
    sparsity_level: float = 0.5,
    sparse_block_shape: tuple[int, int] = (1, 4),
    zeros_per_block: int | None = None,
    norm: int | None = None,
) -> ImportedRun:
    """Import ``WeightNormSparsifier``: prune the smallest weights of the blocks with the smallest norm.

    Args:
        config: One mapping per tensor with its ``tensor_fqn``, such as ``"fc.weight"``, and optionally the other
            arguments, for that tensor only. ``None``: all linear layers.
        sparsity_level: Share of blocks to prune.
        sparse_block_shape: Output channels × input channels of a block.
        zeros_per_block: Number of zeros in a pruned block; by default, all. With fewer, blocks must have one row: this
            is an ``N:M`` pattern, and the groups that lose the least are pruned first.
        norm: Norm that ranks blocks: 1 or 2; by default, 2.

    Raises:
        ConfigError: A key is unknown, a value is out of bounds, or a setting has no counterpart.

    Examples:
        >>> run = weight_norm_sparsifier(
        ...     sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
        ... )
        >>> run.config.pattern
        '2:4'
    """
    if norm not in (None, *NORMS):
        raise ConfigError(f"norm must be 1 or 2, found {norm!r}. For other norms, register a criterion.")
    defaults = {
        "sparsity_level": sparsity_level,
        "sparse_block_shape": sparse_block_shape,
        "zeros_per_block": zeros_per_block,
    }
    common = {"criterion_reduce_type": NORMS[norm or 2]}
    return _build_run(
        config, defaults, lambda values, where: common | _translate_blocks(values, where), solver="magnitude"
    )


def wanda_sparsifier(
    config: TensorConfig = None, *, sparsity_level: float = 0.5, semi_structured_block_size: int | None = None
) -> ImportedRun:
    """Import ``WandaSparsifier``: rank weights by their magnitude times the norm of their input.

    Args:
        config: See `weight_norm_sparsifier`.
        sparsity_level: Share of weights to prune.
        semi_structured_block_size: Group size M: half of every M consecutive weights are pruned, and
            `sparsity_level` has no effect.

    Raises:
        ConfigError: A key is unknown or a value is out of bounds.

    Examples:
        >>> run = wanda_sparsifier(semi_structured_block_size=4)
        >>> run.solver, run.config.pattern
        ('wanda', '2:4')
    """
    defaults = {"sparsity_level": sparsity_level, "semi_structured_block_size": semi_structured_block_size}
    return _build_run(config, defaults, _translate_half_of_groups, solver="wanda")


def semi_sparse_weight() -> ImportedRun:
    """Import the pattern of ``semi_sparse_weight`` (``SemiSparseWeightConfig``): 2:4 in all linear layers.

    torchao packed weights that already had the pattern; this run prunes weights to it by magnitude.

    Examples:
        >>> semi_sparse_weight().config.pattern
        '2:4'
    """
    return _build_run(None, {}, lambda _values, _where: {"pattern": "2:4"}, solver="magnitude")


def block_sparse_weight(*, sparsity_level: float, blocksize: int = 64) -> ImportedRun:
    """Import the pattern of ``BlockSparseWeightConfig``: square blocks in all linear layers.

    torchao packed weights that already had the pattern; this run prunes weights to it by magnitude.

    Args:
        sparsity_level: Share of blocks to prune. torchao has no such argument.
        blocksize: Number of rows and of columns of a block.

    Raises:
        ConfigError: A value is out of bounds.

    Examples:
        >>> block_sparse_weight(sparsity_level=0.9, blocksize=32).config.pattern
        '32x32'
    """
    values = {"sparsity_level": sparsity_level, "sparse_block_shape": (blocksize, blocksize), "zeros_per_block": None}
    return _build_run(None, values, _translate_blocks, solver="magnitude")


def _build_run(config: TensorConfig, defaults: Mapping[str, Any], settings: Settings, *, solver: str) -> ImportedRun:
    """Build a run from the settings of each tensor; tensors with equal settings are ranked together."""
    if config is None:
        part = LayerSettings(names=(".*",), settings={**settings(defaults, "config"), "pruning_scope": "local"})
        return ImportedRun(config=merge_settings([part], pruning_op_types=("Linear",)), solver=solver)
    if isinstance(config, Mapping | str) or not config or not all(isinstance(entry, Mapping) for entry in config):
        raise ConfigError(f"config must be a list of dictionaries with 'tensor_fqn', or None, found {config!r}.")
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for index, entry in enumerate(config):
        where = f"config[{index}]"
        check_keys(entry, ("tensor_fqn", *defaults), where)
        layer_settings = {**settings({**defaults, **entry}, where), "pruning_scope": "local"}
        names = next((names for known, names in groups if known == layer_settings), None)
        if names is None:
            groups.append((layer_settings, names := []))
        names.append(_get_layer_name(entry.get("tensor_fqn"), where))
    _check_unique([name for _, names in groups for name in names])
    parts = [LayerSettings(names=tuple(map(re.escape, names)), settings=values) for values, names in groups]
    return ImportedRun(config=merge_settings(parts), solver=solver)


def _get_layer_name(tensor: Any, where: str) -> str:
    name = tensor.removeprefix(".") if isinstance(tensor, str) else ""
    if not name.endswith(".weight"):
        raise ConfigError(
            f"{where}: tensor_fqn must be the full name of a layer's weight, such as 'fc.weight', found {tensor!r}. "
            f"Other tensors are not pruned here."
        )
    return name.removesuffix(".weight")


def _check_unique(names: Sequence[str]) -> None:
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(
            f"Each tensor_fqn must occur only once, found {format_list(map(repr, repeated))} more than once."
        )


def _translate_blocks(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    level = _check_share(values["sparsity_level"], where)
    rows, cols = _check_shape(values["sparse_block_shape"], where)
    size, zeros = rows * cols, values["zeros_per_block"]
    if zeros is None or zeros == size:
        return {"pattern": f"{rows}x{cols}", "target_sparsity": level}
    if not isinstance(zeros, int) or not 0 < zeros < size:
        raise ConfigError(
            f"{where}: zeros_per_block must be between 1 and {size}, the size of a block, found {zeros!r}."
        )
    if rows > 1:
        raise ConfigError(
            f"{where}: zeros_per_block={zeros} has no counterpart in blocks of {rows} rows: N:M patterns group "
            f"input channels. Use sparse_block_shape=(1, {cols}), or leave out zeros_per_block."
        )
    return _build_group_settings(zeros, cols, level)


def _translate_half_of_groups(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    level, group = _check_share(values["sparsity_level"], where), values["semi_structured_block_size"]
    if group is None:
        return {"pattern": "1x1", "target_sparsity": level}
    if not isinstance(group, int) or group < 2:
        raise ConfigError(f"{where}: semi_structured_block_size must be an integer of at least 2, found {group!r}.")
    return _build_group_settings(group // 2, group, 1.0)


def _build_group_settings(zeros: int, group: int, level: float) -> dict[str, Any]:
    """Build settings that prune `zeros` weights of each group in a share of the groups."""
    share = Fraction(zeros, group)
    return {
        "pattern": f"{group - zeros}:{group}",
        "target_sparsity": None if level == 1 else float(share * Fraction(repr(level))),
    }


def _check_share(level: Any, where: str) -> float:
    if not isinstance(level, int | float) or not 0 <= level <= 1:
        raise ConfigError(f"{where}: sparsity_level must be in [0, 1], found {level!r}.")
    return float(level)


def _check_shape(shape: Any, where: str) -> tuple[int, int]:
    if (
        not isinstance(shape, Sequence)
        or len(shape) != 2
        or not all(isinstance(size, int) and size > 0 for size in shape)
    ):
        raise ConfigError(f"{where}: sparse_block_shape must be two positive integers, found {shape!r}.")
    return shape[0], shape[1]
