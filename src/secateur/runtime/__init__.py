"""Pruned models that run faster, where they can."""

from __future__ import annotations

from typing import Any, NamedTuple

from secateur.errors import UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.runtime.report import LayerRow, RuntimeReport

__all__ = ["Compiled", "LayerRow", "RuntimeReport", "compile"]


class Compiled(NamedTuple):
    """What `compile` returns.

    Attributes:
        model: The model that was given.
        report: What became of its layers.
    """

    model: Any
    report: RuntimeReport


def compile(  # noqa: A001 - as torch calls it
    model: Any, example_inputs: Any, *, int8: bool = False, cuda_graphs: bool = False
) -> Compiled:
    """Exchange the layers of a pruned model that gain from it, for inference on the machine at hand.

    Every layer with zeros is timed as it is and in each way that its zeros allow, with inputs of the example's shapes;
    on the CPU, the best way once more within the model's own calls. The layer is exchanged if that is faster, and stays
    dense otherwise, as all do if the model as a whole is not faster; the report says which, by how much, and why. All
    outputs of the model are compared with those of the dense one first: layers that would change them stay dense.

    Replaced layers free their dense weight. Load or prune first: a replaced layer does not train, takes no other
    weights, and cannot be exported.

    Args:
        model: A torch module in evaluation mode, pruned; it is changed in place.
        example_inputs: What the model is called with: a tensor, a tuple of positional arguments, or a mapping of
            keyword arguments. Their shapes decide what is faster: 1 row for generating text, many for batches.
        int8: Whether weights on the CPU may be rounded to eight bits with a scale per output channel, where that is
            faster: fewer bytes, for outputs that change by some per mille. What ``state_dict()`` gives is then rounded
            too.
        cuda_graphs: Whether the model's calls will be captured in CUDA graphs, as by ``torch.compile`` with
            ``mode="reduce-overhead"``. Layers are then timed in graphs. Without them, making a call of a sparse product
            costs a GPU's user 0.1 to 1 ms, which only large products gain back.

    Returns:
        The model, and a report on its layers.

    Raises:
        UnsupportedModelError: It is no torch module.
        StateError: The model is in training mode.
        ConfigError: `cuda_graphs` is asked for, and the model is on no GPU.
        CalibrationError: The model refuses the example inputs, or they are of no kind that can be called.

    Example:
        >>> import torch, secateur, secateur.runtime
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
        >>> pruned = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.9})
        >>> model, report = secateur.runtime.compile(model, torch.randn(16, 64))
        >>> [row.name for row in report.layers]
        ['0', '2']
    """
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError(
            "The runtime serves torch modules, and this is a Keras model. On its torch backend, Keras layers are not "
            "served either."
        )
    from secateur.runtime.pytorch import compile_model

    return Compiled(model, compile_model(model, example_inputs, int8=int8, cuda_graphs=cuda_graphs))
