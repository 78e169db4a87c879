"""Create and call users' pattern classes for Intel Neural Compressor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.compat.neural_compressor._elements import DEFAULTS
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import Framework
from secateur.masking.updater import REACHED
from secateur.patterns import BasePattern

__all__ = ["OWN_PACKAGE", "PATTERNS", "PREFIXES", "SPECIFICATION", "PatternCaller", "find_type_name"]

PATTERNS: dict[str, type] = {}
"""Type name, such as ``"ptNxM"`` → pattern class, as in Intel Neural Compressor. Registering again overwrites."""

PREFIXES = {"pytorch": "pt", "keras": "keras"}

SPECIFICATION = re.compile(r"(?P<type>[^()]+)(\((?P<pattern>[^()]+)\))?")

OWN_PACKAGE = __name__.rpartition(".")[0] + "."


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


class PatternCaller(BasePattern):
    """Base class of patterns that delegate selection to a user's class for Intel Neural Compressor.

    Attributes:
        user_pattern: The instance; ``None``: it cannot work on these layers.
        tensors: The framework of its arguments and results.
    """

    user_pattern: Any
    tensors: Framework

    def is_frozen(self, name: str) -> bool:
        """Whether the user froze a layer. The class itself decides which layers have reached a bound."""
        reasons = (self.keep_mask_layers.get(layer) for layer in {name, *self.units[name].parts})
        return any(reason not in (None, REACHED) for reason in reasons)

    def call_get_masks(self, scores: Mapping[str, Any], sparsity: float, previous: Mapping[str, Any]) -> dict[str, Any]:
        """Call ``get_masks``.

        Raises:
            ConfigError: It does not return one mask for each of the layers, or calls a method that does not exist.
        """
        frozen: Any = getattr(self.user_pattern, "keep_mask_layers", None)
        if isinstance(frozen, dict):
            frozen.update({name: True for name in self.units if self.is_frozen(name)})
        masks = self.call("get_masks", dict(scores), sparsity, dict(previous))
        self.check_layers("get_masks", masks, scores)
        return dict(masks)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the class.

        Raises:
            ConfigError: It uses an attribute or method that does not exist.
        """
        try:
            return getattr(self.user_pattern, method)(*arguments)
        except (AttributeError, NotImplementedError) as error:
            where = f"{type(self.user_pattern).__name__}.{method}"
            raise ConfigError(f"{where} uses something that does not exist: {type(error).__name__} {error}.") from error

    def check_layers(self, method: str, masks: Any, layers: Mapping[str, Any]) -> None:
        """Raise `ConfigError` unless there is one mask for each of the layers."""
        if not isinstance(masks, Mapping) or masks.keys() != layers.keys():
            found = sorted(masks) if isinstance(masks, Mapping) else type(masks).__name__
            where = f"{type(self.user_pattern).__name__}.{method}"
            raise ConfigError(f"{where} must return one mask for each of the layers {sorted(layers)}, found {found}.")

    def find_class(self) -> tuple[type, str]:
        """Return the class and the pattern for which it is created.

        The layout of weights in files determines the framework. `serves` has checked that the class is registered.
        """
        match = SPECIFICATION.fullmatch(self.pattern)
        assert match is not None
        named = PATTERNS[match["type"]]
        if not match["pattern"]:
            return named, match["type"]
        framework = self.framework.name
        if framework == "array":
            framework = "keras" if all(view.outputs_last for view in self.views.values()) else "pytorch"
        return PATTERNS.get(find_type_name(match["pattern"], framework), named), match["pattern"]

    def create_user_pattern(self, layers: Mapping[str, Any]) -> Any:
        """Create an instance of the class.

        Args:
            layers: Layer name → layer.

        Raises:
            UnsupportedModelError: The class has no ``get_masks``.
        """
        user_class, inner = self.find_class()
        keys: tuple[str, ...] = ("pruning_scope", "criterion_reduce_type", "min_sparsity_ratio_per_op")
        keys += ("start_step", "end_step", "pruning_frequency")
        settings = {**DEFAULTS, **{key: getattr(self.config, key) for key in keys}, "pattern": inner}
        settings |= {
            "target_sparsity": self.target_sparsity,
            "max_sparsity_ratio_per_op": self.max_sparsity_ratio_per_op,
            "pruning_type": self.config.criterion,
        }
        created = user_class(DotDict(settings), dict(layers))
        if not callable(getattr(created, "get_masks", None)):
            raise UnsupportedModelError(
                f"{user_class.__name__} must have the method get_masks. Derive it from BasePattern."
            )
        return created
