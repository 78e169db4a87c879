"""Keep deprecated public names working, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["serve_old_names", "warn_deprecated"]


def serve_old_names(module: str, aliases: Mapping[str, str]) -> Callable[[str], Any]:
    """Create a ``__getattr__`` function that keeps the old names of a module available.

    Args:
        module: The module's ``__name__``.
        aliases: Old name → current location of the object, as ``"package.module:Name"``.

    Examples:
        >>> old_names = {"Setup": "secateur.config:PruningConfig"}
        >>> get_alias = serve_old_names("secateur.example", old_names)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     get_alias("Setup").__name__
        'PruningConfig'
    """

    def get_alias(name: str) -> Any:
        if name not in aliases:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        location, attribute = aliases[name].split(":")
        warn_deprecated(f"{module}.{name}", f"{location}.{attribute}")
        return getattr(import_module(location), attribute)

    return get_alias


def warn_deprecated(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is deprecated in favor of `new`.

    Args:
        old: The old name, argument or method, as written by the user.
        new: Its replacement.
        stacklevel: See ``warnings.warn``; 3 points to the caller of the function that calls this one.
    """
    warnings.warn(f"{old} is deprecated. Use {new}.", DeprecationWarning, stacklevel=stacklevel)
