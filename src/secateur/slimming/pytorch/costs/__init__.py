"""Cost models: the cost of a torch model whose groups keep fewer units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.graph import Graph
from secateur.slimming.pytorch.costs.base import CostModel
from secateur.slimming.pytorch.costs.flops import FlopCost
from secateur.slimming.pytorch.costs.latency import LatencyCost
from secateur.slimming.pytorch.costs.weights import ByteCost, ParameterCost

__all__ = ["ByteCost", "CostModel", "FlopCost", "LatencyCost", "ParameterCost", "create_cost_model"]


def create_cost_model(
    quantity: str, model: nn.Module, graph: Graph, example_inputs: Any, lowest: Mapping[int, int]
) -> CostModel:
    """Create the cost model of a quantity.

    Args:
        quantity: A key of `secateur.slimming.budget.QUANTITIES`.
        model: The dense model.
        graph: Its dependencies.
        example_inputs: The inputs for which operations are counted and time is measured.
        lowest: Group index → the fewest units that it may keep, for each group that may lose units.
    """
    if quantity == "latency":
        return LatencyCost(model, graph, example_inputs, lowest)
    if quantity == "flops":
        return FlopCost(model, graph, example_inputs)
    return (ParameterCost if quantity == "parameters" else ByteCost)(model, graph, example_inputs)
