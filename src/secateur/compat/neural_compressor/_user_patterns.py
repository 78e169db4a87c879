"""Run users' pattern classes for Intel Neural Compressor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, TypeVar

import numpy as np
from array_api_compat import device

from secateur._array import Array, concat_chunks, count_true, namespace
from secateur.compat.neural_compressor._user_calls import (
    OWN_PACKAGE,
    PATTERNS,
    PREFIXES,
    SPECIFICATION,
    PatternCaller,
    find_type_name,
)
from secateur.compat.neural_compressor._user_heads import UserHeadsPattern
from secateur.config import PruningConfig
from secateur.errors import ConfigError, LayerError, ScoreError
from secateur.frameworks import WeightView, get_framework
from secateur.patterns import PATTERNS as CORE_PATTERNS
from secateur.patterns.selection import Scores, unify_precision
from secateur.patterns.tiling import BlockTiling, Tiling

__all__ = ["PATTERNS", "UserPattern", "find_type_name", "find_user_pattern", "register_pattern"]

logger = logging.getLogger(__name__)

Class = TypeVar("Class", bound=type)

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions of classes that do not support layers that are created from weights in files."""


def register_pattern(name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a pattern class, in place of another one of the same name.

    Under the interface of Intel Neural Compressor, a pattern with ``x`` runs the class ``ptNxM``, one with ``:`` the
    class ``ptN:M``, one with ``mha`` the class ``ptMHA``, and another one the class of its name; for Keras, the names
    begin with ``keras``. In Secateur's own configurations, ``"ptNxM(4x1)"`` runs the class ``ptNxM`` with the pattern
    ``4x1``, and ``"ptMy"`` the class ``ptMy``; ``"4x1"`` always is Secateur's own pattern.

    Examples:
        >>> @register_pattern("ptMine")
        ... class Mine:
        ...     pass
        >>> PATTERNS.pop("ptMine").__name__
        'Mine'
    """

    def register(pattern: Class) -> Class:
        PATTERNS[name] = pattern
        if not pattern.__module__.startswith(OWN_PACKAGE):
            CORE_PATTERNS.setdefault("neural_compressor", UserPattern)
            CORE_PATTERNS.setdefault("neural_compressor_heads", UserHeadsPattern)
        return pattern

    return register


def find_user_pattern(pattern: str) -> str | None:
    """Return Secateur's name for a pattern that a user's class handles, or ``None`` if none does."""
    for framework in PREFIXES:
        name = find_type_name(pattern, framework)
        if name in PATTERNS and not PATTERNS[name].__module__.startswith(OWN_PACKAGE):
            return name if name == pattern else f"{name}({pattern.rpartition('_')[2]})"
    return None


class UserPattern(PatternCaller):
    """Select weights with ``get_masks`` of a user's class for Intel Neural Compressor.

    The class receives the same arguments as there: the scores of all weights, as its ``reduce_score`` returns them, and
    the masks of the last update, both as copies. It may restore pruned weights, which start from zero.

    A pattern lock, ``keep_zeros`` and the verification of files use its ``get_pattern_lock_masks``.

    Raises:
        ConfigError: The class cannot be created, or returns masks that are not valid.
    """

    finds_locked_weights: ClassVar[bool] = True

    @classmethod
    def serves(cls, specification: str) -> bool:
        """Whether the specification names a registered class, such as ``ptMy`` or ``ptNxM(4x1)``."""
        match = SPECIFICATION.fullmatch(specification)
        return match is not None and match["type"] in PATTERNS and not UserHeadsPattern.serves(specification)

    def __init__(self, config: PruningConfig | Mapping[str, Any], modules: Mapping[str, Any]) -> None:
        super().__init__(config, modules)
        self.tensors = self.framework  # converts arguments and results of the class
        self.user_pattern: Any = None
        if self.framework.name == "array":
            self._create_for_files()
        elif self.views and not any(isinstance(module, WeightView) for module in self.modules.values()):
            self.user_pattern = self.create_user_pattern({name: self.modules[name] for name in self.views})
        for layer in getattr(self.user_pattern, "invalid_layers", ()):
            if self.views.pop(layer, None) is not None:
                del self.units[layer]
                self.invalid_layers[layer] = f"{type(self.user_pattern).__name__} lists it in invalid_layers"
        self.budget = self._make_budget()

    def tile(self, view: WeightView) -> Tiling:
        """Tile into single weights."""
        return BlockTiling(view.canonical_shape, (1, 1, 1))

    def select(self, scores: Mapping[str, Scores], sparsity: float | None = None) -> dict[str, Array]:
        """Select the weights that ``get_masks`` keeps; see `BasePattern.select`."""
        if self.user_pattern is None:
            raise ConfigError(
                f"pattern {self.pattern!r} selects the weights of torch or Keras layers, not of arrays or of parts of "
                f"layers, as solvers do. Prune a model without a solver."
            )
        sparsity, scores = self._check_sparsity(sparsity), unify_precision(scores)
        for layer in scores.values():
            layer.refuse_nan()
        tensors = self._make_scores(scores)
        previous = {name: self._to_tensor(name, _find_alive(layer)) for name, layer in scores.items()}
        masks = self.call_get_masks(tensors, sparsity, previous)
        return {name: self._read_mask(name, masks[name], scores[name].alive) for name in scores}

    def interpolate_masks(
        self,
        stream: Callable[[str], Scores],
        between: tuple[Mapping[str, Array], Mapping[str, Array]],
        part: tuple[int, int],
    ) -> dict[str, Array] | None:
        """Return what ``update_progressive_masks`` keeps; see `BasePattern.interpolate_masks`."""
        if self.framework.name != "pytorch" or not hasattr(self.user_pattern, "update_progressive_masks"):
            return None
        try:
            scores = self._make_scores(unify_precision({name: stream(name) for name in self.units}))
        except ScoreError:  # a user's criterion has scores only when an update is due
            return None
        before, after = ({name: self._to_tensor(name, keep[name]) for name in self.units} for keep in between)
        settings = {"progressive_steps": part[1], "progressive_type": "scores", "use_global": True}
        masks = self.call("update_progressive_masks", before, after, scores, part[0], settings)
        self.check_layers("update_progressive_masks", masks, scores)
        flags = {name: self._read_flags("update_progressive_masks", name, mask) for name, mask in masks.items()}
        return {name: self.views[name].to_stored(kept) for name, kept in flags.items()}

    def find_locked_weights(self, nonzero: Mapping[str, Any]) -> dict[str, Any]:
        """Return what ``get_pattern_lock_masks`` keeps; see `BasePattern.find_locked_weights`."""
        if self.user_pattern is None or not hasattr(self.user_pattern, "get_pattern_lock_masks"):
            return super().find_locked_weights(nonzero)
        modules = {name: self.modules[name] for name in self.views}
        if self.framework.name == "array":
            modules = {name: self._make_layer(name, nonzero[name]) for name in modules}
        masks = self.call("get_pattern_lock_masks", modules)
        self.check_layers("get_pattern_lock_masks", masks, modules)
        kept = {name: self._read_flags("get_pattern_lock_masks", name, masks[name]) for name in modules}
        return {name: self.views[name].to_stored(flags) for name, flags in kept.items()}

    def find_nonzero_units(self, nonzero: Mapping[str, Any]) -> dict[str, Array]:
        """Return what ``get_pattern_lock_masks`` keeps; see `BasePattern.find_nonzero_units`."""
        return super().find_nonzero_units(self.find_locked_weights(nonzero))

    def _read_mask(self, name: str, mask: Any, alive: Array | None) -> Array:
        if alive is not None and self.is_frozen(name):
            return alive
        return self._read_flags("get_masks", name, mask).reshape((-1,))

    def _read_flags(self, method: str, name: str, mask: Any) -> Array:
        """Return a mask as (O, K, I) booleans."""
        where = f"{type(self.user_pattern).__name__}.{method}, layer {name!r}"
        try:
            canonical = self.views[name].to_canonical(self.tensors.to_array(mask))
        except (AttributeError, TypeError, LayerError) as error:
            raise ConfigError(f"{where}: the mask must have the shape of the weight: {error}") from error
        if count_true((canonical != 0) & (canonical != 1)):
            raise ConfigError(f"{where}: masks must be booleans, or 0 and 1, found other values.")
        return canonical != 0

    def _make_scores(self, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Return the scores in the form that the class receives."""
        values = {name: concat_chunks([chunk for chunk, _ in layer.read()]) for name, layer in scores.items()}
        tensors = {name: self._to_tensor(name, flat) for name, flat in values.items()}
        if self.framework.name == "pytorch" and hasattr(self.user_pattern, "reduce_score"):
            tensors = {name: self.call("reduce_score", score, name) for name, score in tensors.items()}
        return tensors

    def _to_tensor(self, name: str, flat: Array) -> Any:
        """Return a contiguous copy in the stored shape."""
        view, module, xp = self.views[name], self.modules[name], namespace(flat)
        stored = view.to_stored(flat.reshape(view.canonical_shape)).reshape((-1,))
        like = module.weight if self.framework.name == "pytorch" else None
        return self.framework.from_array(xp.asarray(stored, copy=True).reshape(view.shape), like)

    @property
    def verified_as(self) -> str:
        """The pattern, or ``"1x1"`` if its class cannot find the units of weights in files."""
        return "1x1" if self.user_pattern is None else self.pattern

    def _create_for_files(self) -> None:
        """Create the class with layers made from the views if it can find their units; otherwise, it is ``None``."""
        dense = {name: np.ones(view.shape, dtype=bool) for name, view in self.views.items()}
        try:
            framework = getattr(self.find_class()[0], "framework", "pytorch")
            self.tensors = get_framework(framework)
            layers = {name: self._make_layer(name, flags) for name, flags in dense.items()}
            if all(layer is not None for layer in layers.values()):
                self.user_pattern = self.create_user_pattern(layers)
                self._check_units(dense)
        except FAILURES as error:
            logger.debug("%s cannot verify files: %s", self.pattern, error)
            self.user_pattern = None

    def _check_units(self, dense: Mapping[str, Array]) -> None:
        """Raise `LayerError` if the class treats a single zero in a layer as a pruned unit."""
        single = {name: flags.copy() for name, flags in dense.items()}
        for flags in single.values():
            flags[(0,) * flags.ndim] = False
        if any((flags == single[name]).all() for name, flags in self.find_locked_weights(single).items()):
            raise LayerError(f"{type(self.user_pattern).__name__} prunes single weights")

    def _make_layer(self, name: str, nonzero: Array) -> Any:
        leaf = import_module(f"{OWN_PACKAGE}_stand_ins.{self.tensors.name}")
        return leaf.make_layer(self.views[name], nonzero)


def _find_alive(layer: Scores) -> Array:
    """Return which units the masks of the last update keep."""
    if layer.alive is not None:
        return layer.alive
    like = next(iter(layer.chunks()))
    xp = namespace(like)
    return xp.ones((layer.count,), dtype=xp.bool, device=device(like))
