"""Packages that only some calls need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from secateur.errors import MissingPackageError

__all__ = ["is_installed", "need", "shipped_folder"]


def need(*packages: str, extra: str) -> None:
    """Make sure that packages can be imported, without importing them.

    Args:
        packages: Import names.
        extra: The extra of this package that brings them.

    Raises:
        MissingPackageError: One is missing; the message says what to install.
    """
    for package in packages:
        if not is_installed(package):
            raise MissingPackageError(
                f"This needs the package {package!r}, which is not installed. "
                f'Install it with: pip install "secateur[{extra}]"',
                name=package,
            )


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported.

    Example:
        >>> is_installed("json"), is_installed("no_such_package")
        (True, False)
    """
    return find_spec(package) is not None


def shipped_folder(package: str, path: str) -> Path | None:
    """The folder `path` within an installed top-level package, which is not imported; ``None``: there is none.

    Example:
        >>> shipped_folder("secateur", "patterns").name, shipped_folder("secateur", "nothing")
        ('patterns', None)
    """
    spec = find_spec(package)
    homes = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(home, path) for home in homes if Path(home, path).is_dir()), None)
