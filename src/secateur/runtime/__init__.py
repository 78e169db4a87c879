"""Run pruned models faster with sparse kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

from secateur._deprecated import serve_old_names
from secateur.errors import UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.runtime.report import BaselineReport, LayerReport, RuntimeReport

__all__ = ["BaselineReport", "CompileResult", "LayerReport", "RuntimeReport", "compile"]

__getattr__ = serve_old_names(
    __name__, {"Compiled": "secateur.runtime:CompileResult", "LayerRow": "secateur.runtime:LayerReport"}
)


class CompileResult(NamedTuple):
    """The result of `compile`.

    Attributes:
        model: The compiled model: the same object that was passed in.
        report: A report on its layers.
    """

    model: Any
    report: RuntimeReport

    def __str__(self) -> str:
        return str(self.report)


def compile(  # noqa: A001 - named like torch.compile
    model: Any,
    example_inputs: Any,
    *,
    int8: bool = False,
    cuda_graphs: bool = False,
    torch_compile: bool = False,
) -> CompileResult:
    """Replace the layers of a pruned model that run faster with a sparse kernel on this machine.

    Each layer with zeros is benchmarked against the sparse kernels that support its pattern, with inputs of the same
    shapes as when the model runs on the example inputs. On the CPU, the fastest kernel is then timed again inside calls
    of the whole model. A layer is replaced only if its kernel is faster, and no layer is replaced if the model as a
    whole does not get faster. The report shows the measurements and the decision for each layer, with the reason.
    Before anything is replaced, all outputs of the model are compared with those of the dense model. Layers that would
    change them stay dense.

    The report also shows what a dense model in bfloat16 achieves, and which option is fastest at each accuracy. For
    this, a float32 model is temporarily copied in bfloat16.

    Replaced layers free their dense weight. They only support inference: load weights and prune before you compile,
    because a replaced layer cannot be trained, loaded or exported.

    Args:
        model: A pruned torch module in evaluation mode. It is modified in place.
        example_inputs: Typical inputs of the model: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. Which kernel is fastest depends on their shapes: use 1 row for generating text, many rows for
            batches.
        int8: Whether weights on the CPU may be rounded to eight bits, with a scale per output channel, where that is
            faster. Outputs then change by a few tenths of a percent, and ``state_dict()`` returns the rounded weights.
        cuda_graphs: Whether you will run the model in CUDA graphs, for example with
            ``torch.compile(model, mode="reduce-overhead")``. Layers are then timed in graphs. Without graphs, launching
            a sparse product takes 0.1 to 1 ms, so only large products are faster.
        torch_compile: Whether the report also shows the dense model under ``torch.compile``, which takes from seconds
            to a few minutes and needs a C++ compiler. Models with more than 200 modules are not compiled.

    Returns:
        The compiled model and a report on its layers.

    Raises:
        UnsupportedModelError: The model is not a torch module.
        StateError: The model is in training mode.
        LayerError: The model has weights that are tensor subclasses, because it is sharded or quantized.
        ConfigError: `cuda_graphs` is set, and the model is not on a GPU.
        CalibrationError: The model fails with the example inputs, or they are not a tensor, tuple or mapping.

    Examples:
        >>> import torch, secateur, secateur.runtime
        >>> layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)
        >>> model = torch.nn.Sequential(*layers).eval()
        >>> pruned = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.9})
        >>> model, report = secateur.runtime.compile(model, torch.randn(16, 64))
        >>> [layer.name for layer in report.layers]
        ['0', '2']
    """
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError(
            "The runtime supports only torch modules, and this is a Keras model. Keras layers are not supported, even "
            "on the torch backend. Pass a torch.nn.Module."
        )
    from secateur.runtime.pytorch import compile_model

    return CompileResult(
        model, compile_model(model, example_inputs, int8=int8, cuda_graphs=cuda_graphs, torch_compile=torch_compile)
    )
