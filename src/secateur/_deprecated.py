"""Old public names, which go on working and warn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["deprecated_getattr", "warn_deprecated"]


def deprecated_getattr(module: str, aliases: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module that still serves old names.

    Args:
        module: The module's ``__name__``.
        aliases: Old name → where the object is now, as ``"package.module:Name"``.

    Example:
        >>> serve = deprecated_getattr("secateur.example", {"Setup": "secateur.config:PruningConfig"})
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     serve("Setup").__name__
        'PruningConfig'
    """

    def serve(name: str) -> Any:
        if name not in aliases:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, attribute = aliases[name].split(":")
        warn_deprecated(f"{module}.{name}", f"{home}.{attribute}")
        return getattr(import_module(home), attribute)

    return serve


def warn_deprecated(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` has become `new`.

    Args:
        old: The old name, argument or method, as a user writes it.
        new: What to write instead.
        stacklevel: See ``warnings.warn``; 3 points to the caller of the function that calls this one.
    """
    warnings.warn(f"{old} is deprecated. Use {new}.", DeprecationWarning, stacklevel=stacklevel)
