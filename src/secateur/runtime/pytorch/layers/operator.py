"""Layers that appear as a single operator in torch's graphs, modes and transforms."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch._C import _is_any_autocast_enabled, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from secateur.errors import LayerError, SecateurError, StateError
from secateur.runtime.pytorch.layers.base import (
    SparseLayer,
    detach_parameters,
    is_strided,
    refuse_export,
    refuse_tracing,
)

__all__ = ["NoMemoryError", "OperatorLayer"]

HANDLE_BITS = 62
"""Handles are random, so that a graph from another process does not match a layer of this process by accident."""

MAX_IMAGE_AXES = 4
"""Number of axes of a batch of images, which is the maximum for a convolution."""

PLAIN_TYPES = frozenset({torch.Tensor, nn.Parameter})

LIBRARY = torch.library.Library("secateur", "DEF")
LIBRARY.define("apply_layer(Tensor input, int layer) -> Tensor")
LIBRARY.define("unpack_weight(int layer) -> Tensor")

_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


class NoMemoryError(LayerError):
    """An input has no memory to read."""


class OperatorLayer(SparseLayer):
    """A layer that torch.compile sees as a single operator.

    Args:
        layer: The dense layer.
        device_name: Device of the weight, for error messages.

    Attributes:
        handle: Number that identifies this layer in graphs.
    """

    def __init__(self, layer: nn.Module, *, device_name: str) -> None:
        super().__init__(layer)
        weight, _ = detach_parameters(layer)
        self._dtype, self._device, self._device_name = weight.dtype, weight.device, device_name
        self.handle = _register(self)

    @property
    def dtype(self) -> torch.dtype:
        """See `SparseLayer.dtype`."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """See `SparseLayer.device`."""
        return self._device

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in the dense layer
        """Compute the outputs of the dense layer."""
        # Lazy tensors, subclasses, and traced or transformed tensors must go through torch's dispatcher. So do tensors
        # without an address, such as sparse tensors, after `multiply` has raised an error. The checks are inlined,
        # because a small product takes only 6 µs.
        if (
            type(input) is torch.Tensor
            and not is_dynamo_compiling()
            and not input.is_neg()
            and not _len_torch_dispatch_stack()
            and not _len_torch_function_stack()
            and peek_interpreter_stack() is None
            and forward_ad._current_level < 0
            and not _is_any_autocast_enabled()
        ):
            if input.requires_grad and torch.is_grad_enabled():
                return BackwardBarrier.compute(input, self)
            try:
                return self.multiply(input)
            except NoMemoryError:
                pass
            except SecateurError:
                raise
            except RuntimeError:
                pass
        return self._apply_operator(input)

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """Compute the outputs for a tensor of any layout. Only strided tensors use the packed weight.

        Raises:
            StateError: The input requires gradients.
            LayerError: The device, type or shape of the input does not match.
        """
        return self.multiply(tensor) if is_strided(tensor) else self.compute_densely(tensor)

    @abstractmethod
    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Compute the outputs for a strided tensor."""

    @abstractmethod
    def compute_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Compute the shape of the outputs from the shape of the inputs."""

    def trace_weight(self) -> torch.Tensor:
        """See `SparseLayer.trace_weight`."""
        weight: torch.Tensor = torch.ops.secateur.unpack_weight(self.handle)
        return weight

    def refuse_gradients(self) -> NoReturn:
        """Raise the error for inputs that require gradients or have tangents."""
        raise StateError(
            f"{type(self).__name__} is for inference and has no gradients or tangents. Call the model under "
            f"torch.no_grad() or torch.inference_mode(), and compute derivatives with the dense model, before you "
            f"compile it."
        )

    def _apply_operator(self, tensor: torch.Tensor) -> torch.Tensor:
        """Apply the layer as a single operator.

        Raises:
            StateError: The input requires gradients or has a tangent, or the model is being exported.
            LayerError: The layer does not support the input.
        """
        refuse_tracing()
        if torch.compiler.is_compiling() or type(tensor) in PLAIN_TYPES or not isinstance(tensor, torch.Tensor):
            result: torch.Tensor = torch.ops.secateur.apply_layer(tensor, self.handle)
            return result
        try:
            outputs: torch.Tensor = torch.ops.secateur.apply_layer(tensor, self.handle)
        except (NotImplementedError, TypeError):  # a subclass that supports a fixed list of operators
            return self.compute_densely(tensor)
        return outputs

    def _check_input(self, tensor: torch.Tensor, features: tuple[int, int], *, is_on_device: bool) -> None:
        """Raise an error if the layer does not support an input. `features` is the actual and the expected number."""
        if tensor.requires_grad and torch.is_grad_enabled():
            self.refuse_gradients()
        if not is_on_device or tensor.dtype is not self._dtype:
            raise LayerError(
                f"{type(self).__name__} needs inputs of {self._dtype} on {self._device_name}, found {tensor.dtype} on "
                f"{tensor.device}. Convert and move the model before you compile it."
            )
        if features[0] != features[1]:
            raise LayerError(
                f"{type(self).__name__} needs {features[1]} input features, found an input of shape "
                f"{tuple(tensor.shape)}."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = _register(self)


class BackwardBarrier(torch.autograd.Function):
    """Computes a layer for an input that requires a gradient, and raises an error only if the gradient is computed.

    So models can run without ``torch.no_grad()``, although their trainable embeddings make all activations require one.
    """

    @classmethod
    def compute(cls, tensor: torch.Tensor, layer: OperatorLayer) -> torch.Tensor:
        """Compute the outputs of a layer."""
        apply: Any = cls.apply  # not annotated
        outputs: torch.Tensor = apply(tensor, layer)
        return outputs

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, layer: OperatorLayer) -> torch.Tensor:
        """See `torch.autograd.Function.forward`."""
        ctx.layer = layer
        outputs: torch.Tensor = layer(tensor)  # gradients are disabled here
        return outputs

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> NoReturn:
        """See `torch.autograd.Function.backward`."""
        layer: OperatorLayer = ctx.layer
        layer.refuse_gradients()


LAYERS: WeakValueDictionary[int, OperatorLayer] = WeakValueDictionary()
"""Maps handles to layers. Graphs can only contain numbers and tensors, and a packed weight is neither."""


def _register(layer: OperatorLayer) -> int:
    """Register a layer for as long as it exists, and return its handle."""
    handle = secrets.randbits(HANDLE_BITS)
    LAYERS[handle] = layer
    return handle


def _get_layer(handle: int) -> OperatorLayer:
    layer = LAYERS.get(handle)
    if layer is None:
        raise StateError(
            "This graph calls a replaced layer that no longer exists, or that belongs to another process. Trace the "
            "model again."
        )
    return layer


def _apply(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    result = _get_layer(handle).compute(tensor)
    return result.contiguous() if is_strided(result) else result


def _apply_below_autograd(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    """Apply a layer below autograd, and raise an error for gradients and tangents."""
    if (tensor.requires_grad and torch.is_grad_enabled()) or _has_tangent(tensor):
        _get_layer(handle).refuse_gradients()
    with torch._C._AutoDispatchBelowAutograd():
        result: torch.Tensor = torch.ops.secateur.apply_layer(tensor, handle)
    return result


def _has_tangent(tensor: torch.Tensor) -> bool:
    if forward_ad._current_level < 0 or not is_strided(tensor):  # other layouts have no tangents
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def _make_autocast_rule(device_type: str) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Make the autocast rule: compute in the type of the layer, and return the type of autocast."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def apply(tensor: torch.Tensor, handle: int) -> torch.Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if not tensor.is_floating_point() or tensor.dtype is torch.float64:  # types that autocast does not convert
                unconverted: torch.Tensor = torch.ops.secateur.apply_layer(tensor, handle)
                return unconverted
            result: torch.Tensor = torch.ops.secateur.apply_layer(tensor.to(_get_layer(handle).dtype), handle)
            return result.to(torch.get_autocast_dtype(device_type))

    return apply


def _make_fake_outputs(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    """Make an empty tensor with the shape of the outputs."""
    if _is_exporting():
        refuse_export()
    return tensor.new_empty(_get_layer(handle).compute_output_shape(tensor.shape))


def _make_fake_weight(handle: int) -> torch.Tensor:
    if _is_exporting():
        refuse_export()
    layer = _get_layer(handle)
    return torch.empty(layer.dense_shape, dtype=layer.dtype, device=layer.device)


def _apply_to_batch(_: Any, in_dims: tuple[int | None, None], tensor: torch.Tensor, handle: int) -> tuple[Any, int]:
    """Apply a layer under `vmap`, which adds an axis to the inputs."""
    stacked = tensor.movedim(in_dims[0] or 0, 0)
    if stacked.ndim <= MAX_IMAGE_AXES:
        return torch.ops.secateur.apply_layer(stacked, handle), 0
    result = torch.ops.secateur.apply_layer(stacked.flatten(0, 1), handle)
    return result.unflatten(0, stacked.shape[:2]), 0


LIBRARY.impl("apply_layer", _apply, "CompositeExplicitAutograd")
LIBRARY.impl("apply_layer", _apply, "NestedTensorCPU")
LIBRARY.impl("apply_layer", _apply_below_autograd, "Autograd")
LIBRARY.impl("apply_layer", _make_autocast_rule("cpu"), "AutocastCPU")
LIBRARY.impl("apply_layer", _make_autocast_rule("cuda"), "AutocastCUDA")
LIBRARY.impl("unpack_weight", lambda handle: _get_layer(handle).unpack_weight(), "BackendSelect")
torch.library.register_fake("secateur::apply_layer", _make_fake_outputs, lib=LIBRARY)
torch.library.register_fake("secateur::unpack_weight", _make_fake_weight, lib=LIBRARY)
torch.library.register_vmap("secateur::apply_layer", _apply_to_batch, lib=LIBRARY)
