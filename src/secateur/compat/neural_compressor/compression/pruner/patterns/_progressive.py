"""Masks between two updates, for patterns that are pruned in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._array import Array, count_true, namespace
from secateur.errors import ConfigError
from secateur.patterns.selection import Scores, find_global_cuts, keep_above, unify_precision

__all__ = ["ProgressivePatternUtils"]


class ProgressivePatternUtils:
    """Masks between those of two updates, of which the second prunes more.

    Masks are layer → booleans, or 0 and 1, in the weight's shape; they keep their dtype. Scores have the same shapes.
    Tensors of torch and NumPy arrays are supported.

    Examples:
        >>> import numpy as np
        >>> before, after = {"fc": np.array([1.0, 1.0, 1.0])}, {"fc": np.array([0.0, 0.0, 1.0])}
        >>> scores = {"fc": np.array([2.0, 1.0, 3.0])}
        >>> settings = {"progressive_steps": 2, "use_global": True}
        >>> ProgressivePatternUtils.update_progressive_masks_scores_order(
        ...     before, after, scores, 1, settings
        ... )
        {'fc': array([1., 0., 1.])}
    """

    @staticmethod
    def _reshape_orig_to_2dims(data: Any) -> Any:
        """Return a weight of torch, or a mask or scores in its shape, as a matrix; input channels vary fastest."""
        axes = len(data.shape)
        if axes <= 2:
            return data
        return namespace(data).permute_dims(data, (0, *range(2, axes), 1)).reshape((data.shape[0], -1))

    @staticmethod
    def _reshape_2dims_to_orig(data: Any, orig_shape: Any) -> Any:
        """Undo `_reshape_orig_to_2dims`."""
        shape = tuple(orig_shape)
        if len(shape) <= 2:
            return data.reshape(shape)
        split = data.reshape((shape[0], *shape[2:], shape[1]))
        return namespace(data).permute_dims(split, (0, len(shape) - 1, *range(1, len(shape) - 1)))

    @staticmethod
    def count_new_masked_cnts(new_added_masks: Mapping[str, Any]) -> int:
        """Return the number of zeros in masks, such as those of `update_new_added_masks`."""
        return sum(count_true(mask == 0) for mask in new_added_masks.values())

    @staticmethod
    def update_new_added_masks(pre_masks: Mapping[str, Any], cur_masks: Mapping[str, Any]) -> dict[str, Any]:
        """Return layer → 1.0 where both masks agree, and 0.0 where the second differs from the first."""
        return {name: _to_float(pre_masks[name] == cur_masks[name]) for name in pre_masks}

    @staticmethod
    def update_progressive_masks_global_scores(
        pre_masks: Mapping[str, Any],
        cur_masks: Mapping[str, Any],
        scores: Mapping[str, Any],
        progressive_step: int,
        progressive_configs: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Prune the scheduled weights with the lowest absolute scores, ranked over all layers.

        Args:
            pre_masks: Masks of the last update.
            cur_masks: Masks of the next update; the weights that only these prune are scheduled.
            scores: One score per weight.
            progressive_step: Number of parts to prune, in [0, ``progressive_steps``]. Exactly this share of the
                scheduled weights is pruned, rounded down; ties go to the lower index.
            progressive_configs: Has the number of parts, ``progressive_steps``.

        Raises:
            ScoreError: A score is ``nan``.
        """
        scheduled = {name: _flatten((pre_masks[name] != 0) & (cur_masks[name] == 0)) for name in scores}
        total = sum(count_true(flags) for flags in scheduled.values())
        count = total * progressive_step // progressive_configs["progressive_steps"]
        layers = unify_precision({name: _rank(name, scores[name], flags) for name, flags in scheduled.items()})
        others = sum(layer.count_pruned() for layer in layers.values())
        none, sizes = dict.fromkeys(layers, 0), {name: layer.count for name, layer in layers.items()}
        cuts = find_global_cuts(layers, others + count, none, sizes) if layers else {}
        masks = dict(pre_masks)
        for name, cut in cuts.items():
            mask = pre_masks[name]
            stays = (keep_above(layers[name], cut) | ~scheduled[name]).reshape(tuple(mask.shape))
            masks[name] = namespace(mask).astype((mask != 0) & stays, mask.dtype)
        return masks

    @staticmethod
    def update_progressive_masks_local_scores(
        pre_masks: Mapping[str, Any],
        cur_masks: Mapping[str, Any],
        scores: Mapping[str, Any],
        progressive_step: int,
        progressive_configs: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Prune the scheduled weights with the lowest absolute scores, ranked within each layer.

        The arguments are those of `update_progressive_masks_global_scores`.
        """
        masks: dict[str, Any] = {}
        for name in scores:
            before, after, score = ({name: part[name]} for part in (pre_masks, cur_masks, scores))
            masks |= ProgressivePatternUtils.update_progressive_masks_global_scores(
                before, after, score, progressive_step, progressive_configs
            )
        return masks

    @staticmethod
    def update_progressive_masks_scores_order(
        pre_masks: Mapping[str, Any],
        cur_masks: Mapping[str, Any],
        scores: Mapping[str, Any],
        progressive_step: int,
        progressive_configs: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Rank scheduled weights over all layers if ``progressive_configs["use_global"]`` is true, else per layer.

        The arguments are those of `update_progressive_masks_global_scores`.
        """
        utilities = ProgressivePatternUtils
        is_global = progressive_configs["use_global"]
        update = (
            utilities.update_progressive_masks_global_scores
            if is_global
            else utilities.update_progressive_masks_local_scores
        )
        return update(pre_masks, cur_masks, scores, progressive_step, progressive_configs)

    @staticmethod
    def update_progressive_masks_linear_order(
        pre_masks: Mapping[str, Any],
        cur_masks: Mapping[str, Any],
        scores: Mapping[str, Any],  # noqa: ARG004 - part of the interface
        progressive_step: int,
        progressive_configs: Mapping[str, Any],
        block_sizes: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Prune the scheduled blocks row by row, or column by column if they are wider than high.

        Args:
            pre_masks: Masks of the last update.
            cur_masks: Masks of the next update.
            scores: Not used.
            progressive_step: Number of parts to prune, in [0, ``progressive_steps``].
            progressive_configs: Has the number of parts, ``progressive_steps``.
            block_sizes: Layer → rows and columns of a block, of which the larger is a multiple of the number of parts.

        Raises:
            ConfigError: A block cannot be split into that many parts of equal size.
        """
        masks = {}
        for name, mask in pre_masks.items():
            before, after = (
                ProgressivePatternUtils._reshape_orig_to_2dims(part[name]) for part in (pre_masks, cur_masks)
            )
            due = _find_due(before, block_sizes[name], progressive_step, progressive_configs["progressive_steps"])
            kept = (before != 0) & ((after != 0) | ~due)
            stored = ProgressivePatternUtils._reshape_2dims_to_orig(kept, mask.shape)
            masks[name] = namespace(mask).astype(stored, mask.dtype)
        return masks


def _find_due(matrix: Array, block: Any, step: int, steps: int) -> Array:
    """Return whether each row or column belongs to the first parts of its block, to broadcast to the matrix."""
    axis = 0 if block[0] >= block[1] else 1
    length = block[axis]
    if length % steps:
        raise ConfigError(f"the larger side of a block must be a multiple of {steps} parts, found {tuple(block)}.")
    xp = namespace(matrix)
    due = xp.arange(matrix.shape[axis]) % length < length // steps * step
    shape = (-1, 1) if axis == 0 else (1, -1)
    return xp.asarray(due.reshape(shape), device=getattr(matrix, "device", None))


def _rank(name: str, score: Any, flags: Array) -> Scores:
    xp, values = namespace(score), _flatten(score)
    chunk = abs(xp.astype(values, xp.float64 if values.dtype == xp.float64 else xp.float32))
    return Scores(name, lambda: iter([chunk]), chunk.shape[0], flags)


def _flatten(data: Any) -> Array:
    return (data.detach() if hasattr(data, "detach") else data).reshape((-1,))


def _to_float(flags: Array) -> Array:
    xp = namespace(flags)
    return xp.astype(flags, xp.float32)
