"""Slimming: physically remove units that pruning has set to zero, with proof that the model computes the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from secateur.errors import ConfigError
from secateur.frameworks import import_leaf
from secateur.graph import Graph
from secateur.slimming.report import SlimmedGroup, SlimReport

__all__ = ["SlimReport", "SlimmedGroup", "slim"]

MODES = ("exact", "uniform")


def slim(
    model: Any,
    *,
    example_inputs: Any,
    optimizer: Any | Iterable[Any] | None = None,
    graph: Graph | None = None,
    exclude: Iterable[str] = (),
    allow_inexact: bool = False,
    mode: Literal["exact", "uniform"] = "exact",
) -> SlimReport:
    """Remove the units of a model that nothing reads any more: channels, neurons and heads.

    A unit goes if all weights that read it are zero, as after pruning with the pattern ``"channels"`` or ``"heads"``.
    Parameters, running statistics, and the attributes that describe them, such as ``out_features``, shrink together.

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
        example_inputs: Typical inputs of the model: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. For a Keras model: what it is called with.
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
        What was removed, per group, why zero units stay, and the differences that both checks measured.

    Raises:
        CalibrationError: There are no example inputs, or the model fails with them.
        UnsupportedModelError: The model is neither a torch module nor a Keras model with a graph, or is quantized, on
            the meta device, compiled by `secateur.runtime`, in float16 on the CPU, wrapped for distributed training, or
            has adapters such as LoRA.
        StateError: A pruning run is active on the model, or the optimizer belongs to another model.
        LayerError: A check failed, or a Keras layer cannot be built again from its configuration.
        ConfigError: `mode` or a name in `exclude` is unknown.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> with torch.no_grad():
        ...     model[2].weight[:, [1, 4]] = 0  # nothing reads these neurons
        >>> report = secateur.slim(model, example_inputs=torch.randn(2, 8))
        >>> report.removed_units, model[0].out_features, tuple(model[2].weight.shape)
        (2, 4, (3, 4))
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(map(repr, MODES))}, found {mode!r}.")
    report: SlimReport = import_leaf("secateur.slimming", model).slim(
        model,
        example_inputs=example_inputs,
        optimizer=optimizer,
        graph=graph,
        exclude=exclude,
        allow_inexact=allow_inexact,
        mode=mode,
    )
    return report
