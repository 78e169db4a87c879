"""Record which linear layers of a torch model read the output of others, element by element."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateur.errors import UnsupportedModelError
from secateur.graph import Group, Role
from secateur.graph.pytorch import find_groups
from secateur.oneshot.pytorch.batches import explain_model_errors, move_to
from secateur.planning.pytorch import find_candidates

__all__ = ["find_attention", "find_consecutive_layers"]

ELEMENTWISE = frozenset(
    {"add", "div", "dropout", "elu", "erf", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish", "mul", "pow"}
    | {"radd", "relu", "relu6", "rmul", "sigmoid", "silu", "softplus", "square", "sub", "tanh", "threshold", "truediv"}
)
"""Operations after which each element still belongs to the channel that it came from."""

SHAPES = frozenset({"clone", "contiguous", "detach", "flatten", "float", "reshape", "to", "type", "type_as", "view"})
"""Operations that keep the channels if they keep the last axis."""

TOKENS = 16
"""Length of made-up sequences."""

IMAGE_SIZE = 64
"""Height and width of made-up images."""


class _ChannelTrace(TorchFunctionMode):
    """Follows the outputs of linear layers through elementwise operations, up to the next linear layer.

    Args:
        layers: Identity of a weight → name of its layer.

    Attributes:
        producers: Layer → the linear layers whose outputs it reads.
    """

    def __init__(self, layers: Mapping[int, str]) -> None:
        super().__init__()
        self.producers: dict[str, tuple[str, ...]] = {}
        self._layers = layers
        # The tensors are kept, so that their identities stay unique.
        self._origins: dict[int, tuple[torch.Tensor, tuple[str, ...]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        origins = self._find_origins(func, (*args, *kwargs.values()))
        output = func(*args, **kwargs)
        if isinstance(output, torch.Tensor) and origins and self._keeps_channels(func, args, output):
            self._origins[id(output)] = (output, origins)
        elif isinstance(output, torch.Tensor) and getattr(func, "__name__", "").rstrip("_") == "copy":
            self._origins.pop(id(output), None)
        return output

    def _find_origins(self, func: Any, values: tuple[Any, ...]) -> tuple[str, ...]:
        name = getattr(func, "__name__", "").strip("_")
        if name in ELEMENTWISE or name in SHAPES:
            tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim > 0]
            origins = [self._origins[id(tensor)][1] for tensor in tensors if id(tensor) in self._origins]
            same = len(origins) == len(tensors)
            return tuple(dict.fromkeys(layer for names in origins for layer in names)) if same else ()
        call = {"linear": (0, 1), "addmm": (1, 2)}.get(name)
        if call is None or len(values) <= call[1] or id(values[call[1]]) not in self._layers:
            return ()
        layer = self._layers[id(values[call[1]])]
        if (found := self._origins.get(id(values[call[0]]))) is not None:
            self.producers[layer] = tuple(dict.fromkeys((*self.producers.get(layer, ()), *found[1])))
        return (layer,)

    def _keeps_channels(self, func: Any, args: tuple[Any, ...], output: torch.Tensor) -> bool:
        name = getattr(func, "__name__", "").strip("_")
        return name not in SHAPES or args[0].shape[-1:] == output.shape[-1:]


def find_attention(model: nn.Module) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the names of the query, key and value projections, and of the output projection, of each attention."""
    return [
        (_list_layers(group, Role.PRODUCER), _list_layers(group, Role.CONSUMER))
        for group in find_groups(model, "heads")
    ]


def _list_layers(group: Group, role: Role) -> tuple[str, ...]:
    names = [member.parameter.rpartition(".")[0] for member in group.members if member.role is role]
    return tuple(dict.fromkeys(names))


def find_consecutive_layers(model: nn.Module, batches: Iterable[Any] | None) -> dict[str, tuple[str, ...]]:
    """Return layer → the linear layers whose outputs it reads, in the order of the model; output layers are left out.

    Args:
        model: The model.
        batches: Batches that it accepts; ``None``: make up inputs.

    Raises:
        CalibrationError: The model does not run on the inputs.
    """
    outputs = {candidate.name for candidate in find_candidates(model, prune_frozen=True) if candidate.is_output}
    weights = {
        id(module.weight): name
        for name, module in model.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D", "NonDynamicallyQuantizableLinear"}
    }
    trace = _ChannelTrace(weights)
    batch = _create_inputs(model) if batches is None else next(iter(batches), None)
    device = next(model.parameters()).device
    source = "made-up inputs (pass a dataloader whose batches the model accepts)" if batches is None else "first batch"
    with _evaluate(model), torch.no_grad(), explain_model_errors(source), trace:
        _call(model, move_to(batch, device))
    return {name: trace.producers[name] for name in weights.values() if name in trace.producers and name not in outputs}


@contextmanager
def _evaluate(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _call(model: nn.Module, batch: Any) -> None:
    """Call the model with a batch, whose labels, if any, are left out."""
    if isinstance(batch, Mapping):
        model(**{name: value for name, value in batch.items() if name != "labels"})
    elif isinstance(batch, list | tuple):
        model(batch[0])
    else:
        model(batch)


def _create_inputs(model: nn.Module) -> Any:
    """Make up inputs that suit the first layer of a model."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return torch.ones((1, TOKENS), dtype=torch.int64)
        if isinstance(module, nn.Linear):
            return torch.ones((1, module.in_features), dtype=module.weight.dtype)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            axes = len(module.kernel_size)
            return torch.ones((1, module.in_channels, *([IMAGE_SIZE] * axes)), dtype=module.weight.dtype)
    raise UnsupportedModelError("The model must begin with an embedding, a linear layer or a convolution.")
