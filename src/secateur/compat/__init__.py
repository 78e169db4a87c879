"""Support the interfaces and configurations of discontinued pruning projects.

Those projects do not have to be installed. `secateur.compat.neural_compressor` provides the pruning interface of Intel
Neural Compressor; `secateur.compat.torchao` and `secateur.compat.sparseml` convert configurations to an `ImportedRun`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateur.compat._imported_run import ImportedRun

if TYPE_CHECKING:
    from secateur.compat import neural_compressor as neural_compressor
    from secateur.compat import sparseml as sparseml
    from secateur.compat import torchao as torchao

__all__ = ["ImportedRun"]

MODULES = ("neural_compressor", "sparseml", "torchao")
"""Modules that are imported on first use."""


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"secateur.compat.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *MODULES})
