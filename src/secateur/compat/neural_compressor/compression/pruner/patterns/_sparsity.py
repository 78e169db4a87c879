"""Count the pruned units of masks, with the methods of Intel Neural Compressor."""

from __future__ import annotations

from typing import Any, NamedTuple

from secateur._array import count_true
from secateur.frameworks import get_framework

__all__ = ["SparsityCounter", "SparsityInfo"]


class SparsityInfo(NamedTuple):
    """Number of pruned units, of all units, and the share of the first in the second, in [0, 1]."""

    zero_cnt: int
    total_cnt: int
    sparsity_ratio: float


class SparsityCounter:
    """The counting methods of a pattern. Masks are layer → booleans, or 0 and 1, in the weight's shape.

    Attributes:
        framework: ``"pytorch"`` or ``"keras"``.
        block: Whether masks have one number per unit.
        keep_mask_layers: Layer → whether its mask no longer changes.
        invalid_layers: Layers that do not fit the pattern. They are not counted.
        total_params_cnt: Number of units, after `update_residual_cnt`.
    """

    framework: str
    block: bool
    keep_mask_layers: dict[str, Any]
    invalid_layers: list[str]
    total_params_cnt: int

    def get_reduced_masks_from_data(self, data: Any, key: str) -> Any:
        """Return one boolean per unit of a layer; see `PatternBase`."""
        raise NotImplementedError(f"{type(self).__name__} must define get_reduced_masks_from_data, for {key!r}.")

    def get_sparsity_ratio(self, pre_masks: Any, return_dict: Any = False) -> Any:
        """Return the share of pruned units over all layers but the invalid ones, in [0, 1].

        Args:
            pre_masks: Layer → mask.
            return_dict: Whether to return a dictionary with ``sparsity_ratio``, ``zero_cnt`` and ``total_cnt``.
        """
        _, info = self.get_sparsity_ratio_each_layer(pre_masks)
        return info._asdict() if return_dict else info.sparsity_ratio

    def get_sparsity_ratio_progressive(self, pre_masks: Any) -> float:
        """Return the share of pruned weights over all layers but the invalid ones, in [0, 1]."""
        masks = {name: mask for name, mask in pre_masks.items() if name not in self.invalid_layers}
        return _add_up([self._count(mask) for mask in masks.values()]).sparsity_ratio

    def get_sparsity_ratio_each_layer(self, masks: Any) -> tuple[dict[str, SparsityInfo], SparsityInfo]:
        """Return layer → its pruned units, and those of all layers; invalid layers are left out.

        Args:
            masks: Layer → mask.
        """
        infos = {
            name: self._count(mask if self.block else self.get_reduced_masks_from_data(mask, name))
            for name, mask in masks.items()
            if name not in self.invalid_layers
        }
        return infos, _add_up(list(infos.values()))

    def update_residual_cnt(self, masks: Any, target_sparsity_ratio: float) -> int:
        """Return how many units to prune in the layers whose masks may still change, and set `total_params_cnt`.

        Args:
            masks: Layer → mask.
            target_sparsity_ratio: Share of all units to prune, in [0, 1]; their number is rounded down.
        """
        infos, total = self.get_sparsity_ratio_each_layer(masks)
        self.total_params_cnt = total.total_cnt
        frozen = sum(info.zero_cnt for name, info in infos.items() if self.keep_mask_layers.get(name))
        return int(total.total_cnt * target_sparsity_ratio) - frozen

    def adjust_ratio(
        self,
        masks: Any,
        layer_name: str,
        key_new_sparsity: SparsityInfo,
        max_sparsity_ratio: float,
        min_sparsity_ratio: float,
        final_target_sparsity_ratio: float,
    ) -> tuple[bool, float]:
        """Limit the proposed sparsity of a layer, so that the others can reach their minimum.

        The methods of this class do not need it: they select within the bounds.

        Args:
            masks: Layer → mask of the last update.
            layer_name: The layer.
            key_new_sparsity: The proposed sparsity.
            max_sparsity_ratio: Maximum share of its units, in [0, 1].
            min_sparsity_ratio: Minimum share of the units of each layer at the end, in [0, 1].
            final_target_sparsity_ratio: Share of all units at the end, in [0, 1].

        Returns:
            Whether the proposal must be changed, and the sparsity of the layer.
        """
        zeros, total, ratio = key_new_sparsity
        must_change = ratio > max_sparsity_ratio
        if must_change:
            zeros, ratio = int(total * max_sparsity_ratio), max_sparsity_ratio
        infos, whole = self.get_sparsity_ratio_each_layer(masks)
        infos[layer_name] = SparsityInfo(zeros, total, ratio)
        is_early = all(info.sparsity_ratio <= final_target_sparsity_ratio for info in infos.values())
        if ratio < min_sparsity_ratio or is_early:
            return must_change, ratio
        below = [info for info in infos.values() if info.sparsity_ratio < min_sparsity_ratio]
        pruned = sum(info.zero_cnt for info in infos.values())
        spare = int(whole.total_cnt * final_target_sparsity_ratio) - pruned
        required = int(sum(info.total_cnt for info in below) * min_sparsity_ratio) - sum(
            info.zero_cnt for info in below
        )
        if spare >= required:
            return must_change, ratio
        return True, (zeros - (required - spare)) / total

    def _count(self, mask: Any) -> SparsityInfo:
        flags = get_framework(self.framework).to_array(mask).reshape((-1,)) != 0
        total = int(flags.shape[0])
        zeros = total - count_true(flags)
        return SparsityInfo(zeros, total, zeros / total if total else 0.0)


def _add_up(infos: list[SparsityInfo]) -> SparsityInfo:
    zeros, total = sum(info.zero_cnt for info in infos), sum(info.total_cnt for info in infos)
    return SparsityInfo(zeros, total, zeros / total if total else 0.0)
