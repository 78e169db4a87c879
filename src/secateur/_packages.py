"""Optional packages: whether they are installed, and files within them."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

from secateur.errors import MissingPackageError

__all__ = [
    "KERAS_BACKENDS",
    "find_package_file",
    "find_package_folder",
    "get_keras_backend",
    "is_installed",
    "require_keras",
    "require_packages",
]

KERAS_BACKENDS = ("tensorflow", "jax", "torch")
"""Keras backends that can train, in the order of Keras's preference; each is also the name of a package."""


def require_packages(*packages: str, extra: str) -> None:
    """Raise if a package cannot be imported; no package is imported.

    Args:
        packages: Import names.
        extra: The extra of this package that installs them.

    Raises:
        MissingPackageError: A package is missing; the message says how to install it.
    """
    for package in packages:
        if not is_installed(package):
            raise MissingPackageError(
                f"This needs the package {package!r}, which is not installed. "
                f'Install it with: pip install "secateur[{extra}]"',
                name=package,
            )


def require_keras() -> None:
    """Raise if Keras or its configured backend cannot be imported; neither is imported.

    Raises:
        MissingPackageError: One is missing; the message says what to install or to set.
    """
    require_packages("keras", extra="keras")
    backend = get_keras_backend()
    if not is_installed(backend):
        present = [name for name in KERAS_BACKENDS if is_installed(name)]
        names = ", ".join(present)
        advice = f"or set KERAS_BACKEND to one of: {names}" if present else "as no other backend is installed"
        raise MissingPackageError(
            f"Keras is set to the backend {backend!r}, which is not installed. Install it, {advice}.", name=backend
        )


def get_keras_backend() -> str:
    """Return the backend that Keras uses when imported, from ``KERAS_BACKEND`` or its own settings file."""
    if backend := os.environ.get("KERAS_BACKEND"):
        return backend
    try:
        settings = json.loads(
            Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "keras.json").read_text("utf-8")
        )
    except (OSError, ValueError):
        settings = {}
    backend = settings.get("backend") if isinstance(settings, dict) else None
    return backend if isinstance(backend, str) else KERAS_BACKENDS[0]


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported.

    Example:
        >>> is_installed("json"), is_installed("no_such_package")
        (True, False)
    """
    return find_spec(package) is not None


def find_package_folder(package: str, path: str) -> Path | None:
    """Find the folder `path` in an installed top-level package without importing it; ``None`` if there is none.

    Example:
        >>> find_package_folder("secateur", "patterns").name, find_package_folder("secateur", "nothing")
        ('patterns', None)
    """
    return next((place for place in _list_paths(package, path) if os.path.isdir(place)), None)


def find_package_file(package: str, path: str) -> Path | None:
    """Find the file `path` in an installed top-level package without importing it; ``None`` if there is none.

    Example:
        >>> find_package_file("secateur", "errors.py").name, find_package_file("secateur", "patterns")
        ('errors.py', None)
    """
    return next((place for place in _list_paths(package, path) if os.path.isfile(place)), None)


def _list_paths(package: str, path: str) -> list[Path]:
    spec = find_spec(package)
    return [] if spec is None else [Path(home, path) for home in spec.submodule_search_locations or []]
