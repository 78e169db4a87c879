"""Build the dependency graph of a model of any framework."""

from __future__ import annotations

from typing import Any

from secateur.frameworks import import_leaf
from secateur.graph.graph import Graph

__all__ = ["trace"]


def trace(model: Any, example_inputs: Any = None) -> Graph:
    """Find which parts of a model's parameters can only be removed together.

    The indices of its parameters are followed through every operation: those that a torch model runs on the example
    inputs, or those of the graph of a Keras model. An operation without a rule is a barrier: units that reach it are
    never pruned, and the reason names its location.

    Args:
        model: A torch module or a Keras model. It is not changed. A Keras model with a custom call method is a barrier
            as a whole.
        example_inputs: One batch: a tensor, a tuple of positional arguments, or a mapping of named ones. The batch
            should have at least two examples, and sizes that differ from the numbers of channels of the model. A Keras
            model needs none, unless it accepts only some of the sizes that its inputs leave open.

    Returns:
        The groups of units, whether or not they can be pruned; a group that cannot has a `reason`.

    Raises:
        CalibrationError: A torch model has no example inputs, or the model does not accept them.
        UnsupportedModelError: The model has no values, as on the meta device, is not built, or its framework is not
            supported.

    Examples:
        >>> import torch
        >>> from secateur import graph
        >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> dependencies = graph.trace(torch.nn.Sequential(*layers), torch.randn(2, 4))
        >>> for group in dependencies.groups:
        ...     print(group.name, group.units, group.reason)
        0 8 None
        0 (2) 4 aten.linear in '0' combines them with a tensor of constant size, such as an input of the model
        2 3 the model returns them
    """
    found: Graph = import_leaf("secateur.graph", model).trace(model, example_inputs)
    return found
