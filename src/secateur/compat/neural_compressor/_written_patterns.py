"""Run pattern classes that were written against the base classes of Intel Neural Compressor."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from secateur._array import Array, concat_chunks, count_true, namespace
from secateur.compat.neural_compressor._elements import DEFAULTS
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.config import PruningConfig
from secateur.errors import ConfigError, LayerError, UnsupportedModelError
from secateur.frameworks import WeightView
from secateur.patterns import PATTERNS as CORE_PATTERNS
from secateur.patterns import BasePattern
from secateur.patterns.selection import Scores, unify_precision
from secateur.patterns.tiling import BlockTiling, Tiling

__all__ = ["PATTERNS", "WrittenPattern", "find_type_name", "find_written_pattern", "register_pattern"]

Class = TypeVar("Class", bound=type)

PATTERNS: dict[str, type] = {}
"""Type name, such as ``"ptNxM"`` → pattern class, as in Intel Neural Compressor. Registering again overwrites."""

PREFIXES = {"pytorch": "pt", "keras": "keras"}

SPECIFICATION = re.compile(r"(?P<type>[^()]+)(\((?P<pattern>[^()]+)\))?")

OWN_PACKAGE = __name__.rpartition(".")[0] + "."


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
            CORE_PATTERNS.setdefault("neural_compressor", WrittenPattern)
        return pattern

    return register


def find_type_name(pattern: str, framework: str) -> str:
    """Return the type name of a pattern: by its form, or the registered name itself.

    Examples:
        >>> find_type_name("tile_pattern_4x1", "pytorch"), find_type_name("2:4", "pytorch")
        ('ptNxM', 'ptN:M')
    """
    name = pattern.rpartition("_")[2]
    forms = {"x": "NxM", ":": "N:M", "mha": "MHA"}
    if pattern in PATTERNS:
        return pattern
    return next((PREFIXES[framework] + form for part, form in forms.items() if part in name), name)


def find_written_pattern(pattern: str) -> str | None:
    """Return Secateur's name for a pattern that a user's class handles, or ``None`` if none does."""
    for framework in PREFIXES:
        name = find_type_name(pattern, framework)
        if name in PATTERNS and not PATTERNS[name].__module__.startswith(OWN_PACKAGE):
            return name if name == pattern else f"{name}({pattern.rpartition('_')[2]})"
    return None


class WrittenPattern(BasePattern):
    """Select weights with the ``get_masks`` of a class that was written for Intel Neural Compressor.

    The class gets one score per weight, in the weight's shape; scores of pruned weights are 0.

    Raises:
        ConfigError: The class cannot be created, or returns masks that are not valid.
    """

    @classmethod
    def serves(cls, specification: str) -> bool:
        """Whether the specification names a registered class, such as ``ptMy`` or ``ptNxM(4x1)``."""
        match = SPECIFICATION.fullmatch(specification)
        return match is not None and match["type"] in PATTERNS

    def __init__(self, config: PruningConfig | Mapping[str, Any], modules: Mapping[str, Any]) -> None:
        super().__init__(config, modules)
        self.written = self._create_written() if self.framework.name in PREFIXES and self.views else None
        for layer in getattr(self.written, "invalid_layers", ()):
            if self.views.pop(layer, None) is not None:
                del self.units[layer]
                self.invalid_layers[layer] = f"{type(self.written).__name__} lists it in invalid_layers"
        self.budget = self._make_budget()

    def tile(self, view: WeightView) -> Tiling:
        """Tile into single weights."""
        return BlockTiling(view.canonical_shape, (1, 1, 1))

    def select(self, scores: Mapping[str, Scores], sparsity: float | None = None) -> dict[str, Array]:
        """Select the weights that ``get_masks`` keeps; see `BasePattern.select`."""
        if self.written is None:
            raise ConfigError(f"pattern {self.pattern!r} selects weights of torch or Keras layers only.")
        sparsity, scores = self._check_sparsity(sparsity), unify_precision(scores)
        for layer in scores.values():
            layer.refuse_nan()
        tensors, previous = {}, {}
        for name, layer in scores.items():
            values = concat_chunks([chunk for chunk, _ in layer.read()])
            xp = namespace(values)
            alive = xp.ones_like(values, dtype=xp.bool) if layer.alive is None else layer.alive
            tensors[name] = self._to_tensor(name, values * xp.astype(alive, values.dtype))
            previous[name] = self._to_tensor(name, alive)
        masks = self._call_get_masks(tensors, sparsity, previous)
        return {name: self._read_mask(name, masks[name], scores[name].alive) for name in scores}

    def _call_get_masks(self, scores: dict[str, Any], sparsity: float, previous: dict[str, Any]) -> Mapping[str, Any]:
        frozen: Any = getattr(self.written, "keep_mask_layers", None)
        if isinstance(frozen, dict):
            frozen.update({name: True for name in self.units if self.is_frozen(name)})
        where = f"{type(self.written).__name__}.get_masks"
        try:
            masks: Any = self.written.get_masks(scores, sparsity, dict(previous))  # type: ignore[union-attr]
        except (AttributeError, NotImplementedError) as error:
            raise ConfigError(f"{where} needs what does not exist: {type(error).__name__} {error}.") from error
        if not isinstance(masks, Mapping) or masks.keys() != scores.keys():
            found = sorted(masks) if isinstance(masks, Mapping) else type(masks).__name__
            raise ConfigError(f"{where} must return one mask for each of the layers {sorted(scores)}, found {found}.")
        return masks

    def _read_mask(self, name: str, mask: Any, alive: Array | None) -> Array:
        where = f"{type(self.written).__name__}.get_masks, layer {name!r}"
        try:
            array = self.framework.to_array(mask)
            canonical = self.views[name].to_canonical(array)
        except (AttributeError, TypeError, LayerError) as error:
            raise ConfigError(f"{where}: the mask must have the shape of the weight: {error}") from error
        if count_true((canonical != 0) & (canonical != 1)):
            raise ConfigError(f"{where}: masks must be booleans, or 0 and 1, found other values.")
        keep = (canonical != 0).reshape((-1,))
        if alive is None:
            return keep
        if self.is_frozen(name):
            return alive
        if revived := count_true(keep & ~alive):
            raise ConfigError(f"{where}: pruned weights must stay pruned, but {revived} are kept again. Use pre_masks.")
        return keep

    def _to_tensor(self, name: str, flat: Array) -> Any:
        view, module = self.views[name], self.modules[name]
        stored = view.to_stored(flat.reshape(view.canonical_shape))
        like = module.weight if self.framework.name == "pytorch" else None
        return self.framework.from_array(stored, like)

    def _create_written(self) -> Any:
        match = SPECIFICATION.fullmatch(self.pattern)
        if match is None or match["type"] not in PATTERNS:
            raise ConfigError(f"pattern {self.pattern!r} must name a registered class, such as 'ptNxM(4x1)'.")
        name, inner = match["type"], match["pattern"] or match["type"]
        if match["pattern"]:
            name = find_type_name(inner, self.framework.name)
        written = PATTERNS.get(name, PATTERNS[match["type"]])
        keys = ("pruning_scope", "criterion_reduce_type", "min_sparsity_ratio_per_op", "start_step", "end_step")
        settings = {**DEFAULTS, **{key: getattr(self.config, key) for key in keys}, "pattern": inner}
        settings |= {
            "target_sparsity": self.target_sparsity,
            "max_sparsity_ratio_per_op": self.max_sparsity_ratio_per_op,
            "pruning_type": self.config.criterion,
        }
        created = written(DotDict(settings), {layer: self.modules[layer] for layer in self.views})
        if not callable(getattr(created, "get_masks", None)):
            raise UnsupportedModelError(
                f"{written.__name__} must have the method get_masks. Derive it from BasePattern."
            )
        return created
