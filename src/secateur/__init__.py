"""Secateur prunes neural networks in patterns that hardware can use."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur import allocations as allocations
    from secateur import analysis as analysis
    from secateur import artifact as artifact
    from secateur import compat as compat
    from secateur import config as config
    from secateur import criteria as criteria
    from secateur import errors as errors
    from secateur import keras as keras
    from secateur import models as models
    from secateur import oneshot as oneshot
    from secateur import patterns as patterns
    from secateur import permutation as permutation
    from secateur import planning as planning
    from secateur import refiners as refiners
    from secateur import report as report
    from secateur import results as results
    from secateur import runtime as runtime
    from secateur import schedules as schedules
    from secateur import searching as searching
    from secateur import slimming as slimming
    from secateur import solvers as solvers
    from secateur import training as training
    from secateur.analysis import sensitivity
    from secateur.artifact import load, save, verify
    from secateur.config import PruningConfig
    from secateur.criteria import register_criterion
    from secateur.errors import SecateurError
    from secateur.oneshot import Calibration, Execution, prune
    from secateur.patterns import register_pattern
    from secateur.planning import plan
    from secateur.schedules import register_schedule
    from secateur.searching import search
    from secateur.slimming import slim
    from secateur.training import prepare

    __version__: str

__all__ = [
    "Calibration",
    "Execution",
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
    "search",
    "sensitivity",
    "slim",
    "verify",
]

MODULE_BY_NAME = {
    "Calibration": "oneshot",
    "Execution": "oneshot",
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
    "search": "searching",
    "sensitivity": "analysis",
    "slim": "slimming",
    "verify": "artifact",
}
"""Public name → module that defines it, which is imported on first use."""


def __getattr__(name: str) -> Any:
    if name in MODULE_BY_NAME:
        return getattr(import_module(f"secateur.{MODULE_BY_NAME[name]}"), name)
    if name in _list_modules():
        return import_module(f"secateur.{name}")
    if name == "__version__":
        return _read_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_list_modules(), "__version__"})


@cache
def _list_modules() -> frozenset[str]:
    """List the public modules of the package, which are imported on first use."""
    return frozenset(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def _read_version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        return str(metadata.version("secateur"))
    except metadata.PackageNotFoundError:
        return "0+unknown"
