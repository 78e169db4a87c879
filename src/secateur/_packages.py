"""Packages that only some calls need."""

from __future__ import annotations

from importlib.util import find_spec

from secateur.errors import MissingPackageError

__all__ = ["is_installed", "need"]


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
