"""Slimming: choose which units go, repair what reads them, and remove them, with proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from secateur.config import ConfigLike
from secateur.errors import ConfigError
from secateur.frameworks import import_leaf
from secateur.graph import Graph
from secateur.oneshot import Calibration, Execution
from secateur.slimming.budget import SlimBudget
from secateur.slimming.prune_request import read_request
from secateur.slimming.report import SlimmedGroup, SlimReport

__all__ = ["SlimReport", "SlimmedGroup", "slim"]

MODES = ("exact", "uniform")


def slim(
    model: Any,
    config: ConfigLike | None = None,
    *,
    calibration: Calibration | Iterable[Any] | None = None,
    solver: Any = None,
    refine: Any = (),
    allocation: Any = None,
    budget: Mapping[str, float] | SlimBudget | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    execution: Execution | None = None,
    example_inputs: Any = None,
    optimizer: Any | Iterable[Any] | None = None,
    graph: Graph | None = None,
    exclude: Iterable[str] = (),
    allow_inexact: bool = False,
    mode: Literal["exact", "uniform"] = "exact",
) -> SlimReport:
    """Make a model smaller and faster by removing channels, neurons and heads.

    With a configuration, the model is pruned first, as by `secateur.prune`: to its target sparsity, or to a budget.
    With calibration data, the solver chooses the units that the model misses least, and repairs what reads them.

    Without a configuration and a budget, units go that nothing reads any more, because all weights that read them are
    zero. Parameters, running statistics, and the attributes that describe them, such as ``out_features``, shrink
    together. Branches of residual networks that lose all their units go as a whole, and blocks without branches too.

    A torch module changes in place: its parameters are new objects; the optimizer gets them with their part of its
    state. A Keras model is built again from its configuration, with the weights that stay, and does not change. The new
    model is ``report.model``; it is an ordinary model that is saved and loaded as any other. Compile it to train it.

    Two checks on the example inputs, in evaluation mode, guard this. Before anything is cut, noise in the weights of
    all units that will go must not change the outputs, which shows that the graph misses no reader. After the cut, the
    outputs must be those of the masked model. If a check fails, the model is unchanged, bit for bit, and there is no
    new one.

    The code of a module may contain the size of a group as a number that no attribute has. The units of such a group
    stay, with a warning.

    Args:
        model: A torch module, which may be in training mode and stays in it; or a Sequential or functional Keras model.
        config: What to prune before: a `PruningConfig`, a mapping or a pattern, with the patterns ``"channels"`` and
            ``"heads"``. ``None``: nothing; under a budget, all heads and channels, and other settings may be given
            without a pattern, such as ``{"granularity": 32}``.
        calibration: For torch models: batches in the form that the model accepts; see `secateur.prune`. ``None``: units
            are ranked by the configured criterion alone.
        solver: Chooses the units: ``"osscar"``, ``"ziplm"``, ``"fisher"``, ``"taylor"``, ``"wanda"``, ``"magnitude"``
            or a solver object. ``None``: ``"osscar"`` with calibration data, else ``"magnitude"``.
        refine: Refiners that repair what stays, in order: ``"ridge"`` and ``"bias"`` (the layers that read the units),
            ``"block"`` (block by block), ``"distill"`` (the whole model), refiner objects, or a list of them.
        allocation: Without a budget: ``"uniform"``, every group is pruned to the target, or ``"global"``, one ranking
            of all units by what the model loses with them. ``None`` follows ``pruning_scope``.
        budget: How much of the model may remain: ``{"parameters": 0.8}``, ``{"flops": …}``, ``{"bytes": …}`` or
            ``{"latency": …}``, a share of the dense model's, or an absolute number above 1. Groups compete for it: each
            loses units where that costs least quality for what it saves. Latency is that of one call with the example
            inputs, measured on this machine with the present number of threads.
        loss: The loss whose gradients say what matters, a function of the model's outputs and the batch. ``None``: that
            of the model's outputs, or else how far they move.
        execution: Where and how a run with calibration data executes; see `secateur.prune`.
        example_inputs: Typical inputs of the model: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. For a Keras model: what it is called with. ``None``: the first batch of the calibration data.
        optimizer: The optimizer of a torch model, or several. Momentum and other state of the weights that stay is
            kept. An optimizer that is not given here still has the old parameters, and no longer trains the model.
        graph: The dependencies between the parameters. ``None``: trace them with the example inputs.
        exclude: Names of groups that keep all units, such as one whose size is a literal in the code of a module.
        allow_inexact: Whether to remove zero units also where that changes the outputs, because norms compute
            statistics over them. The report has the difference.
        mode: ``"exact"`` removes all zero units that the constraints of their group allow. ``"uniform"`` keeps zero
            units so that layers of the same kind keep equal widths, which the configuration of a transformers model
            can describe.

    Returns:
        What was removed, per group, why zero units stay, the differences that both checks measured, and how the budget
        was kept.

    Raises:
        CalibrationError: There are no example inputs, or the model fails with them.
        UnsupportedModelError: The model is neither a torch module nor a Keras model with a graph, or is quantized, on
            the meta device, compiled by `secateur.runtime`, in float16 on the CPU, wrapped for distributed training, or
            has adapters such as LoRA.
        StateError: A pruning run is active on the model, or the optimizer belongs to another model.
        LayerError: A check failed, or a Keras layer cannot be built again from its configuration.
        ConfigError: `mode` or a name in `exclude` is unknown, the configuration does not fit the model, or the budget
            is out of reach.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> with torch.no_grad():
        ...     model[2].weight[:, [1, 4]] = 0  # nothing reads these neurons
        >>> report = secateur.slim(model, example_inputs=torch.randn(2, 8))
        >>> report.removed_units, model[0].out_features, tuple(model[2].weight.shape)
        (2, 4, (3, 4))

        Under a budget, with calibration data:

        >>> layers = torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> batches = [torch.randn(64, 8) for _ in range(4)]
        >>> report = secateur.slim(model, budget={"parameters": 0.5}, calibration=batches)
        >>> report.weights, report.weights_before
        (375, 771)
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(map(repr, MODES))}, found {mode!r}.")
    pruning = {
        "calibration": calibration,
        "solver": solver,
        "refine": refine,
        "allocation": allocation,
        "loss": loss,
        "execution": execution,
    }
    report: SlimReport = import_leaf("secateur.slimming", model).slim(
        model,
        read_request(config, budget, pruning),
        example_inputs=example_inputs,
        optimizer=optimizer,
        graph=graph,
        exclude=exclude,
        allow_inexact=allow_inexact,
        mode=mode,
    )
    return report
