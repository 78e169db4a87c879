"""Run users' pattern classes for attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur._array import Array, concat_chunks, count_true, namespace
from secateur.compat.neural_compressor._user_calls import PATTERNS, SPECIFICATION, PatternCaller
from secateur.config import PruningConfig
from secateur.errors import ConfigError
from secateur.frameworks import WeightView
from secateur.patterns import HeadsPattern
from secateur.patterns.selection import Scores, unify_precision

__all__ = ["UserHeadsPattern"]


class UserHeadsPattern(PatternCaller, HeadsPattern):
    """Select attention heads with ``get_masks`` of a user's class for Intel Neural Compressor.

    The class receives the scores of the heads of each attention layer, of shape (heads, 1), and the masks of the last
    update, of shape (1, heads), both as copies. It returns masks of shape (1, heads).

    Raises:
        ConfigError: The class cannot be created, or returns masks that are not valid.
    """

    @classmethod
    def serves(cls, specification: str) -> bool:
        """Whether the specification names a registered class for heads, such as ``ptMHA`` or ``ptMHA(mha)``."""
        match = SPECIFICATION.fullmatch(specification)
        return match is not None and match["type"] in PATTERNS and match["type"].endswith("MHA")

    def __init__(self, config: PruningConfig | Mapping[str, Any], modules: Mapping[str, Any]) -> None:
        super().__init__(config, modules)
        self.tensors, self.user_pattern = self.framework, None
        if self.views and not any(isinstance(module, WeightView) for module in self.modules.values()):
            self.user_pattern = self.create_user_pattern({name: self.modules[name] for name in self.views})

    def select(self, scores: Mapping[str, Scores], sparsity: float | None = None) -> dict[str, Array]:
        """Select the heads that ``get_masks`` keeps; see `BasePattern.select`."""
        sparsity, scores = self._check_sparsity(sparsity), unify_precision(scores)
        tensors, previous = {}, {}
        for name, layer in scores.items():
            layer.refuse_nan()
            values = concat_chunks([chunk for chunk, _ in layer.read()])
            xp = namespace(values)
            alive = xp.ones_like(values, dtype=xp.bool) if layer.alive is None else layer.alive
            tensors[name] = self._to_tensor(name, values, (-1, 1))
            previous[name] = self._to_tensor(name, alive, (1, -1))
        masks = self.call_get_masks(tensors, sparsity, previous)
        return {name: self._read_mask(name, masks[name], scores[name]) for name in scores}

    def _to_tensor(self, name: str, flat: Array, shape: tuple[int, int]) -> Any:
        like = self.modules[next(iter(self.units[name].parts))].weight
        return self.framework.from_array(namespace(flat).asarray(flat, copy=True).reshape(shape), like)

    def _read_mask(self, name: str, mask: Any, layer: Scores) -> Array:
        if layer.alive is not None and self.is_frozen(name):
            return layer.alive
        flags = self.framework.to_array(mask).reshape((-1,))
        if flags.shape[0] != layer.count or count_true((flags != 0) & (flags != 1)):
            raise ConfigError(
                f"{type(self.user_pattern).__name__}.get_masks, {name!r}: the mask must have one boolean for each of "
                f"{layer.count} heads, found shape {tuple(flags.shape)} or other values."
            )
        return flags != 0
