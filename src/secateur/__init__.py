"""Secateur prunes neural networks in patterns that hardware can use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from secateur.artifact import load, save, verify
    from secateur.config import PruningConfig
    from secateur.criteria import register_criterion
    from secateur.errors import SecateurError
    from secateur.oneshot import Calibration, prune
    from secateur.patterns import register_pattern
    from secateur.planning import plan
    from secateur.schedules import register_schedule
    from secateur.training import prepare

__all__ = [
    "Calibration",
    "PruningConfig",
    "SecateurError",
    "load",
    "plan",
    "prepare",
    "prune",
    "register_criterion",
    "register_pattern",
    "register_schedule",
    "save",
    "verify",
]

HOMES = {
    "Calibration": "oneshot",
    "PruningConfig": "config",
    "SecateurError": "errors",
    "load": "artifact",
    "plan": "planning",
    "prepare": "training",
    "prune": "oneshot",
    "register_criterion": "criteria",
    "register_pattern": "patterns",
    "register_schedule": "schedules",
    "save": "artifact",
    "verify": "artifact",
}
"""Public name → the module that has it, imported when it is first needed."""

MODULES = {*HOMES.values(), "allocations", "keras", "refiners", "solvers"}
"""Modules that are imported when they are first needed."""


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f"secateur.{HOMES[name]}"), name)
    if name in MODULES:
        return import_module(f"secateur.{name}")
    if name == "__version__":
        return _version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *MODULES, "__version__"})


def _version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("secateur"))
    except metadata.PackageNotFoundError:
        return "0+unknown"
