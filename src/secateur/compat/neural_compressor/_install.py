"""Provide this package under the name ``neural_compressor``, after an explicit call."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from secateur.errors import StateError

__all__ = ["install", "uninstall"]

ALIAS = "neural_compressor"
PACKAGE = "secateur.compat.neural_compressor"


class _AliasLoader(Loader):
    """Loads the module of this package, so that both names refer to one module object."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 - part of the interface
        module = import_module(self.target)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just replaced the specification; the module keeps its own.
        module.__spec__ = self._spec


class _AliasFinder(MetaPathFinder):
    """Finds ``neural_compressor`` and its submodules in this package."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - part of the interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if not _is_alias(fullname):
            return None
        name = PACKAGE + fullname.removeprefix(ALIAS)
        original = find_spec(name)
        if original is None:
            return None
        is_package = original.submodule_search_locations is not None
        return ModuleSpec(fullname, _AliasLoader(name), is_package=is_package)


def install() -> None:
    """Make ``import neural_compressor`` import this package in the running process, including every submodule.

    Modules and classes are the same objects under both names. Nothing is written to disk; calling it again has no
    effect.

    Raises:
        StateError: The package ``neural_compressor`` is installed or already imported. Change the imports instead.

    Examples:
        >>> from secateur.compat import neural_compressor as compat
        >>> compat.install()
        >>> from neural_compressor import WeightPruningConfig
        >>> WeightPruningConfig is compat.WeightPruningConfig
        True
        >>> compat.uninstall()
    """
    if _find_installed() is not None:
        return
    if ALIAS in sys.modules or find_spec(ALIAS) is not None:
        raise StateError(
            f"install() needs the name {ALIAS!r} to be free, found the package itself. Uninstall it, or import from "
            f"{PACKAGE} instead."
        )
    sys.meta_path.insert(0, _AliasFinder())


def uninstall() -> None:
    """Undo `install`: the name ``neural_compressor`` is free again; imported objects stay usable."""
    finder = _find_installed()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if _is_alias(name)]:
        del sys.modules[name]


def _find_installed() -> _AliasFinder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _AliasFinder)), None)


def _is_alias(name: str) -> bool:
    return name == ALIAS or name.startswith(f"{ALIAS}.")
