"""The base classes of patterns, with the methods of Intel Neural Compressor, on Secateur's selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from secateur._array import count_true
from secateur.compat.neural_compressor._written_patterns import PATTERNS, register_pattern
from secateur.frameworks import get_framework
from secateur.patterns import BasePattern as CorePattern
from secateur.patterns import get_pattern as get_core_pattern
from secateur.patterns.reduction import REDUCTIONS
from secateur.patterns.selection import Scores, find_cuts, keep_above, unify_precision

__all__ = [
    "PATTERNS",
    "BasePattern",
    "KerasBasePattern",
    "PytorchBasePattern",
    "SparsityInfo",
    "register_pattern",
]


class SparsityInfo(NamedTuple):
    """Number of pruned units, of all units, and the share of the first in the second."""

    zero_cnt: int
    total_cnt: int
    sparsity_ratio: float


class PatternBase:
    """Base class of patterns: override ``get_masks``, or the methods that it calls.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.
    """

    framework = "pytorch"

    def __init__(self, config: Any, modules: Mapping[str, Any]) -> None:
        self.config = config
        self.modules = dict(modules)
        self.pattern = config["pattern"]
        self.is_global = config["pruning_scope"] == "global"
        self.keep_mask_layers: dict[str, Any] = {}
        self.invalid_layers: list[str] = []
        self.max_sparsity_ratio_per_op = config["max_sparsity_ratio_per_op"]
        self.min_sparsity_ratio_per_op = config["min_sparsity_ratio_per_op"]
        self.target_sparsity_ratio = config["target_sparsity"]
        self.block = False
        self.total_params_cnt = 0

    def core_pattern_name(self) -> str:
        """Return the name of Secateur's pattern with which the default methods select: single weights."""
        return "1x1"

    def make_core_pattern(self, layers: Any) -> CorePattern:
        """Return Secateur's pattern for some of the layers."""
        maximum = self.max_sparsity_ratio_per_op
        settings = {
            "pattern": self.core_pattern_name(),
            "pruning_scope": "global" if self.is_global else "local",
            "criterion_reduce_type": self.config["criterion_reduce_type"],
            "target_sparsity": 0.0,
            "max_sparsity_ratio_per_op": maximum,
        }
        return get_core_pattern(settings, {layer: self.modules[layer] for layer in layers}, self.framework)

    def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Return one mask per layer, ``True`` = kept, from one score per weight and the masks of the last update."""
        select = self.get_masks_global if self.is_global else self.get_masks_local
        return select(scores, target_sparsity_ratio, pre_masks)

    def get_masks_global(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Rank the units of all layers together."""
        core = self.make_core_pattern(scores)
        most = sum(core.budget.upper_bounds().values()) / max(1, sum(core.budget.units.values()))
        sparsity = min(target_sparsity_ratio, most * float(core.unit_share))
        masks = core.masks(scores, sparsity, {name: pre_masks[name] != 0 for name in scores})
        return {name: masks.get(name, pre_masks[name]) for name in scores}

    def get_masks_local(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Rank the units of each layer separately."""
        masks: dict[str, Any] = {}
        for name in scores:
            masks |= self.get_masks_global({name: scores[name]}, target_sparsity_ratio, {name: pre_masks[name]})
        return masks

    def reduce_tensor(self, data: Any, dim: int) -> Any:
        """Reduce an axis as ``criterion_reduce_type`` says."""
        framework, axis = get_framework(self.framework), dim % len(data.shape)
        reduced = REDUCTIONS.find(self.config["criterion_reduce_type"])(framework.to_array(data), (axis,))
        shape = tuple(size for index, size in enumerate(data.shape) if index != axis)
        return framework.from_array(reduced.reshape(shape), data)

    def get_single_mask_per_target_ratio(self, score: Any, exact_sparsity_ratio: float) -> Any:
        """Return the mask of one layer in which exactly this share of the scores, rounded down, is pruned."""
        framework = get_framework(self.framework)
        flat = framework.to_array(score).reshape((-1,))
        layers = unify_precision({"": Scores("", lambda: iter([flat]), flat.shape[0])})
        cut = find_cuts(layers, {"": int(exact_sparsity_ratio * flat.shape[0])})[""]
        return framework.from_array(keep_above(layers[""], cut).reshape(tuple(score.shape)), score)

    def get_block_size_dict(self, data: Any = None) -> dict[str, tuple[int, int]]:
        """Return the block of each layer, in output and input channels."""
        return dict.fromkeys(self.modules if data is None else data, (1, 1))

    def check_layer_validity(self) -> None:
        """Add layers that do not fit the pattern to ``invalid_layers``."""
        self.invalid_layers = list(self.make_core_pattern(self.modules).invalid_layers)

    def get_reduced_masks_from_data(self, data: Any, key: str) -> Any:
        """Return one boolean per unit, ``True`` if any weight of the unit is not zero."""
        core = self.make_core_pattern([key])
        return core.framework.from_array(core.find_kept_units({key: data != 0})[key], data)

    def get_sparsity_ratio(self, pre_masks: Any, return_dict: Any = False) -> Any:
        """Return the share of pruned units, with ``return_dict=True`` also their number and that of all."""
        _, info = self.get_sparsity_ratio_each_layer(pre_masks)
        return info._asdict() if return_dict else info.sparsity_ratio

    def get_sparsity_ratio_progressive(self, pre_masks: Any) -> float:
        """Return the share of pruned weights."""
        masks = {name: mask for name, mask in pre_masks.items() if name not in self.invalid_layers}
        return self._summarize([self._count(mask) for mask in masks.values()]).sparsity_ratio

    def get_sparsity_ratio_each_layer(self, masks: Any) -> tuple[dict[str, SparsityInfo], SparsityInfo]:
        """Return the sparsity of each layer, and of all."""
        infos = {
            name: self._count(self.get_reduced_masks_from_data(mask, name))
            for name, mask in masks.items()
            if name not in self.invalid_layers
        }
        return infos, self._summarize(list(infos.values()))

    def update_residual_cnt(self, masks: Any, target_sparsity_ratio: float) -> int:
        """Return how many units to prune in the layers whose masks still change."""
        infos, total = self.get_sparsity_ratio_each_layer(masks)
        self.total_params_cnt = total.total_cnt
        frozen = sum(info.zero_cnt for name, info in infos.items() if self.keep_mask_layers.get(name))
        return int(total.total_cnt * target_sparsity_ratio) - frozen

    def get_pattern_lock_masks(self, modules: Any) -> dict[str, Any]:
        """Return masks that keep the weights that are not zero."""
        framework = get_framework(self.framework)
        masks = {}
        for name, module in modules.items():
            weight = framework.read_weight(module)
            masks[name] = weight != 0
        return masks

    def _count(self, mask: Any) -> SparsityInfo:
        flags = get_framework(self.framework).to_array(mask).reshape((-1,)) != 0
        total = int(flags.shape[0])
        zeros = total - count_true(flags)
        return SparsityInfo(zeros, total, zeros / total if total else 0.0)

    def _summarize(self, infos: list[SparsityInfo]) -> SparsityInfo:
        zeros, total = sum(info.zero_cnt for info in infos), sum(info.total_cnt for info in infos)
        return SparsityInfo(zeros, total, zeros / total if total else 0.0)


class PytorchPatternBase(PatternBase):
    """Base class of patterns for torch layers."""


class KerasPatternBase(PatternBase):
    """Base class of patterns for Keras layers; scores and masks are NumPy arrays."""

    framework = "keras"


BasePattern = PatternBase
PytorchBasePattern = PytorchPatternBase
KerasBasePattern = KerasPatternBase
