"""Pruning criteria: scores of the importance of each weight."""

from __future__ import annotations

from secateur._deprecated import serve_old_names
from secateur.criteria.base import CRITERIA, BaseCriterion, elementwise, get_criterion, register_criterion
from secateur.criteria.gradient import Gradient
from secateur.criteria.magnitude import MagnitudeCriterion
from secateur.criteria.mask_fisher import MaskFisher
from secateur.criteria.movement import Movement
from secateur.criteria.random import Random
from secateur.criteria.snip import Snip, SnipMomentum
from secateur.criteria.taylor import MaskGradient, Taylor

__getattr__ = serve_old_names(__name__, {"Magnitude": "secateur.criteria:MagnitudeCriterion"})

__all__ = [
    "CRITERIA",
    "BaseCriterion",
    "Gradient",
    "MagnitudeCriterion",
    "MaskFisher",
    "MaskGradient",
    "Movement",
    "Random",
    "Snip",
    "SnipMomentum",
    "Taylor",
    "elementwise",
    "get_criterion",
    "register_criterion",
]
