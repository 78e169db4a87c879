"""Refiners, which repair what a solver leaves; needs torch."""

from __future__ import annotations

from secateur._packages import require_packages

require_packages("torch", extra="torch")

from secateur.oneshot.pytorch.refining import (  # noqa: E402 - says what is missing first
    PCG,
    REFINERS,
    Block,
    BlockRefiner,
    Distill,
    LayerRefiner,
    ModelRefiner,
    register_refiner,
)

__all__ = ["PCG", "REFINERS", "Block", "BlockRefiner", "Distill", "LayerRefiner", "ModelRefiner", "register_refiner"]
