"""N pruned weights in every M consecutive ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur._array import namespace
from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    ProgressivePatternUtils,
    PytorchBasePattern,
    register_pattern,
)
from secateur.errors import ConfigError
from secateur.frameworks import get_framework

__all__ = ["PytorchPatternNInM"]

GROUPS = re.compile(r"([1-9]\d*):([1-9]\d*)")


@register_pattern("ptN:M")
class PytorchPatternNInM(PytorchBasePattern):
    """N of every M weights in torch layers; N counts the pruned ones. Its units are groups of M weights.

    Sparsity counts weights, so it is at most N / M.

    Attributes:
        N: Pruned weights in each group, at least 1.
        M: Weights in each group, more than N.

    Raises:
        ConfigError: The pattern does not have the form N:M, or N is not less than M.
    """

    def __init__(self, config: Any, modules: Mapping[str, Any]) -> None:
        super().__init__(config, modules)
        match = GROUPS.fullmatch(str(self.pattern).rpartition("_")[2])
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(f"pattern must have the form N:M with N < M, such as '2:4', found {self.pattern!r}.")
        self.N, self.M = int(match[1]), int(match[2])
        self.check_layer_validity()

    def core_pattern_name(self) -> str:
        """Return the pattern with the number of kept weights, as Secateur counts."""
        return f"{self.M - self.N}:{self.M}"

    def get_reduced_masks_from_data(self, data: Any, key: str) -> Any:
        """Find the groups that are not pruned: those with more than M - N numbers that are not zero.

        Args:
            data: A weight or a mask, in the weight's shape.
            key: Name of the layer.

        Returns:
            Booleans of shape (rows, columns / M).

        Raises:
            LayerError: The layer does not fit the pattern, or `data` has another shape.
        """
        framework = get_framework(self.framework)
        groups = framework.to_array(self.reshape_orig_to_pattern(data != 0, key))
        return framework.from_array(namespace(groups).count_nonzero(groups, axis=-1) > self.M - self.N, data)

    def reshape_orig_to_pattern(self, data: Any, key: str) -> Any:
        """Split a weight, or scores or a mask in its shape, into groups.

        Returns:
            In the shape (rows, columns / M, M).

        Raises:
            LayerError: The layer does not fit the pattern, or `data` has another shape.
        """
        blocks = super().reshape_orig_to_pattern(data, key)
        return blocks.reshape((blocks.shape[0], *blocks.shape[2:]))

    def get_least_ninm_mask_from_data(self, score: Any) -> Any:
        """Prune the N lowest of every M scores; ties go to the lower index.

        Args:
            score: Scores in the shape of a weight of torch.

        Returns:
            Booleans of shape (rows, columns), ``True`` = kept.
        """
        matrix = self._reshape_orig_to_2dims(score)
        order = namespace(matrix).argsort(matrix.reshape((-1, self.M)), axis=-1, descending=True, stable=True)
        ranks = namespace(matrix).argsort(order, axis=-1)
        return (ranks < self.M - self.N).reshape(tuple(matrix.shape))

    def reduce_scores(self, scores: Any) -> Any:
        """Reduce the scores of the N lowest weights of each group to one, for each layer whose mask may change.

        Args:
            scores: Layer → one score per weight, in the weight's shape.

        Returns:
            Layer → scores of shape (rows, columns / M), and layer → the mask of `get_least_ninm_mask_from_data`.
        """
        names = [name for name in scores if self._may_change(name)]
        least = {name: self.get_least_ninm_mask_from_data(scores[name]) for name in names}
        reduced = {}
        for name in names:
            matrix = self._reshape_orig_to_2dims(scores[name])
            groups = (matrix * ~least[name]).reshape((matrix.shape[0], -1, self.M))
            reduced[name] = self.reduce_tensor(groups, -1)
        return reduced, least

    def get_sparsity_ratio(self, pre_masks: Any, return_dict: Any = False) -> Any:
        """Return the share of pruned weights; see `PatternBase`. The counts in the dictionary are those of groups."""
        _, info = self.get_sparsity_ratio_each_layer(pre_masks)
        info = info._replace(sparsity_ratio=info.sparsity_ratio * self.N / self.M)
        return info._asdict() if return_dict else info.sparsity_ratio

    def get_pattern_lock_masks(self, modules: Any) -> dict[str, Any]:
        """Return the masks that a pattern lock keeps: of the weights that are zero.

        Args:
            modules: Layer name → layer.

        Returns:
            Layer → mask in the weight's shape.
        """
        framework = get_framework(self.framework)
        return {name: framework.read_weight(module) != 0 for name, module in modules.items()}

    _reshape_orig_to_2dims = staticmethod(ProgressivePatternUtils._reshape_orig_to_2dims)
    _reshape_2dims_to_orig = staticmethod(ProgressivePatternUtils._reshape_2dims_to_orig)
