"""Prune a torch model, to a target or under a budget, and remove what was pruned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateur import graph as graph_package
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Graph
from secateur.oneshot.magnitude import drop_schedule
from secateur.oneshot.pytorch import join_team, prune, refuse_several, split_calibration, take_first_batch
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.storage.memory_errors import explain_out_of_memory
from secateur.oneshot.pytorch.units.unit_run import UnitRun
from secateur.planning.pytorch import plan
from secateur.results import PruningReport
from secateur.slimming.budget_config import make_budget_config
from secateur.slimming.prune_request import PruneRequest
from secateur.slimming.pytorch.budgets.budget_choice import BudgetChoice
from secateur.slimming.pytorch.budgets.budget_fitting import FittedBudget
from secateur.slimming.pytorch.checks import refuse_model, refuse_wrappers
from secateur.slimming.pytorch.optimizer_state import list_optimizers
from secateur.slimming.pytorch.zero_units import remove_units
from secateur.slimming.report import SlimReport
from secateur.slimming.selection import exclude_groups

__all__ = ["prune_and_remove"]


def prune_and_remove(
    model: nn.Module,
    request: PruneRequest,
    *,
    example_inputs: Any,
    graph: Graph | None,
    exclude: Iterable[str],
    **options: Any,
) -> SlimReport:
    """Prune a model as requested, and remove the pruned units. A failure leaves the model as it was.

    Args:
        model: The model.
        request: How to prune.
        example_inputs: See `secateur.slim`; ``None``: the first batch of the calibration data.
        graph: See `secateur.slim`.
        exclude: See `secateur.slim`.
        options: More arguments of `remove_units`: the optimizer and the mode among them.
    """
    refuse_wrappers(model)
    inner = unwrap_model(model)
    refuse_model(inner)
    list_optimizers(inner, options["optimizer"])
    if example_inputs is None and request.calibration is not None:
        calibration, example_inputs = take_first_batch(inner, request.calibration)
        request = replace(request, calibration=calibration)
    if graph is None:
        graph = graph_package.trace(inner, example_inputs)
    graph = exclude_groups(graph, exclude)
    with _restore_after_failure(inner):
        pruning, fitted = _prune(inner, request, graph, example_inputs, is_uniform=options["mode"] == "uniform")
        report = remove_units(model, example_inputs=example_inputs, graph=graph, **options)
    return replace(report, pruning=pruning, budget=None if fitted is None else fitted.describe())


def _prune(
    model: nn.Module, request: PruneRequest, graph: Graph, example_inputs: Any, *, is_uniform: bool
) -> tuple[PruningReport, FittedBudget | None]:
    if request.budget is None:
        assert request.config is not None
        report = prune(
            model,
            request.config,
            calibration=request.calibration,
            solver=request.solver,
            refine=request.refine,
            allocation=request.allocation,
            execution=request.execution,
            loss=request.loss,
            example_inputs=graph,
        )
        return report, None
    assert request.calibration is not None
    with join_team(request.calibration, request.execution) as team:
        refuse_several(team, has_units=True, needs_gradients=False)
    batches, execution = split_calibration(request.calibration, request.execution)
    config = drop_schedule(make_budget_config(request.config, graph))
    model_plan = plan(model, config, example_inputs=graph, prune_frozen=True)
    choice = BudgetChoice(model, graph, model_plan, request.budget, example_inputs, is_uniform=is_uniform)
    recipe = replace(Recipe.from_names(request.solver, request.refine), loss=request.loss)
    with explain_out_of_memory():
        run = UnitRun(model, model_plan, recipe, batches, execution, choose_counts=choice.choose_counts)
        run.identity = str(request.budget)
        return run.prune(), choice.fitted


@contextmanager
def _restore_after_failure(model: nn.Module) -> Iterator[None]:
    """Restore the values of all parameters and buffers if this context fails."""
    tensors = [*model.parameters(), *model.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        raise
