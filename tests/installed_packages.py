"""Environments with and without optional packages."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest

__all__ = ["hide_packages", "install_only", "provide_packages"]

OPTIONAL = ("accelerate", "gguf", "jax", "keras", "tensorflow", "torch", "transformers")


def hide_packages(patch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages as good as not installed: they are not found, and importing them fails."""
    for package in packages:
        patch.setitem(sys.modules, package, None)


def provide_packages(patch: pytest.MonkeyPatch, *packages: str) -> None:
    """Provide empty packages for those that are not installed."""
    for package in packages:
        if find_spec(package) is None:
            module = ModuleType(package)
            module.__spec__ = ModuleSpec(package, None)
            patch.setitem(sys.modules, package, module)


def install_only(patch: pytest.MonkeyPatch, *packages: str) -> None:
    """Provide some optional packages, and hide the others."""
    provide_packages(patch, *packages)
    hide_packages(patch, *(package for package in OPTIONAL if package not in packages))
