"""The base classes of patterns, with the methods of Intel Neural Compressor, on Secateur's selection."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from secateur._array import Array, count_true, namespace
from secateur._wording import format_list
from secateur.compat.neural_compressor._user_patterns import PATTERNS, register_pattern
from secateur.compat.neural_compressor.compression.pruner.patterns._progressive import ProgressivePatternUtils
from secateur.compat.neural_compressor.compression.pruner.patterns._sparsity import SparsityCounter, SparsityInfo
from secateur.errors import ConfigError, LayerError
from secateur.frameworks import WeightView, get_framework
from secateur.patterns import BasePattern as CorePattern
from secateur.patterns import get_pattern as get_core_pattern
from secateur.patterns.budget import Budget
from secateur.patterns.reduction import REDUCTIONS
from secateur.patterns.selection import Scores, find_cuts, keep_above, unify_precision
from secateur.patterns.tiling import BlockTiling

__all__ = [
    "PATTERNS",
    "BasePattern",
    "KerasBasePattern",
    "ProgressivePatternUtils",
    "PytorchBasePattern",
    "SparsityInfo",
    "register_pattern",
]

logger = logging.getLogger(__name__)

FROZEN = "its mask no longer changes"

LINEAR = ("Linear", "Dense")


class PatternBase(SparsityCounter):
    """Base class of patterns: override ``get_masks``, or the methods that it calls.

    All methods work as they are, for units that are single weights; `core_pattern_name` names other units. Masks are
    booleans, ``True`` = kept, in the weight's shape; masks of 0 and 1 are accepted too. Scores are not negative, and
    units with higher scores are kept. Both are tensors for torch layers, and NumPy arrays for Keras layers.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.

    Attributes:
        config: The element.
        modules: Layer name → layer.
        pattern: The specification, such as ``"tile_pattern_4x1"``.
        is_global: Whether all layers are ranked together, rather than separately.
        keep_mask_layers: Layer → whether its mask no longer changes, because it has reached a bound.
        invalid_layers: Layers that do not fit the pattern. They keep their masks.
        max_sparsity_ratio_per_op: Maximum share of its units that a layer loses, in [0, 1].
        min_sparsity_ratio_per_op: Minimum share of its units that a layer loses at the end, in [0, 1].
        target_sparsity_ratio: Share of the weights that are pruned at the end, in [0, 1].
        block: Whether masks have one number per unit, as for ``block_mask`` and ``retrain_free``.
        total_params_cnt: Number of units, after `update_residual_cnt`.
        block_masks: The masks that `register_block_masks` made.

    Examples:
        >>> import torch
        >>> from secateur.compat.neural_compressor.config import WeightPruningConfig
        >>> (element,) = WeightPruningConfig([{"pattern": "1x1"}]).complete_elements()
        >>> pattern = PytorchBasePattern(element, {"fc": torch.nn.Linear(2, 2)})
        >>> scores = {"fc": torch.tensor([[4.0, 1.0], [3.0, 2.0]])}
        >>> pattern.get_masks(scores, 0.5, {"fc": torch.ones(2, 2)})["fc"]
        tensor([[ True, False],
                [ True, False]])
    """

    framework = "pytorch"

    def __init__(self, config: Any, modules: Mapping[str, Any]) -> None:
        self.config = config
        self.modules = dict(modules or {})
        self.pattern = config["pattern"]
        self.is_global = config["pruning_scope"] == "global"
        self.keep_mask_layers: dict[str, Any] = {}
        self.invalid_layers: list[str] = []
        self.max_sparsity_ratio_per_op = config["max_sparsity_ratio_per_op"]
        self.min_sparsity_ratio_per_op = config["min_sparsity_ratio_per_op"]
        self.target_sparsity_ratio = config["target_sparsity"]
        self.block = any(name in str(config["pruning_type"]) for name in ("block", "retrain"))
        self.total_params_cnt = 0
        self.block_masks: dict[str, Any] = {}

    def core_pattern_name(self) -> str:
        """Return the name of Secateur's pattern with which the default methods select: single weights."""
        return "1x1"

    def make_core_pattern(self, layers: Iterable[str]) -> CorePattern:
        """Return Secateur's pattern for some of the layers, with their frozen masks and bounds.

        Args:
            layers: Names of layers.

        Raises:
            UnknownNameError: Secateur has no pattern with the name that `core_pattern_name` returns.
        """
        settings = {
            "pattern": self.core_pattern_name(),
            "criterion_reduce_type": self.config["criterion_reduce_type"],
            "target_sparsity": 0.0,
            "max_sparsity_ratio_per_op": self.max_sparsity_ratio_per_op,
        }
        modules = {layer: self.modules[layer] for layer in layers}
        core = get_core_pattern(settings, modules, self.framework)
        core.keep_mask_layers |= {layer: FROZEN for layer in core.views if self.keep_mask_layers.get(layer)}
        return core

    def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Select the weights to keep, by `get_masks_global` or `get_masks_local` as ``pruning_scope`` says.

        Args:
            scores: Layer → scores, one per weight in the weight's shape, or one per unit as `reduce_score` returns.
            target_sparsity_ratio: Share of the weights to prune, in [0, 1].
            pre_masks: Layer → the mask of the last update. Weights that it prunes stay pruned.

        Returns:
            Layer → mask, for the same layers. The masks in `pre_masks` are not modified.

        Raises:
            ScoreError: A score is ``nan``.
            LayerError: Scores or masks have another shape.
        """
        select = self.get_masks_global if self.is_global else self.get_masks_local
        return select(scores, target_sparsity_ratio, pre_masks)

    def get_masks_global(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Select the weights to keep, ranking the units of all layers together.

        Exactly the target's share of the units is pruned, rounded, within `min_sparsity_ratio_per_op` and
        `max_sparsity_ratio_per_op` of each layer. Layers in `keep_mask_layers` keep their masks and are counted; those
        in `invalid_layers` keep them and are not. See `get_masks` for the arguments.
        """
        core = self.make_core_pattern(name for name in scores if name not in self.invalid_layers)
        if not core.units:
            return {name: pre_masks[name] for name in scores}
        sparsity = min(target_sparsity_ratio, float(core.unit_share))
        core.budget = _make_budget(core, max(sparsity, self.target_sparsity_ratio), self.min_sparsity_ratio_per_op)
        alive = self._find_alive(core, pre_masks)
        kept = core.select({name: self._rank(core, name, scores[name], alive) for name in core.units}, sparsity)
        upper = core.budget.upper_bounds()
        for name, flags in kept.items():
            pruned = count_true(~flags) * core.budget.units[name] // flags.shape[0]
            if core.unit_share == 1 and upper[name] == pruned:
                self.keep_mask_layers[name] = True
        masks = {name: self._expand(core, name, flags, scores[name]) for name, flags in kept.items()}
        return {name: masks.get(name, pre_masks[name]) for name in scores}

    def get_masks_local(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Select the weights to keep, in each layer separately, by `get_masks_global`; see `get_masks`."""
        masks: dict[str, Any] = {}
        for name in scores:
            masks |= self.get_masks_global({name: scores[name]}, target_sparsity_ratio, {name: pre_masks[name]})
        return masks

    def get_single_mask_per_target_ratio(self, score: Any, exact_sparsity_ratio: float) -> Any:
        """Prune exactly ``int(exact_sparsity_ratio * size)`` of the scores of one layer; ties go to the lower index.

        Args:
            score: Scores in any shape.
            exact_sparsity_ratio: Share to prune, in [0, 1].

        Returns:
            The mask in the shape of the scores, of 0.0 and 1.0 if `block` is true.

        Raises:
            ScoreError: A score is ``nan``.
        """
        framework = get_framework(self.framework)
        flat = framework.to_array(score).reshape((-1,))
        layers = unify_precision({"": Scores("", lambda: iter([flat]), flat.shape[0])})
        cut = find_cuts(layers, {"": int(exact_sparsity_ratio * flat.shape[0])})[""]
        mask = keep_above(layers[""], cut).reshape(tuple(score.shape))
        return framework.from_array(_to_float(mask) if self.block else mask, score)

    def reduce_tensor(self, data: Any, dim: int) -> Any:
        """Reduce one axis as ``criterion_reduce_type`` says: ``"mean"``, ``"sum"``, ``"max"`` or ``"l2"``.

        Args:
            data: A tensor with at least one axis.
            dim: The axis, which disappears; negative numbers count from the last.

        Raises:
            UnknownNameError: There is no such reduction.
        """
        framework, axis = get_framework(self.framework), dim % len(data.shape)
        reduced = REDUCTIONS.find(self.config["criterion_reduce_type"])(framework.to_array(data), (axis,))
        shape = tuple(size for index, size in enumerate(data.shape) if index != axis)
        return framework.from_array(reduced.reshape(shape), data)

    def reduce_score(self, score: Any, key: str, force: Any = False) -> Any:  # noqa: ARG002
        """Reduce scores of weights to those that `get_masks` gets: by default, return them unchanged.

        Args:
            score: One score per weight of the layer, in the weight's shape.
            key: Name of the layer.
            force: Whether to also reduce the scores of layers in `keep_mask_layers` and `invalid_layers`.
        """
        return score

    def reduce_scores(self, scores: Any) -> Any:
        """Reduce the scores of each layer whose mask may change, by `reduce_score`.

        Args:
            scores: Layer → one score per weight, in the weight's shape.

        Returns:
            Layer → reduced scores, without the layers in `keep_mask_layers` and `invalid_layers`.
        """
        return {name: self.reduce_score(scores[name], name) for name in scores if self._may_change(name)}

    def reshape_orig_to_pattern(self, data: Any, key: str) -> Any:
        """Split a weight, or scores or a mask in its shape, into units.

        Args:
            data: In the weight's shape.
            key: Name of the layer.

        Returns:
            In the shape (rows / N, N, columns / M, M), where a unit has N rows and M columns. Rows are output channels;
            columns are kernel positions times input channels, of which the latter vary fastest.

        Raises:
            LayerError: The layer does not fit the pattern, or `data` has another shape.
        """
        framework, (view, tiling) = get_framework(self.framework), self._tile(key)
        blocks = tiling.split_blocks(view.to_canonical(framework.to_array(data)))
        rows, high, positions, depth, columns, wide = blocks.shape
        joined = namespace(blocks).permute_dims(blocks, (0, 1, 2, 4, 3, 5))
        return framework.from_array(joined.reshape((rows, high, positions * columns, depth * wide)), data)

    def reshape_reduced_to_orig(self, data: Any, key: str, orig_shape: Any) -> Any:
        """Expand one number per unit to one per weight.

        Args:
            data: In the shape (rows / N, columns / M); see `reshape_orig_to_pattern`.
            key: Name of the layer.
            orig_shape: The shape of the weight.

        Returns:
            In the weight's shape. Data of layers in `keep_mask_layers` and `invalid_layers` is returned unchanged, and
            so is data that has the weight's shape already.

        Raises:
            LayerError: The layer does not fit the pattern.
        """
        if not self._may_change(key) or tuple(data.shape) == tuple(orig_shape):
            return data
        framework, (view, tiling) = get_framework(self.framework), self._tile(key)
        stored = view.to_stored(tiling.expand(framework.to_array(data).reshape((-1,))))
        return framework.from_array(stored, data)

    def get_block_size_dict(self, data: Any = None) -> dict[str, tuple[int, int]]:
        """Return the rows and columns of a unit for each layer that fits the pattern.

        Args:
            data: Names of layers; all by default.
        """
        names = self.modules if data is None else data
        core = self.make_core_pattern(names)
        return {name: _measure(core.units[name].parts[name]) for name in names if name in core.views}

    def check_layer_validity(self) -> None:
        """Set `invalid_layers` to the layers that do not fit the pattern, with a warning that says why."""
        self.invalid_layers = []
        core = self.make_core_pattern(self.modules)
        self.invalid_layers = list(core.invalid_layers)
        for name, reason in core.invalid_layers.items():
            logger.warning("%s cannot be pruned with the pattern %r: %s", name, self.pattern, reason)

    def get_reduced_masks_from_data(self, data: Any, key: str) -> Any:
        """Find the units in which any number is not zero.

        Args:
            data: A weight or a mask, in the weight's shape.
            key: Name of the layer.

        Returns:
            Booleans of shape (rows / N, columns / M); see `reshape_orig_to_pattern`.

        Raises:
            LayerError: The layer does not fit the pattern, or `data` has another shape.
        """
        framework = get_framework(self.framework)
        blocks = framework.to_array(self.reshape_orig_to_pattern(data != 0, key))
        return framework.from_array(namespace(blocks).any(blocks, axis=(1, 3)), data)

    def get_pattern_lock_masks(self, modules: Any) -> dict[str, Any]:
        """Return the masks that a pattern lock keeps: zeros stay zero if their whole unit is zero.

        Args:
            modules: Layer name → layer.

        Returns:
            Layer → mask in the weight's shape, ``True`` everywhere for invalid layers.
        """
        framework = get_framework(self.framework)
        masks = {}
        for name, module in modules.items():
            weight = framework.read_weight(module)
            nonzero = weight != 0
            if name in self.invalid_layers:
                masks[name] = nonzero | ~nonzero
                continue
            view, tiling = self._tile(name)
            units = framework.to_array(self.get_reduced_masks_from_data(nonzero, name)).reshape((-1,))
            masks[name] = framework.from_array(view.to_stored(tiling.expand(units)), weight)
        return masks

    def update_progressive_masks(
        self, pre_masks: Any, cur_masks: Any, scores: Any, progressive_step: int, progressive_configs: Any
    ) -> dict[str, Any]:
        """Return masks between those of two updates.

        Args:
            pre_masks: Layer → mask of the last update.
            cur_masks: Layer → mask of the next update.
            scores: Layer → scores, one per weight or one per unit.
            progressive_step: Number of parts to prune, in [0, ``progressive_steps``].
            progressive_configs: Has ``progressive_steps``, the number of parts; ``progressive_type``, which is
                ``"scores"`` for the lowest scores first or ``"linear"`` for one row or column of each block after the
                other; and ``use_global``, whether scores are ranked over all layers.

        Returns:
            Layer → mask, with the dtype of the mask in `pre_masks`.

        Raises:
            ConfigError: The type is unknown, or blocks cannot be split into that many parts.
            ScoreError: A score is ``nan``.
        """
        utilities = ProgressivePatternUtils
        parts = (progressive_step, progressive_configs)
        kind = progressive_configs["progressive_type"]
        if kind == "linear":
            blocks = self.get_block_size_dict(pre_masks)
            return utilities.update_progressive_masks_linear_order(pre_masks, cur_masks, scores, *parts, blocks)
        if kind != "scores":
            raise ConfigError(f"progressive_type must be 'scores' or 'linear', found {kind!r}.")
        expanded = {
            name: self.reshape_reduced_to_orig(score, name, tuple(pre_masks[name].shape))
            for name, score in scores.items()
        }
        return utilities.update_progressive_masks_scores_order(pre_masks, cur_masks, expanded, *parts)

    def register_block_masks(self) -> dict[str, Any]:
        """Return one number per unit of each linear layer, 1.0 if any of its weights is not zero, and 0.0 if none is.

        They are also stored in `block_masks` until `remove_block_masks`. A warning names the layers that are not
        linear.

        Returns:
            Layer → float32 numbers of shape (rows / N, columns / M); see `reshape_orig_to_pattern`.
        """
        framework = get_framework(self.framework)
        modules = {name: module for name, module in self.modules.items() if name not in self.invalid_layers}
        linear = {name: module for name, module in modules.items() if type(module).__name__ in LINEAR}
        if others := [name for name in modules if name not in linear]:
            logger.warning("Only linear layers have block masks; without one: %s.", format_list(others, limit=5))
        self.block_masks = {}
        for name, module in linear.items():
            weight = framework.read_weight(module)
            kept = framework.to_array(self.get_reduced_masks_from_data(weight, name))
            self.block_masks[name] = framework.from_array(_to_float(kept), weight)
        return dict(self.block_masks)

    def remove_block_masks(self) -> None:
        """Discard the masks in `block_masks`."""
        self.block_masks = {}

    def _may_change(self, layer: str) -> bool:
        return layer not in self.invalid_layers and not self.keep_mask_layers.get(layer)

    def _tile(self, layer: str) -> tuple[WeightView, BlockTiling]:
        """Return the view of a layer and its blocks, numbered row by row."""
        core = self.make_core_pattern([layer])
        if layer not in core.views:
            raise LayerError(f"layer {layer!r}: {core.invalid_layers[layer]}")
        view, tiling = core.views[layer], core.units[layer].parts[layer]
        block = tiling.block if isinstance(tiling, BlockTiling) else (1, 1, getattr(tiling, "group", 1))
        return view, BlockTiling(view.canonical_shape, block)

    def _find_alive(self, core: CorePattern, masks: Any) -> dict[str, Array]:
        """Return which units the masks of the last update keep."""
        arrays = {name: core.framework.to_array(masks[name]) != 0 for name in core.units}
        if not self.block:
            return core.find_kept_units(arrays)
        return {name: array.reshape((-1,)) for name, array in arrays.items()}

    def _rank(self, core: CorePattern, name: str, score: Any, alive: Mapping[str, Array]) -> Scores:
        """Return the scores of a layer as a stream of one per unit."""
        view = core.views[name]
        if tuple(score.shape) == view.shape:
            score = self.reduce_score(score, name, force=True)
        array = core.framework.to_array(score)
        if tuple(array.shape) == view.shape:
            return core.stream(name, {name: view.to_canonical(array)}, alive)
        units, flat = core.units[name], array.reshape((-1,))
        if flat.shape[0] != units.count:
            raise LayerError(
                f"layer {name!r}: scores must have the weight's shape {view.shape}, or one number for each of "
                f"{units.count} units, found {tuple(score.shape)}."
            )
        return Scores(name, lambda: iter([flat]), units.count, alive[name])

    def _expand(self, core: CorePattern, name: str, flags: Array, score: Any) -> Any:
        """Return the mask of a layer from one boolean per unit."""
        if self.block:
            return core.framework.from_array(_to_float(flags).reshape(tuple(score.shape)), score)
        return core.framework.from_array(core.weight_masks({name: flags})[name], score)


class PytorchPatternBase(PatternBase):
    """Base class of patterns for torch layers."""

    def fasterprune(self, gpt: Any, blocksize: int = 128, percdamp: float = 0.01) -> None:
        """Prune a layer with SparseGPT, and adjust the kept weights.

        Args:
            gpt: Has ``module``, the layer, and ``H``, the Gram matrix of its inputs times any factor, of shape
                (columns, columns), in the order of the columns of ``weight.flatten(1)``. It is not modified.
            blocksize: Number of columns whose weights are selected together, at least 1.
            percdamp: Share of the mean diagonal element that is added to the diagonal, above 0.

        Raises:
            ConfigError: A value is out of range.
            LayerError: The layer does not fit the pattern, or ``H`` has another shape.

        Source:
            Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
            arXiv:2301.00774.
        """
        leaf = import_module("secateur.compat.neural_compressor._sparsegpt.pytorch")
        leaf.prune_layer(gpt, self.core_pattern_name(), self.target_sparsity_ratio, (blocksize, percdamp))


class KerasPatternBase(PatternBase):
    """Base class of patterns for Keras layers; scores and masks are NumPy arrays."""

    framework = "keras"


BasePattern = PatternBase
PytorchBasePattern = PytorchPatternBase
KerasBasePattern = KerasPatternBase


def _make_budget(core: CorePattern, target: float, minimum: float) -> Budget:
    """Return the budget of a pattern with a final target and a minimum per layer, as far as all bounds allow them."""
    budget, share = core.budget, float(core.unit_share)
    units = sum(budget.units.values())
    count = min(budget.count_total(min(target, share)), sum(budget.upper_bounds().values()))
    # Each layer rounds its minimum up, by less than a unit.
    most = max(0, count - len(budget.units))
    at_least = minimum if minimum * units <= most * share else most / units * share
    return replace(budget, target=count / units * share, at_least=at_least)


def _measure(tiling: Any) -> tuple[int, int]:
    if not isinstance(tiling, BlockTiling):
        return 1, 1
    return tiling.block[0], tiling.block[1] * tiling.block[2]


def _to_float(flags: Array) -> Array:
    xp = namespace(flags)
    return xp.astype(flags, xp.float32)
