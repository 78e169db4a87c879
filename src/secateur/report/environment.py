"""Describe the machine and the package versions of this process."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from secateur._wording import format_count

__all__ = ["describe_environment"]

PACKAGES = ("torch", "keras", "tensorflow", "jax", "transformers", "numpy")
"""Packages whose versions are reported if they are imported."""

CPU_FILE = Path("/proc/cpuinfo")


def describe_environment() -> dict[str, str]:
    """Return label → text: versions, machine and time.

    Examples:
        >>> sorted(describe_environment())
        ['Machine', 'Time', 'Versions']
    """
    loaded = [f"{name} {found}" for name in PACKAGES if name in sys.modules and (found := _find_version(name))]
    versions = [f"secateur {_find_version('secateur') or '(from source)'}", f"Python {platform.python_version()}"]
    cores = format_count(os.cpu_count() or 1, "core")
    return {
        "Versions": ", ".join([*versions, *loaded]),
        "Machine": f"{_find_processor()}, {cores}, {platform.system()} {platform.release()}",
        "Time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_processor() -> str:
    """Return the name of the processor, or its architecture if the name is unknown."""
    try:
        lines = CPU_FILE.read_text("utf-8").splitlines()
    except (OSError, UnicodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())
