"""Whole attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._array import Array
from secateur.compat.neural_compressor.compression.pruner.patterns.base import PytorchBasePattern, register_pattern
from secateur.frameworks import get_framework
from secateur.patterns.selection import Scores, find_global_cuts, keep_above, unify_precision

__all__ = ["PatternMHA"]


@register_pattern("ptMHA")
class PatternMHA(PytorchBasePattern):
    """Whole attention heads: scores and masks have one number per head.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Not used.

    Examples:
        >>> import torch
        >>> from secateur.compat.neural_compressor.config import WeightPruningConfig
        >>> (element,) = WeightPruningConfig([{"pattern": "mha"}]).complete_elements()
        >>> scores = {"attention": torch.tensor([[3.0], [1.0], [2.0], [4.0]])}
        >>> PatternMHA(element).get_masks(scores, 0.5, {"attention": torch.ones(1, 4)})
        {'attention': tensor([[ True, False, False,  True]])}
    """

    def __init__(self, config: Any, modules: Mapping[str, Any] | None = None) -> None:
        super().__init__(config, modules or {})
        self.block = True

    def get_masks_global(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        """Select the heads to keep, ranking those of all attention layers together.

        Args:
            scores: Attention layer → scores of shape (heads, 1).
            target_sparsity_ratio: Share of the heads to prune, in [0, 1]; their number is rounded.
            pre_masks: Attention layer → the mask of the last update, of shape (1, heads). Heads that it prunes stay
                pruned.

        Returns:
            Attention layer → booleans of shape (1, heads), ``True`` = kept.

        Raises:
            ScoreError: A score is ``nan``.
        """
        framework = get_framework(self.framework)
        streams = {
            name: _stream(name, framework.to_array(score), framework.to_array(pre_masks[name]))
            for name, score in scores.items()
        }
        layers, sizes = unify_precision(streams), {name: layer.count for name, layer in streams.items()}
        count = round(target_sparsity_ratio * sum(sizes.values()))
        cuts = find_global_cuts(layers, count, dict.fromkeys(sizes, 0), sizes)
        return {
            name: framework.from_array(keep_above(layers[name], cut).reshape((1, -1)), scores[name])
            for name, cut in cuts.items()
        }


def _stream(name: str, scores: Array, mask: Array) -> Scores:
    flat = scores.reshape((-1,))
    return Scores(name, lambda: iter([flat]), flat.shape[0], mask.reshape((-1,)) != 0)
