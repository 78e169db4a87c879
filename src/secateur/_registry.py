"""One dict per kind of thing that users may add to, filled by a decorator and by entry points."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import TypeVar

from secateur.errors import ConfigError, UnknownNameError

__all__ = ["Registry", "listed", "nearest"]


Item = TypeVar("Item")


class Registry(dict[str, Item]):
    """Names to things of one kind, such as the patterns.

    Installed packages add theirs through the entry-point group ``secateur.<kind>s``: an entry point names a module, and
    importing that module registers.

    Args:
        kind: What the things are called in errors, in the singular.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[Item], Item]:
        """A decorator that adds what it decorates under `name`.

        Raises:
            ConfigError: `name` is taken, or is empty.
        """

        def add(item: Item) -> Item:
            if not name:
                raise ConfigError(f"A {self.kind} needs a name, found ''.")
            if name in self:
                raise ConfigError(f"The {self.kind} name {name!r} is taken by {self[name]!r}. Choose another name.")
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
                f"Unknown {self.kind} {name!r}.{nearest(name, self)} Known: {', '.join(sorted(self))}."
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


def listed(items: Iterable[str], most: int = 8) -> str:
    """Items for an error message, and how many more there are than it shows.

    Example:
        >>> listed(["a", "b", "c"], most=2), listed(["a", "b"], most=2)
        ('a, b and 1 more', 'a, b')
    """
    found = list(items)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelled `name`, as the tail of an error message.

    Example:
        >>> nearest("cubik", ["cubic", "linear"])
        " Did you mean 'cubic'?"
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
