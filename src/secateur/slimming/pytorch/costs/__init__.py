"""Cost models: what a torch model costs if its groups keep fewer units."""

from __future__ import annotations

from secateur.slimming.pytorch.costs.base import CostModel
from secateur.slimming.pytorch.costs.flops import FlopCost
from secateur.slimming.pytorch.costs.latency import LatencyCost
from secateur.slimming.pytorch.costs.weights import ByteCost, ParameterCost

__all__ = ["ByteCost", "CostModel", "FlopCost", "LatencyCost", "ParameterCost"]
