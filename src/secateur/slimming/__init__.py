"""Slimming: choose units, repair the layers that read them, remove the units, and verify the outputs."""

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
    With calibration data, the solver chooses the units that matter least, and repairs the layers that read them.
    Without a configuration and a budget, only units that nothing reads are removed, because all weights that read them
    are zero. Parameters, running statistics, and the attributes that describe them, such as ``out_features``, shrink
    together. Branches of residual networks that lose all their units are removed as a whole, and so are blocks without
    branches.

    A torch module is modified in place. Its parameters are new objects, which the optimizer receives with their part of
    its state. A Keras model is not modified: it is rebuilt from its configuration, with the kept weights. The new
    model, ``report.model``, is an ordinary model that is saved and loaded like any other. Compile it to train it.

    Two checks on the example inputs, in evaluation mode, verify the removal. Before anything is cut, noise in the
    weights of all units to remove must not change the outputs, which shows that the graph misses no reader. After the
    cut, the outputs must equal those of the masked model. If a check fails, the model is unchanged, bit for bit, and no
    new model is returned.

    If the code of a module contains the size of a group as a literal number, the units of that group are kept, with a
    warning.

    Args:
        model: A torch module, which may be in training mode and stays in it; or a Sequential or functional Keras model.
        config: What to prune first: a `PruningConfig`, a mapping or a pattern, with the patterns ``"channels"`` and
            ``"heads"``. ``None``: nothing; under a budget, all heads and channels, and other settings may be given
            without a pattern, such as ``{"granularity": 32}``.
        calibration: For torch models: batches in the form that the model accepts; see `secateur.prune`. ``None``: units
            are ranked by the configured criterion alone.
        solver: Chooses the units: ``"osscar"``, ``"ziplm"``, ``"fisher"``, ``"taylor"``, ``"wanda"``, ``"magnitude"``
            or a solver object. ``None``: ``"osscar"`` with calibration data, else ``"magnitude"``.
        refine: Refiners that repair the kept weights, in order: ``"ridge"`` and ``"bias"`` (the layers that read the
            units), ``"block"`` (block by block), ``"distill"`` (the whole model), refiner objects, or a list of them.
        allocation: Without a budget: ``"uniform"``, every group is pruned to the target, or ``"global"``, one ranking
            of all units by their effect on the loss. ``None`` follows ``pruning_scope``.
        budget: How much of the model may remain: ``{"parameters": 0.8}``, ``{"flops": …}``, ``{"bytes": …}`` or
            ``{"latency": …}``, a share of the dense model, or an absolute number above 1. All groups compete for it:
            units are removed where this saves the most for the smallest loss. Latency is the time of one call with the
            example inputs, measured on this machine with the current number of threads.
        loss: The loss whose gradients rank units, a function of the model's outputs and the batch. ``None``: the loss
            that the model returns, or else the change of its outputs.
        execution: Where and how a run with calibration data executes; see `secateur.prune`.
        example_inputs: Typical inputs of the model: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. For a Keras model: what it is called with. ``None``: the first batch of the calibration data.
        optimizer: The optimizer of a torch model, or several. Momentum and other state of the kept weights is
            preserved. Any other optimizer still refers to the old parameters, and no longer trains the model.
        graph: The dependencies between the parameters. ``None``: trace them with the example inputs.
        exclude: Names of groups that keep all units, such as one whose size is a literal in the code of a module.
        allow_inexact: Whether to remove zero units even where this changes the outputs, because norms compute
            statistics over them. The report shows the difference.
        mode: ``"exact"`` removes all zero units that the constraints of their group allow. ``"uniform"`` keeps zero
            units so that layers of the same kind keep equal widths, which the configuration of a transformers model
            can describe.

    Returns:
        What was removed, per group, why zero units were kept, the differences that both checks measured, and how the
        budget was met.

    Raises:
        CalibrationError: There are no example inputs, or the model fails with them.
        UnsupportedModelError: The model is neither a torch module nor a Keras model with a graph, or is quantized, on
            the meta device, compiled by `secateur.runtime`, in float16 on the CPU, wrapped for distributed training, or
            has adapters such as LoRA.
        StateError: A pruning run is active on the model, or the optimizer belongs to another model.
        LayerError: A check failed, or a Keras layer cannot be rebuilt from its configuration.
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
