"""Blocks of N output channels and M input channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur._array import namespace, repeat
from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    KerasBasePattern,
    PatternBase,
    ProgressivePatternUtils,
    PytorchBasePattern,
    register_pattern,
)
from secateur.errors import ConfigError
from secateur.frameworks import get_framework

__all__ = ["KerasPatternNxM", "PytorchPatternNxM"]

BLOCKS = re.compile(r"(?P<rows>[1-9]\d*|channel)x(?P<columns>[1-9]\d*|channel)")


class BlockMethods(PatternBase):
    """The methods of patterns with blocks; see `PatternBase`.

    Attributes:
        N: Output channels of a block as in the specification, such as ``"4"`` or ``"channel"``.
        M: Input channels of a block as in the specification.
        block_size: Layer that fits the pattern → rows and columns of a block.

    Raises:
        ConfigError: The pattern does not have the form NxM.
    """

    def __init__(self, config: Any, modules: Mapping[str, Any]) -> None:
        super().__init__(config, modules)
        self.N, self.M = self.core_pattern_name().split("x")
        self.block_size = self.get_block_size_dict()
        self.check_layer_validity()

    def core_pattern_name(self) -> str:
        """Return the pattern without its prefix.

        Raises:
            ConfigError: It does not have the form NxM.
        """
        name = str(self.pattern).rpartition("_")[2]
        if BLOCKS.fullmatch(name) is None:
            raise ConfigError(f"pattern must have the form NxM, such as '4x1' or '1xchannel', found {self.pattern!r}.")
        return name

    def reduce_score(self, score: Any, key: str, force: Any = False) -> Any:
        """Reduce the scores of each block to one, by `reduce_tensor`.

        Args:
            score: One score per weight of the layer, in the weight's shape.
            key: Name of the layer.
            force: Whether to also reduce the scores of layers in `keep_mask_layers`.

        Returns:
            Scores of shape (rows / N, columns / M). Those of blocks of one weight, and of invalid layers, are returned
            unchanged.

        Raises:
            LayerError: The scores do not have the shape of the weight.
        """
        frozen = bool(self.keep_mask_layers.get(key)) and not force
        if frozen or key in self.invalid_layers or self.block_size.get(key) == (1, 1):
            return score
        blocks = self.reshape_orig_to_pattern(score, key)
        return self.reduce_tensor(self.reduce_tensor(blocks, -1), 1)

    def get_mask_per_threshold(self, score: Any, threshold: float, block_size: Any) -> Any:
        """Keep the blocks whose score is above a threshold.

        Args:
            score: Scores of shape (rows / N, columns / M).
            threshold: The highest score that is pruned.
            block_size: Rows and columns of a block.

        Returns:
            Booleans of shape (rows, columns); 0.0 and 1.0 in the shape of the scores if `block` is true.
        """
        framework = get_framework(self.framework)
        kept = framework.to_array(score) > float(threshold)
        if self.block:
            return framework.from_array(namespace(kept).astype(kept, namespace(kept).float32), score)
        expanded = repeat(repeat(kept, block_size[0], axis=0), block_size[1], axis=1)
        return framework.from_array(expanded, score)

    def mask_block_weights(self, masks: Mapping[str, Any]) -> None:
        """Multiply weights by masks with one number per unit, in place.

        Args:
            masks: Layer → numbers of shape (rows / N, columns / M), such as those of `register_block_masks`.
        """
        framework = get_framework(self.framework)
        for name, mask in masks.items():
            view, tiling = self._tile(name)
            factors = view.to_stored(tiling.expand(framework.to_array(mask).reshape((-1,))))
            self._scale_weight(self.modules[name], factors)

    def _scale_weight(self, module: Any, factors: Any) -> None:
        weight = get_framework(self.framework).read_weight(module)
        weight *= get_framework(self.framework).from_array(factors, weight)

    _reshape_orig_to_2dims = staticmethod(ProgressivePatternUtils._reshape_orig_to_2dims)
    _reshape_2dims_to_orig = staticmethod(ProgressivePatternUtils._reshape_2dims_to_orig)


@register_pattern("ptNxM")
class PytorchPatternNxM(BlockMethods, PytorchBasePattern):
    """Blocks in torch layers."""


@register_pattern("kerasNxM")
class KerasPatternNxM(BlockMethods, KerasBasePattern):
    """Blocks in Keras layers."""

    def _scale_weight(self, module: Any, factors: Any) -> None:
        module.kernel.assign(get_framework(self.framework).read_weight(module) * factors)
