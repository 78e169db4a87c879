"""Registries of what users can add to: one dict per kind, filled by a decorator and by entry points."""

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
    """Find a registered object by its kind and name; the package of the kind is imported on first use.

    This is for modules that the packages of the built-in objects import, such as the configuration.

    Args:
        kind: ``"pattern"``, ``"criterion"``, ``"schedule"``, ``"solver"``, ``"refiner"`` or ``"allocation"``. The
            package ``secateur.<kind>s`` has the registry under its own name in capitals.
        name: The name.

    Raises:
        UnknownNameError: See `Registry.find`.

    Example:
        >>> find_registered("schedule", "linear")(0.0, 0.5, 0.5)
        0.25
    """
    package = _pluralize(kind)
    registry: Registry[Any] = getattr(import_module(f"secateur.{package}"), package.upper())
    return registry.find(name)


class Registry(dict[str, Item]):
    """The registered objects of one kind, such as patterns, by name.

    Installed packages register their own through the entry-point group ``secateur.<kind>s``: an entry point names a
    module that registers objects when it is imported.

    Args:
        kind: What the objects are called in error messages, in the singular.
        check: Called with a name and the object to register; raises if the object is not of the kind.
        serves: Whether an object also serves a name that is not registered, as block patterns serve ``"4x1"``.
        examples: Such names, for error messages.
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
        """Make a decorator that registers an object under `name`.

        Raises:
            ConfigError: `name` is taken or empty.
            SecateurError: The object is not of the kind.
        """

        def add(item: Item) -> Item:
            if not name:
                raise ConfigError(f"A {self.kind} needs a name, found ''.")
            if name in self:
                raise ConfigError(f"The {self.kind} name {name!r} is taken by {self[name]!r}. Choose another name.")
            self._check(name, item)
            self[name] = item
            return item

        return add

    def find(self, name: str) -> Item:
        """Return the object that is registered under `name`, or else the first one that serves it.

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
            f"Unknown {self.kind} {name!r}.{suggest_name(name, [*self, *self._examples])} {known}. Register a "
            f"{self.kind} of your own before a configuration names it."
        )

    def load_plugins(self) -> None:
        """Import the modules that installed packages list in the entry-point group of this kind, once."""
        if not self._has_plugins:
            self._has_plugins = True
            for plugin in entry_points(group=f"secateur.{_pluralize(self.kind)}"):
                plugin.load()


def _pluralize(kind: str) -> str:
    return {"criterion": "criteria"}.get(kind, f"{kind}s")
