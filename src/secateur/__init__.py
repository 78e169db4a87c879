"""Secateur prunes neural networks in patterns that hardware can use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.config import PruningConfig
    from secateur.criteria import register_criterion
    from secateur.errors import SecateurError
    from secateur.patterns import register_pattern
    from secateur.planning import plan
    from secateur.schedules import register_schedule
    from secateur.training import prepare

__all__ = [
    "PruningConfig",
    "SecateurError",
    "plan",
    "prepare",
    "register_criterion",
    "register_pattern",
    "register_schedule",
]

HOMES = {
    "PruningConfig": "config",
    "SecateurError": "errors",
    "plan": "planning",
    "prepare": "training",
    "register_criterion": "criteria",
    "register_pattern": "patterns",
    "register_schedule": "schedules",
}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f"secateur.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
