"""Name users' criteria for Intel Neural Compressor, and find those that need gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TypeVar

from secateur._array import Array
from secateur.criteria import CRITERIA as CORE_CRITERIA
from secateur.criteria import BaseCriterion
from secateur.errors import ConfigError

__all__ = [
    "CRITERIA",
    "PREFIX",
    "PRUNERS",
    "REGS",
    "SCHEDULERS",
    "TF_CRITERIA",
    "UserCriterion",
    "find_user_criterion",
    "is_user_class",
    "needs_first_gradient",
    "register_in",
]

Class = TypeVar("Class", bound=type)

CRITERIA: dict[str, type] = {}
"""Pruning type, such as ``"magnitude"`` → criterion class for torch modules."""

TF_CRITERIA: dict[str, type] = {}
"""Pruning type → criterion class for Keras layers."""

SCHEDULERS: dict[str, type] = {}
"""``"oneshot"`` or ``"iterative"`` → scheduler class."""

REGS: dict[str, type] = {}
"""``reg_type``, such as ``"group_lasso"`` → regularizer class."""

PRUNERS: dict[str, type] = {}
"""``pt_`` or ``keras_`` and a pruning type → pruner class."""

OWN_PACKAGE = __name__.rpartition(".")[0] + "."

PREFIX = "neural_compressor."
"""Prefix of the names of users' criteria in Secateur's configurations."""


def register_in(registry: dict[str, type], name: str) -> Callable[[Class], Class]:
    """Create a decorator that registers a class, in place of another one of the same name."""

    def register(registered: Class) -> Class:
        registry[name] = registered
        return registered

    return register


def is_user_class(registered: type | None) -> bool:
    """Whether a registered class is not one of this package.

    Examples:
        >>> is_user_class(dict), is_user_class(None)
        (True, False)
    """
    return registered is not None and not registered.__module__.startswith(OWN_PACKAGE)


class UserCriterion(BaseCriterion):
    """Placeholder in configurations for a user's criterion for Intel Neural Compressor.

    Raises:
        ConfigError: It is used without the interface of Intel Neural Compressor.
    """

    needs_gradient: ClassVar[bool] = False

    def score(self, weight: Array, gradient: Array | None) -> NoReturn:  # noqa: ARG002 - part of the interface
        """Raise, because only a run under the interface of Intel Neural Compressor has scores."""
        raise ConfigError(
            f"criterion {self.config.criterion!r} runs only through secateur.compat.neural_compressor. Derive a class "
            f"from secateur.criteria.BaseCriterion for Secateur's own interface."
        )


def find_user_criterion(name: str, built_in: Callable[[str], bool]) -> str | None:
    """Return Secateur's name for a pruning type that a user's criterion handles, or ``None`` if none does.

    Args:
        name: The pruning type, without ``_progressive``.
        built_in: Whether Secateur has a criterion for a pruning type.
    """
    registered = [registry[name] for registry in (CRITERIA, TF_CRITERIA) if name in registry]
    if not registered or (built_in(name) and not any(map(is_user_class, registered))):
        return None
    CORE_CRITERIA[PREFIX + name] = UserCriterion
    return PREFIX + name


def needs_first_gradient(criterion: str) -> bool:
    """Whether a criterion, by Secateur's name, has no scores before the first gradient."""
    if not criterion.startswith(PREFIX):
        return CORE_CRITERIA.find(criterion).needs_gradient
    name = criterion.removeprefix(PREFIX)
    hooks: Any = CRITERIA.get(name) or TF_CRITERIA[name]
    return _overrides(hooks, "on_before_optimizer_step") and not _overrides(hooks, "on_step_begin")


def _overrides(user_class: type, hook: str) -> bool:
    """Whether a class or one of its bases defines a hook that does something."""
    defined = next((base for base in user_class.__mro__ if hook in vars(base)), None)
    return defined is not None and defined.__name__ != "PruningCriterion"
