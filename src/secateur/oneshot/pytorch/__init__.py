"""Prune a torch model in one shot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from secateur.allocations import ALLOCATIONS, ReportedShares, Uniform
from secateur.config import ConfigLike, PruningConfig, make_config
from secateur.distributed.pytorch.ranks import Ranks
from secateur.distributed.pytorch.team import Team
from secateur.errors import CalibrationError, ConfigError
from secateur.frameworks.pytorch import unwrap_model
from secateur.masking.pytorch import ParameterWeight
from secateur.oneshot.calibration import Calibration
from secateur.oneshot.execution import Execution, Progress
from secateur.oneshot.magnitude import drop_schedule, find_gradient_criterion, prune_weights
from secateur.oneshot.pytorch.calibrated_run import CalibratedRun
from secateur.oneshot.pytorch.calibration.batches import move_to, read_batches
from secateur.oneshot.pytorch.calibration.calibration_loss import Loss
from secateur.oneshot.pytorch.gradient_run import GradientRun, refuse_without_gradients
from secateur.oneshot.pytorch.named_recipes import choose_members
from secateur.oneshot.pytorch.permutation.grouped_layers import refuse_patterns
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.storage.memory_errors import explain_out_of_memory
from secateur.oneshot.pytorch.units.unit_run import UnitRun, refuse_weight_files, removes_units
from secateur.planning import Plan
from secateur.planning.layer_selection import list_couplings
from secateur.planning.pytorch import needs_example_inputs, plan
from secateur.results import PruningReport

__all__ = ["is_leader", "join_team", "prune", "refuse_several", "split_calibration", "take_first_batch"]

SCOPES = {"uniform": "local", "global": "global"}
"""Allocation → the ``pruning_scope`` with the same effect without calibration data."""


def prune(
    model: nn.Module,
    config: ConfigLike,
    *,
    calibration: Calibration | Iterable[Any] | None = None,
    solver: Any = "magnitude",
    refine: Any = (),
    recipe: str | None = None,
    minutes: float | None = None,
    allocation: Any = None,
    execution: Execution | None = None,
    loss: Loss | None = None,
    example_inputs: Any = None,
    permute: bool = False,
) -> PruningReport:
    """See `secateur.prune`."""
    with join_team(calibration, execution) as team:
        config = make_config(config)
        has_units = bool(list_couplings(config))
        solver, refine = choose_members(recipe, minutes, solver, refine, has_units=has_units)
        needs_gradients = _needs_gradients(config, calibration, solver, loss, has_units=has_units)
        refuse_several(team, has_units=has_units, needs_gradients=needs_gradients)
        if has_units and execution is not None:
            refuse_weight_files(execution)
        if example_inputs is None and calibration is not None and needs_example_inputs(config):
            calibration, example_inputs = take_first_batch(model, calibration)
        make_plan = partial(plan, model, example_inputs=example_inputs, prune_frozen=True)
        if needs_gradients:
            options = {
                "recipe": recipe is not None,
                "solver": solver != "magnitude",
                "refine": refine not in ((), []),
                "execution": _has_settings(execution),
                "permute": permute,
            }
            refuse_without_gradients(config, {name for name, is_set in options.items() if is_set})
            progress = None if execution is None else execution.progress
            return _prune_by_gradients(model, config, make_plan, (calibration, loss, progress), allocation)
        if calibration is None and (scope := _find_scope(allocation)) is not None:
            config, allocation = config.model_copy(update={"pruning_scope": scope}), None
        if allocation is None:
            # With calibration data, scores of different layers are rarely comparable, so the default is local.
            is_global = config.pruning_scope == "global" and calibration is not None
            allocation = "global" if is_global else "uniform"
        method = replace(Recipe.from_names(solver, refine, allocation), loss=loss, minutes=minutes, permute=permute)
        method = replace(method, skips_blocks=recipe is not None)
        model_plan = make_plan(drop_schedule(config, default_scope=_choose_scope(method)))
        if calibration is None:
            method.refuse_without_data()
            if execution is not None:
                raise ConfigError(
                    "execution has no effect without calibration data. Pass calibration, or leave it out."
                )
            weights = {
                name: ParameterWeight(name, pattern) for pattern in model_plan.patterns for name in pattern.views
            }
            with torch.no_grad(), explain_out_of_memory():
                size = sum(weight.numel() for weight in unwrap_model(model).parameters())
                return prune_weights(model_plan, weights, size, source=method.target_source)
        batches, execution = split_calibration(calibration, execution)
        with explain_out_of_memory():
            if removes_units(model_plan):
                if permute:
                    refuse_patterns(model_plan.patterns)
                return UnitRun(model, model_plan, method, batches, execution).prune()
            return CalibratedRun(model, model_plan, method, batches, execution, team).prune()


def _find_scope(allocation: Any) -> str | None:
    """Return the ``pruning_scope`` that replaces an allocation without calibration data; ``None``: there is none."""
    for name, scope in SCOPES.items():
        if isinstance(allocation, ALLOCATIONS[name]) or (isinstance(allocation, str) and allocation == name):
            return scope
    return None


def _choose_scope(method: Recipe) -> Literal["global", "local"]:
    """Return the default scope of an allocation; global rankings bound the sparsity of each layer."""
    return "local" if isinstance(method.allocation, Uniform | ReportedShares) else "global"


@contextmanager
def join_team(calibration: Any, execution: Execution | None) -> Iterator[Team]:
    """Prune together with the other ranks of ``torch.distributed``, if data is to be divided among them."""
    team = Team(_find_ranks(calibration, execution))
    with team.work_together():
        team.gather(None)  # before anything else can fail
        yield team


def is_leader(calibration: Any, execution: Execution | None) -> bool:
    """Whether this process shows the progress: it prunes alone, or is rank 0."""
    return _find_ranks(calibration, execution).rank == 0


def _find_ranks(calibration: Any, execution: Execution | None) -> Ranks:
    settings = execution or (calibration.execution if isinstance(calibration, Calibration) else None)
    is_alone = calibration is None or (settings is not None and settings.processes == "one")
    return Ranks() if is_alone else Ranks.join()


def refuse_several(team: Team, *, has_units: bool, needs_gradients: bool) -> None:
    """Raise `ConfigError` if several processes cannot prune together in this way."""
    if team.size > 1 and (has_units or needs_gradients):
        what = "units of several layers, such as channels and heads," if has_units else "by gradients of a loss"
        raise ConfigError(
            f"{team.size} processes cannot prune {what} together. Prune in one process: pass "
            f"execution=Execution(processes='one'), or start without torchrun."
        )


def _needs_gradients(
    config: PruningConfig, calibration: Any, solver: Any, loss: Loss | None, *, has_units: bool
) -> bool:
    """Whether units are ranked by a criterion that needs gradients, rather than pruned by a solver."""
    if loss is not None:
        return calibration is None or solver == "magnitude" or not has_units
    return calibration is not None and solver == "magnitude" and find_gradient_criterion(config) is not None


def _prune_by_gradients(
    model: nn.Module,
    config: PruningConfig,
    make_plan: Callable[[PruningConfig], Plan],
    data: tuple[Any, Loss | None, Callable[[Progress], object] | None],
    allocation: Any,
) -> PruningReport:
    """Prune by a criterion that needs gradients, with calibration data, a loss, and a callback for progress."""
    calibration, loss, progress = data
    if calibration is None:
        raise CalibrationError("loss needs calibration data, found none. Pass calibration=batches.")
    scope = _find_scope(allocation)
    if allocation is not None and scope is None:
        raise ConfigError(
            f"allocation must be 'uniform' or 'global' if the criterion needs gradients, found {allocation!r}."
        )
    if scope is not None:
        config = config.model_copy(update={"pruning_scope": scope})
    model_plan = make_plan(drop_schedule(config, has_gradients=True))
    batches = calibration.batches if isinstance(calibration, Calibration) else calibration
    with explain_out_of_memory():
        return GradientRun(model, model_plan, batches, loss, progress).prune()


def _has_settings(execution: Execution | None) -> bool:
    """Whether execution settings are more than a callback for progress, or which processes prune."""
    return execution is not None and replace(execution, progress=None, processes="all") != Execution()


def take_first_batch(
    model: nn.Module, calibration: Calibration | Iterable[Any]
) -> tuple[Calibration | Iterable[Any], Any]:
    """Return the calibration data, and the arguments of the model in its first batch."""
    batches = calibration.batches if isinstance(calibration, Calibration) else calibration
    model = unwrap_model(model)
    if not isinstance(batches, torch.Tensor | Mapping | str):
        batches = list(batches)
    first = read_batches(model, batches[:1] if isinstance(batches, list) else batches)[0]
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    inputs = move_to(first.kwargs or first.args, device)
    return (replace(calibration, batches=batches) if isinstance(calibration, Calibration) else batches), inputs


def split_calibration(
    calibration: Calibration | Iterable[Any], execution: Execution | None
) -> tuple[Iterable[Any], Execution]:
    """Return the batches and the execution settings, which deprecated calls pass to `Calibration`."""
    if not isinstance(calibration, Calibration):
        return calibration, execution or Execution()
    if execution is not None and calibration.execution is not None:
        raise ConfigError(
            "execution is given twice: as an argument and in Calibration. Pass execution=Execution(...) only."
        )
    return calibration.batches, execution or calibration.execution or Execution()
