"""Replaced layers as an operator of torch, for graphs, modes and transforms."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch._C import _get_tracing_state
from torch.autograd import forward_ad

from secateur.errors import StateError

if TYPE_CHECKING:
    from secateur.runtime.pytorch.layers import OperatorLayer

__all__ = ["apply_layer", "handle_of", "is_strided", "refuse_export", "refuse_tracing", "unpack_weight"]

LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Handle → layer: a graph holds numbers and tensors, and a packed weight is neither."""

HANDLE_BITS = 62
"""Handles are random, so that a graph of another process never finds a layer of this one by accident."""

MAX_IMAGE_AXES = 4
"""Of a batch of images, which is the most that a convolution takes."""

PLAIN_TYPES = frozenset({torch.Tensor, nn.Parameter})

LIBRARY = torch.library.Library("secateur", "DEF")
LIBRARY.define("apply_layer(Tensor input, int layer) -> Tensor")
LIBRARY.define("unpack_weight(int layer) -> Tensor")

_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def handle_of(layer: nn.Module) -> int:
    """A number that means this layer for as long as it lives, and nothing in any other process."""
    number = secrets.randbits(HANDLE_BITS)
    LAYERS[number] = layer
    return number


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor is neither sparse nor nested, nor in the layout of a library."""
    try:
        return tensor.layout is torch.strided and not tensor.is_nested
    except RuntimeError:  # the layout of oneDNN has no name
        return False


def apply_layer(layer: OperatorLayer, tensor: torch.Tensor) -> torch.Tensor:
    """Apply a layer as one operator.

    Raises:
        StateError: A gradient or a tangent is asked for, or the call is exported.
        LayerError: The layer does not take the input.
    """
    refuse_tracing()
    if torch.compiler.is_compiling() or type(tensor) in PLAIN_TYPES or not isinstance(tensor, torch.Tensor):
        result: torch.Tensor = torch.ops.secateur.apply_layer(tensor, layer.handle)
        return result
    try:
        taken: torch.Tensor = torch.ops.secateur.apply_layer(tensor, layer.handle)
    except (NotImplementedError, TypeError):  # a subclass that knows a list of operators
        return layer.compute_densely(tensor)
    return taken


def unpack_weight(layer: OperatorLayer) -> torch.Tensor:
    """The dense weight, as one operator."""
    weight: torch.Tensor = torch.ops.secateur.unpack_weight(layer.handle)
    return weight


def refuse_tracing() -> None:
    """Raise the error while `torch.jit.trace` looks on."""
    if not torch.compiler.is_compiling() and _get_tracing_state() is not None:
        refuse_export()


def refuse_export() -> NoReturn:
    """Raise the error for programs that are to leave this process."""
    raise StateError(
        "A replaced layer cannot be exported, traced or scripted: its packed weight stays in this process. Export the "
        "model before it is compiled, and compile it where it runs."
    )


def _layer(handle: int) -> OperatorLayer:
    layer: OperatorLayer | None = LAYERS.get(handle)
    if layer is None:
        raise StateError(
            "This graph calls a replaced layer that is gone, or that belongs to another process. Trace the model again."
        )
    return layer


def _apply(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    result = _layer(handle).compute(tensor)
    return result.contiguous() if is_strided(result) else result


def _apply_below_autograd(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    """Refuse gradients and tangents."""
    if (tensor.requires_grad and torch.is_grad_enabled()) or _has_tangent(tensor):
        _layer(handle).refuse_gradients()
    with torch._C._AutoDispatchBelowAutograd():
        result: torch.Tensor = torch.ops.secateur.apply_layer(tensor, handle)
    return result


def _has_tangent(tensor: torch.Tensor) -> bool:
    if forward_ad._current_level < 0 or not is_strided(tensor):  # torch has no tangents of other layouts
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def _apply_below_autocast(device_type: str) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return outputs of autocast's type, as the dense layer does, and calculate in the layer's own."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def run(tensor: torch.Tensor, handle: int) -> torch.Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if not tensor.is_floating_point() or tensor.dtype is torch.float64:  # which autocast leaves alone
                untouched: torch.Tensor = torch.ops.secateur.apply_layer(tensor, handle)
                return untouched
            result: torch.Tensor = torch.ops.secateur.apply_layer(tensor.to(_layer(handle).dtype), handle)
            return result.to(torch.get_autocast_dtype(device_type))

    return run


def _output_of(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    """An empty tensor of the output's shape."""
    if _is_exporting():
        refuse_export()
    return tensor.new_empty(_layer(handle).output_shape(tensor.shape))


def _empty_weight(handle: int) -> torch.Tensor:
    if _is_exporting():
        refuse_export()
    layer = _layer(handle)
    return torch.empty(layer.dense_shape, dtype=layer.dtype, device=layer.device)


def _apply_to_batch(_: Any, in_dims: tuple[int | None, None], tensor: torch.Tensor, handle: int) -> tuple[Any, int]:
    """The rule for vmap: one more axis of rows or images."""
    stacked = tensor.movedim(in_dims[0] or 0, 0)
    if stacked.ndim <= MAX_IMAGE_AXES:
        return torch.ops.secateur.apply_layer(stacked, handle), 0
    result = torch.ops.secateur.apply_layer(stacked.flatten(0, 1), handle)
    return result.unflatten(0, stacked.shape[:2]), 0


LIBRARY.impl("apply_layer", _apply, "CompositeExplicitAutograd")
LIBRARY.impl("apply_layer", _apply, "NestedTensorCPU")
LIBRARY.impl("apply_layer", _apply_below_autograd, "Autograd")
LIBRARY.impl("apply_layer", _apply_below_autocast("cpu"), "AutocastCPU")
LIBRARY.impl("apply_layer", _apply_below_autocast("cuda"), "AutocastCUDA")
LIBRARY.impl("unpack_weight", lambda handle: _layer(handle).dense_weight(), "BackendSelect")
torch.library.register_fake("secateur::apply_layer", _output_of, lib=LIBRARY)
torch.library.register_fake("secateur::unpack_weight", _empty_weight, lib=LIBRARY)
torch.library.register_vmap("secateur::apply_layer", _apply_to_batch, lib=LIBRARY)
