"""Register patterns, criteria, schedules and other methods by name, with a decorator or through entry points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from secateur._wording import suggest_name
from secateur.errors import ConfigError, UnknownNameError

__all__ = ["Registry", "find_registered"]

Item = TypeVar("Item")


def find_registered(kind: str, name: str) -> Any:
    """Find a registered object by its kind and name; its package is imported on first use.

    Modules that those packages import, such as the configuration, use this to avoid an import cycle.

    Args:
        kind: ``"pattern"``, ``"criterion"``, ``"schedule"``, ``"solver"``, ``"refiner"`` or ``"allocation"``. The
            package ``secateur.<kind>s`` has the registry under its own name in capitals.
        name: The name.

    Raises:
        UnknownNameError: See `Registry.find`.

    Examples:
        >>> find_registered("schedule", "linear")(0.0, 0.5, 0.5)
        0.25
    """
    package = _pluralize(kind)
    registry: Registry[Any] = getattr(import_module(f"secateur.{package}"), package.upper())
    return registry.find(name)


class Registry(dict[str, Item]):
    """The registered objects of one kind, such as patterns, by name.

    Installed packages can register objects through the entry-point group ``secateur.<kind>s``: an entry point names a
    module that registers objects when it is imported.

    Args:
        kind: Name of the kind in error messages, in the singular.
        check: Called with a name and the object to register; raises an error if the object is not of the kind.
        serves: Whether an object also handles a name that is not registered, as the block pattern handles ``"4x1"``.
        examples: Examples of such names, for error messages.
    """

    def __init__(
        self,
        kind: str,
        check: Callable[[str, Item], None] = lambda _name, _item: None,
        *,
        serves: Callable[[Item, str], bool] = lambda _item, _name: False,
        examples: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.kind = kind
        self._check = check
        self._serves = serves
        self._examples = examples
        self._has_plugins = False

    def register(self, name: str) -> Callable[[Item], Item]:
        """Create a decorator that registers an object under `name`.

        Raises:
            ConfigError: `name` is empty or already registered.
            SecateurError: The object is not of the kind.
        """

        def add(item: Item) -> Item:
            if not name:
                raise ConfigError(f"The name of a {self.kind} must not be empty.")
            if name in self:
                raise ConfigError(f"The {self.kind} name {name!r} is taken by {self[name]!r}. Choose another name.")
            self._check(name, item)
            self[name] = item
            return item

        return add

    def find(self, name: str) -> Item:
        """Return the object that is registered under `name`, or else the first one that handles this name.

        Raises:
            UnknownNameError: There is none; the message lists the known names and suggests a similar one.
        """
        if name not in self:
            self.load_plugins()
        if name in self:
            return self[name]
        for item in self.values():
            if self._serves(item, name):
                return item
        known = f"Known: {', '.join(sorted(self))}"
        if self._examples:
            known = f"Known {self.kind} types: {', '.join(sorted(self))}; for example {', '.join(self._examples)}"
        raise UnknownNameError(
            f"Unknown {self.kind} {name!r}.{suggest_name(name, [*self, *self._examples])} {known}. A custom "
            f"{self.kind} must be registered before its name is used."
        )

    def load_plugins(self) -> None:
        """Import, once, the modules that installed packages list in the entry-point group of this kind."""
        if not self._has_plugins:
            self._has_plugins = True
            for plugin in entry_points(group=f"secateur.{_pluralize(self.kind)}"):
                plugin.load()


def _pluralize(kind: str) -> str:
    return {"criterion": "criteria"}.get(kind, f"{kind}s")
