"""Check whether optional packages are installed, and find files in packages."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secateur.errors import MissingPackageError

__all__ = [
    "KERAS_BACKENDS",
    "find_package_file",
    "find_package_folder",
    "get_install_command",
    "get_keras_backend",
    "is_installed",
    "require_keras",
    "require_packages",
]

KERAS_BACKENDS = ("tensorflow", "jax", "torch")
"""Keras backends that can train, in Keras's order of preference; each is also a package name."""


def require_packages(*packages: str, extra: str) -> None:
    """Raise an error if a package is not installed, without importing it.

    Args:
        packages: Import names.
        extra: The extra of Secateur that installs them.

    Raises:
        MissingPackageError: A package is missing; the message says how to install it.
    """
    for package in packages:
        if not is_installed(package):
            raise MissingPackageError(
                f"This needs the package {package!r}, which is not installed. "
                f"Install it with: {get_install_command(extra)}",
                name=package,
            )


def get_install_command(extra: str) -> str:
    """Return the command that adds an extra to Secateur where it was installed from: an index, a checkout or a URL."""
    version, origin = _read_origin()
    if (system := origin.get("vcs_info")) is not None:
        return f'pip install "secateur[{extra}] @ {system["vcs"]}+{origin["url"]}@{system["commit_id"]}"'
    if (folder := _get_folder(origin)) is not None:
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{folder}[{extra}]"'
    if ".dev" in version:  # no index has it
        return f'pip install ".[{extra}]" in a checkout of Secateur'
    return f'pip install "secateur[{extra}]"'


def _read_origin() -> tuple[str, dict[str, Any]]:
    """Read the installed version, and where pip got it from: the content of ``direct_url.json``, if there is one."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("secateur")
    except PackageNotFoundError:
        return ".dev", {}
    return installed.version, json.loads(installed.read_text("direct_url.json") or "{}")


def _get_folder(origin: dict[str, Any]) -> str | None:
    """Return the folder that pip installed, if it still exists."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    if "dir_info" not in origin:
        return None
    folder = url2pathname(urlsplit(origin["url"]).path)
    return folder if os.path.isdir(folder) else None


def require_keras() -> None:
    """Raise an error if Keras or its configured backend is not installed, without importing them.

    Raises:
        MissingPackageError: One is missing; the message says what to install or set.
    """
    require_packages("keras", extra="keras")
    backend = get_keras_backend()
    if not is_installed(backend):
        installed = ", ".join(name for name in KERAS_BACKENDS if is_installed(name))
        alternative = f", or set KERAS_BACKEND to one of: {installed}" if installed else ""
        raise MissingPackageError(
            f"Keras is configured to use the backend {backend!r}, which is not installed. Install it{alternative}.",
            name=backend,
        )


def get_keras_backend() -> str:
    """Return the backend that Keras will use, from ``KERAS_BACKEND`` or from its settings file."""
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

    Examples:
        >>> is_installed("json"), is_installed("no_such_package")
        (True, False)
    """
    return find_spec(package) is not None


def find_package_folder(package: str, path: str) -> Path | None:
    """Find the folder `path` in an installed top-level package without importing it; ``None`` if there is none.

    Examples:
        >>> find_package_folder("secateur", "patterns").name
        'patterns'
        >>> find_package_folder("secateur", "nothing") is None
        True
    """
    return next((candidate for candidate in _list_paths(package, path) if os.path.isdir(candidate)), None)


def find_package_file(package: str, path: str) -> Path | None:
    """Find the file `path` in an installed top-level package without importing it; ``None`` if there is none.

    Examples:
        >>> find_package_file("secateur", "errors.py").name
        'errors.py'
        >>> find_package_file("secateur", "patterns") is None
        True
    """
    return next((candidate for candidate in _list_paths(package, path) if os.path.isfile(candidate)), None)


def _list_paths(package: str, path: str) -> list[Path]:
    spec = find_spec(package)
    return [] if spec is None else [Path(folder, path) for folder in spec.submodule_search_locations or []]
