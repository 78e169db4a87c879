"""One dict per kind of thing that users may add to, filled by a decorator and by entry points."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from secateur._wording import suggest_name
from secateur.errors import ConfigError, UnknownNameError

__all__ = ["Registry"]

Item = TypeVar("Item")


class Registry(dict[str, Item]):
    """Names to things of one kind, such as the patterns.

    Installed packages add theirs through the entry-point group ``secateur.<kind>s``: an entry point names a module, and
    importing that module registers.

    Args:
        kind: What the things are called in errors, in the singular.
        check: Called with a name and what is to be registered under it; raises if that is not of the kind.
    """

    def __init__(self, kind: str, check: Callable[[str, Item], None] = lambda _name, _item: None) -> None:
        super().__init__()
        self.kind = kind
        self._check = check
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that adds what it decorates under `name`.

        Raises:
            ConfigError: `name` is taken, or is empty.
            SecateurError: What is decorated is not of the kind.
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
        """The thing under `name`.

        Raises:
            UnknownNameError: Nothing has that name; the message lists what is known and suggests the nearest.
        """
        if name not in self:
            self.load_plugins()
        if name not in self:
            raise UnknownNameError(
                f"Unknown {self.kind} {name!r}.{suggest_name(name, self)} Known: {', '.join(sorted(self))}."
            )
        return self[name]

    def load_plugins(self) -> None:
        """Import what installed packages registered under this kind's entry-point group, once."""
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for plugin in entry_points(group=f"secateur.{self._plural}"):
                plugin.load()

    @property
    def _plural(self) -> str:
        return {"criterion": "criteria"}.get(self.kind, f"{self.kind}s")
