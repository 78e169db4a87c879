"""Refiners: each repairs what a solver leaves, with masks fixed."""

from __future__ import annotations

from secateur.oneshot.pytorch.refining.base import (
    REFINERS,
    BlockRefiner,
    LayerRefiner,
    ModelRefiner,
    Refiner,
    register_refiner,
)
from secateur.oneshot.pytorch.refining.block import Block
from secateur.oneshot.pytorch.refining.distill import Distill
from secateur.oneshot.pytorch.refining.pcg import PCG

__all__ = [
    "PCG",
    "REFINERS",
    "Block",
    "BlockRefiner",
    "Distill",
    "LayerRefiner",
    "ModelRefiner",
    "Refiner",
    "register_refiner",
]
