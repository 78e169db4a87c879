"""Refiners: repair the weights that a solver keeps. Needs torch."""

from __future__ import annotations

from secateur._packages import require_packages

require_packages("torch", extra="torch")

from secateur.refiners.base import (  # noqa: E402 - after the check that torch is installed
    REFINERS,
    BlockRefiner,
    LayerRefiner,
    ModelRefiner,
    Refiner,
    UnitRefiner,
    register_refiner,
)
from secateur.refiners.bias import BiasCompensation  # noqa: E402
from secateur.refiners.block import Block  # noqa: E402
from secateur.refiners.distill import Distill  # noqa: E402
from secateur.refiners.dsnot import DSnoT  # noqa: E402
from secateur.refiners.pcg import PCG  # noqa: E402
from secateur.refiners.ridge import Ridge  # noqa: E402
from secateur.refiners.swap import Swap  # noqa: E402

__all__ = [
    "PCG",
    "REFINERS",
    "BiasCompensation",
    "Block",
    "BlockRefiner",
    "DSnoT",
    "Distill",
    "LayerRefiner",
    "ModelRefiner",
    "Refiner",
    "Ridge",
    "Swap",
    "UnitRefiner",
    "register_refiner",
]
