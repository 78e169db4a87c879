"""Regularize weights, as `neural_compressor.compression.pruner.regs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from secateur._wording import suggest_name
from secateur.compat.neural_compressor._user_criteria import REGS, register_in
from secateur.errors import ConfigError, UnknownNameError
from secateur.frameworks import get_framework
from secateur.patterns import get_pattern as get_core_pattern
from secateur.training.group_lasso import compute_shrinkage

__all__ = ["REGS", "BaseReg", "GroupLasso", "get_reg", "get_reg_type", "register_reg"]

Class = TypeVar("Class", bound=type)


def register_reg(name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a regularizer, in place of another one of the same name.

    ``reg_type=name`` then creates its class with the element, the layers, the pattern and ``reg_coeff``. Each step
    calls ``on_before_optimizer_step``, and those from ``start_step`` to ``end_step`` ``on_after_optimizer_step``.

    Examples:
        >>> @register_reg("nothing")
        ... class Nothing(BaseReg):
        ...     def __init__(self, config, modules, pattern, coeff):
        ...         super().__init__(config, modules, pattern)
        >>> REGS.pop("nothing").__name__
        'Nothing'
    """
    return register_in(REGS, name)


def get_reg_type(config: Mapping[str, Any]) -> str | None:
    """Return the first name of a regularizer that is a key of a dictionary."""
    return next((name for name in REGS if config.get(name) is not None), None)


def get_reg(config: Any, modules: Mapping[str, Any], pattern: Any) -> Any:
    """Create the regularizer that ``config["reg_type"]`` names; ``None``: one that does nothing.

    Raises:
        UnknownNameError: No regularizer has this name.
    """
    name = config["reg_type"]
    if name is None:
        return BaseReg(config, modules, pattern)
    if name not in REGS:
        raise UnknownNameError(f"Unknown reg_type {name!r}.{suggest_name(str(name), REGS)} Known: {', '.join(REGS)}.")
    return REGS[name](config, modules, pattern, config["reg_coeff"])


class BaseReg:
    """Base class of regularizers, which does nothing.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.
        pattern: The pattern of the element.
    """

    def __init__(self, config: Any, modules: Mapping[str, Any], pattern: Any) -> None:
        self.config = config
        self.modules = modules
        self.pattern = pattern

    def on_before_optimizer_step(self) -> None:
        """Called before each step, when the gradients are ready."""

    def on_after_optimizer_step(self) -> None:
        """Called after the steps from ``start_step`` to ``end_step``."""


@register_reg("group_lasso")
class GroupLasso(BaseReg):
    """Shrinks the units of a pattern towards zero.

    In a run, the coefficient is multiplied by the learning rate. On its own, this class does not know it.

    Args:
        config: An element of ``pruning_configs`` with all keys.
        modules: Layer name → layer.
        pattern: The pattern of the element, such as ``"4x1"``.
        coeff: Amount by which to shrink in a step.

    Raises:
        ConfigError: The coefficient is negative, or the pattern has no blocks.
    """

    def __init__(self, config: Any, modules: Mapping[str, Any], pattern: Any, coeff: float) -> None:
        super().__init__(config, modules, pattern)
        self.alpha = float(coeff)
        if self.alpha < 0:
            raise ConfigError(f"reg_coeff must be at least 0, found {self.alpha}.")
        if "x" not in config["pattern"]:
            raise ConfigError(f"group_lasso needs a pattern of blocks such as '4x1', found {config['pattern']!r}.")

    def on_after_optimizer_step(self) -> None:
        """Shrink the units."""
        framework = get_framework("pytorch")
        settings = {"pattern": self.config["pattern"].rpartition("_")[2], "target_sparsity": 0.0}
        pattern = get_core_pattern(settings, self.modules, "pytorch")
        for units in pattern.units.values():
            weights = {layer: framework.read_weight(self.modules[layer]) for layer in units.parts}
            canonical = {layer: pattern.views[layer].to_canonical(weight) for layer, weight in weights.items()}
            for layer, factors in compute_shrinkage(units, canonical, self.alpha).items():
                weights[layer] *= pattern.views[layer].to_stored(factors)
