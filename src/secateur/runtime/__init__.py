"""Run pruned models faster with sparse kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

from secateur._deprecated import deprecated_getattr
from secateur.errors import UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.runtime.report import LayerReport, RuntimeReport

__all__ = ["CompileResult", "LayerReport", "RuntimeReport", "compile"]

__getattr__ = deprecated_getattr(
    __name__, {"Compiled": "secateur.runtime:CompileResult", "LayerRow": "secateur.runtime:LayerReport"}
)


class CompileResult(NamedTuple):
    """The result of `compile`.

    Attributes:
        model: The compiled model, which is the one that was passed in.
        report: What happened to its layers.
    """

    model: Any
    report: RuntimeReport


def compile(  # noqa: A001 - named like torch.compile
    model: Any, example_inputs: Any, *, int8: bool = False, cuda_graphs: bool = False
) -> CompileResult:
    """Replace the layers of a pruned model that run faster with a sparse kernel on this machine.

    Every layer with zeros is benchmarked against the sparse kernels that support its pattern, with inputs of the shapes
    that it gets from the example inputs; on the CPU, the fastest kernel is then timed again within the model's own
    calls. A layer is replaced only if that is faster, and no layer is if the model as a whole is not faster. The report
    says what was measured and decided for each layer, and why. All outputs of the model are compared with those of the
    dense model first: layers that would change them stay dense.

    Replaced layers free their dense weight. They are for inference: load weights and prune before you compile, because
    a replaced layer cannot be trained, loaded or exported.

    Args:
        model: A pruned torch module in evaluation mode, changed in place.
        example_inputs: Typical inputs of the model: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. Their shapes decide what is faster: 1 row for generating text, many for batches.
        int8: Whether weights on the CPU may be rounded to eight bits, with a scale per output channel, where that is
            faster. Outputs then change by a few tenths of a percent, and ``state_dict()`` returns the rounded weights.
        cuda_graphs: Whether the model's calls will be captured in CUDA graphs, as by ``torch.compile`` with
            ``mode="reduce-overhead"``. Layers are then timed in graphs. Without graphs, launching a sparse product
            takes 0.1 to 1 ms, so that only large products are faster.

    Returns:
        The model, and a report on its layers.

    Raises:
        UnsupportedModelError: The model is not a torch module.
        StateError: The model is in training mode.
        ConfigError: `cuda_graphs` is set, and the model is not on a GPU.
        CalibrationError: The model fails with the example inputs, or cannot be called with such a value.

    Example:
        >>> import torch, secateur, secateur.runtime
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
        >>> pruned = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.9})
        >>> model, report = secateur.runtime.compile(model, torch.randn(16, 64))
        >>> [layer.name for layer in report.layers]
        ['0', '2']
    """
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError(
            "The runtime supports torch modules, and this is a Keras model. Keras layers are not supported on Keras's "
            "torch backend either."
        )
    from secateur.runtime.pytorch import compile_model

    return CompileResult(model, compile_model(model, example_inputs, int8=int8, cuda_graphs=cuda_graphs))
