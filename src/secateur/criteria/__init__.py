"""The importance of each weight."""

from __future__ import annotations

from secateur.criteria.base import CRITERIA, BaseCriterion, elementwise, get_criterion, register_criterion
from secateur.criteria.gradient import Gradient
from secateur.criteria.magnitude import Magnitude
from secateur.criteria.movement import Movement
from secateur.criteria.random import Random
from secateur.criteria.snip import Snip, SnipMomentum
from secateur.criteria.taylor import Taylor

__all__ = [
    "CRITERIA",
    "BaseCriterion",
    "Gradient",
    "Magnitude",
    "Movement",
    "Random",
    "Snip",
    "SnipMomentum",
    "Taylor",
    "elementwise",
    "get_criterion",
    "register_criterion",
]
