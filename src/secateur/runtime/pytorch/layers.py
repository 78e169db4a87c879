"""Layers that hold their pruned weight without its zeros."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from torch._C import _is_any_autocast_enabled, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import functional

from secateur.errors import LayerError, SecateurError, StateError
from secateur.runtime.kernels import OVERREAD_FLOATS, ConvolutionWindow, PackedMatrix, get_window
from secateur.runtime.pytorch.borrowing import borrow_threads_of_torch
from secateur.runtime.pytorch.operator import (
    apply_layer,
    handle_of,
    is_strided,
    refuse_export,
    refuse_tracing,
    unpack_weight,
)
from secateur.runtime.pytorch.packed_tensor import PackedTensor, refuse_write

__all__ = ["ExchangedLayer", "OperatorLayer", "PackedLayer", "SparseConv2d", "SparseLinear", "parts"]

borrow_threads_of_torch()

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""torch's types → the kernels' names of them."""

MOST_CALLS = 256
"""Shapes of inputs for which a layer remembers how it is called: Python would else take longer than a small product."""

IMAGE_AXES = 3
"""Of one image: channels, height and width."""

Made = TypeVar("Made", bound=Callable[..., Any])


def parts(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A layer's weight and bias, detached from autograd."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    return weight.detach(), None if bias is None else bias.detach()


class NoMemoryError(LayerError):
    """An input has no memory to read."""


def allocated(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is known not to be in memory, such as one of torch's lazy zeros, in memory."""
    if tensor.numel() and not tensor._is_zerotensor():
        raise NoMemoryError(f"an input of shape {tuple(tensor.shape)} has no memory. Pass a tensor with values.")
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class ExchangedLayer(nn.Module, ABC):
    """A layer for inference that stands in the place of a dense one.

    Its state is that of the dense layer: ``state_dict()`` unpacks the weight. Other attributes, such as
    ``in_features`` or ``stride``, are those of the dense layer.

    Args:
        layer: The dense layer.

    Attributes:
        dense_shape: Shape of the weight before.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in layer.__dict__.items() if name not in self.__dict__})
        self.dense_shape = tuple(parts(layer)[0].shape)
        self.train(layer.training)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the weight, and of what it is multiplied with."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weight is."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of what is left of the weight."""

    @abstractmethod
    def dense_weight(self) -> torch.Tensor:
        """The weight with its zeros, as the dense layer had it."""

    @abstractmethod
    def dense_bias(self) -> torch.Tensor | None:
        """The bias as the dense layer had it; ``None``: there is none."""

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, read-only: its shape, type and device cost nothing, and its values are unpacked."""
        if torch.compiler.is_compiling():
            return self.traced_weight()
        like = torch.empty(self.dense_shape, dtype=self.dtype, device="meta")
        return PackedTensor(self.dense_weight, like, self.device)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, read-only."""
        bias = self.dense_bias()
        if bias is None or torch.compiler.is_compiling():
            return bias
        return PackedTensor(lambda: bias, bias, bias.device)

    @abstractmethod
    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """The outputs, by a product with the unpacked weight."""

    def compute_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the dense layer makes of a sparse, nested or otherwise unusual tensor.

        Raises:
            LayerError: torch has no dense product for it either.
        """
        try:
            return self.multiply_densely(tensor)
        except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            said = str(error).partition("\n")[0]
            raise LayerError(f"{type(self).__name__} does not take such a {type(tensor).__name__}: {said}") from error

    def traced_weight(self) -> torch.Tensor:
        """The dense weight in a graph of torch.compile."""
        return self.dense_weight()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in {"weight", "bias"}:
            refuse_write()
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """See `torch.nn.Module.register_parameter`; not for the weight and the bias."""
        if name in {"weight", "bias"}:
            refuse_write()
        super().register_parameter(name, param)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_export()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002 - torch's
        destination[f"{prefix}weight"] = self.dense_weight()
        if (bias := self.dense_bias()) is not None:
            destination[f"{prefix}bias"] = bias

    def _load_from_state_dict(self, *_: Any) -> None:
        raise StateError(
            f"{type(self).__name__} holds its weight packed, and takes no other. Load the state into the model before "
            f"it is compiled."
        )


class OperatorLayer(ExchangedLayer):
    """One that torch.compile sees as a single operator.

    Args:
        layer: The dense layer.
        place: Where its weight is, as a person says it.

    Attributes:
        handle: A number that means this layer.
    """

    def __init__(self, layer: nn.Module, *, place: str) -> None:
        super().__init__(layer)
        weight, _ = parts(layer)
        self._dtype, self._device, self._place = weight.dtype, weight.device, place
        self.handle = handle_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """See `ExchangedLayer.dtype`."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """See `ExchangedLayer.device`."""
        return self._device

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as the dense layer names it
        """The outputs of the dense layer."""
        # Lazy tensors, subclasses and whatever is traced, watched or transformed must go through torch's dispatcher.
        # What has no address, such as a sparse tensor, raises. No function is called: a small product takes 6 µs.
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
            try:
                return self.multiply(input)
            except NoMemoryError:
                pass
            except SecateurError:
                raise
            except RuntimeError:
                pass
        return apply_layer(self, input)

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """The outputs for a tensor of strided memory, or of a layout that only the dense product takes.

        Raises:
            StateError: The input asks for gradients.
            LayerError: It is elsewhere, or of another type or shape.
        """
        return self.multiply(tensor) if is_strided(tensor) else self.compute_densely(tensor)

    @abstractmethod
    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same for strided memory."""

    @abstractmethod
    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the outputs for inputs of a shape."""

    def traced_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.traced_weight`."""
        return unpack_weight(self)

    def refuse_gradients(self) -> NoReturn:
        """Raise the error for inputs that ask for gradients or have tangents."""
        raise StateError(
            f"{type(self).__name__} is for inference and has no gradients. Call the model under torch.no_grad() "
            f"or torch.inference_mode()."
        )

    def _refuse(self, tensor: torch.Tensor, features: tuple[int, int], *, is_here: bool) -> None:
        """Refuse inputs that it cannot take; `features`: how many they have, and how many it needs."""
        if tensor.requires_grad and torch.is_grad_enabled():
            self.refuse_gradients()
        if not is_here or tensor.dtype is not self._dtype:
            raise LayerError(
                f"{type(self).__name__} needs inputs of {self._dtype} on {self._place}, found {tensor.dtype} on "
                f"{tensor.device}. Convert and move the model before it is compiled."
            )
        if features[0] != features[1]:
            raise LayerError(
                f"{type(self).__name__} needs {features[1]} input features, found an input of shape "
                f"{tuple(tensor.shape)}."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = handle_of(self)


class PackedLayer(OperatorLayer):
    """One whose weight a kernel reads.

    Args:
        layer: The dense layer.
        matrix: Its weight, packed as (O, F): output channels × what one output reads.

    Attributes:
        matrix: The packed weight.
    """

    def __init__(self, layer: nn.Module, matrix: PackedMatrix) -> None:
        super().__init__(layer, place="the CPU")
        _, bias = parts(layer)
        self.matrix = matrix
        self.has_bias = bias is not None
        # No buffer: kernels read its address, and `Module.to` would put it elsewhere or make it another type.
        empty = torch.zeros(matrix.shape[0], dtype=torch.float32, device="cpu")
        self._bias = empty if bias is None else bias.float().contiguous().clone()
        self._calls: dict[Hashable, Callable[..., Any]] = {}

    def dense_bias(self) -> torch.Tensor | None:
        """See `ExchangedLayer.dense_bias`."""
        return self._bias.to(self._dtype) if self.has_bias else None

    @property
    def nbytes(self) -> int:
        """See `ExchangedLayer.nbytes`."""
        return self.matrix.nbytes

    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiply`; inputs have shape (…, F)."""
        call = self._calls.get((tensor.shape, tensor.dtype, torch.get_num_threads()))
        if call is None or not tensor.is_cpu or (tensor.requires_grad and torch.is_grad_enabled()):
            call = self._call_for(tensor)
        return call(tensor)

    def _call_for(self, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What multiplies rows of this shape and type on as many threads as there are."""
        *leading, features = rows.shape or (0,)
        outputs, inputs = self.matrix.shape
        refuse_tracing()
        self._refuse(rows, (features, inputs), is_here=rows.is_cpu)
        shape, dtype, threads = (*leading, outputs), self._dtype, torch.get_num_threads()
        product = self.matrix.compile_product(math.prod(leading), activations=NAMES[dtype], threads=threads)
        bias = self._bias.data_ptr()

        def call(rows: torch.Tensor) -> torch.Tensor:
            flat, result = rows.contiguous(), rows.new_empty(shape)  # faster than torch.empty
            if not (address := flat.data_ptr()):
                flat = allocated(flat)
                address = flat.data_ptr()
            product(bias, address, result.data_ptr())
            return result

        return self._remembered((rows.shape, dtype, threads), call)

    def _remembered(self, key: Hashable, call: Made) -> Made:
        if len(self._calls) >= MOST_CALLS:
            self._calls.clear()
        self._calls[key] = call
        return call

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_calls": {}}

    def extra_repr(self) -> str:
        """Shape, pattern and bytes."""
        return f"{self.matrix.shape[1]}, {self.matrix.shape[0]}, {self.matrix.pattern}, {self.matrix.nbytes:,} bytes"


class SparseLinear(PackedLayer):
    """In the place of ``nn.Linear``, or of transformers' ``Conv1D``, which stores its weight transposed.

    Args:
        layer: The dense layer.
        matrix: Its weight.
        is_transposed: Whether the dense weight is (I, O).
    """

    def __init__(self, layer: nn.Module, matrix: PackedMatrix, *, is_transposed: bool = False) -> None:
        super().__init__(layer, matrix)
        self.is_transposed = is_transposed
        self.out_features, self.in_features = matrix.shape

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `ExchangedLayer.multiply_densely`."""
        weight = self.dense_weight()
        return functional.linear(tensor, weight.T if self.is_transposed else weight, self.dense_bias())

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `OperatorLayer.output_shape`."""
        return *shape[:-1], self.matrix.shape[0]

    def dense_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.dense_weight`."""
        dense = torch.from_numpy(self.matrix.to_dense()).to(self.dtype)
        return dense.T.contiguous() if self.is_transposed else dense


class SparseConv2d(PackedLayer):
    """In the place of ``nn.Conv2d`` of one group.

    Args:
        layer: The dense layer.
        matrix: Its weight as (O, K·I), kernel positions first.
    """

    def __init__(self, layer: nn.Conv2d, matrix: PackedMatrix) -> None:
        super().__init__(layer, matrix)
        self.out_channels, self.in_channels = layer.out_channels, layer.in_channels
        self.kernel_size, self.stride, self.dilation = (
            (down, across) for down, across in (layer.kernel_size, layer.stride, layer.dilation)
        )
        # The convolution itself keeps its padding in the form that `functional.pad` takes.
        self._margins = tuple(layer._reversed_padding_repeated_twice)
        self._mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiply`; images have shape (B, I, H, W) or (I, H, W)."""
        return self._convolve(tensor[None])[0] if tensor.ndim == IMAGE_AXES else self._convolve(tensor)

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `ExchangedLayer.multiply_densely`."""
        padded = functional.pad(tensor, self._margins, mode=self._mode) if any(self._margins) else tensor
        weight, bias = self.dense_weight(), self.dense_bias()
        return functional.conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `OperatorLayer.output_shape`."""
        *batch, _, height, width = shape
        size = self._padded(height, width)
        window = ConvolutionWindow(self.in_channels, size, self.kernel_size, self.stride, self.dilation)
        return *batch, self.out_channels, window.height, window.across

    def _convolve(self, images: torch.Tensor) -> torch.Tensor:
        """Images of shape (B, I, H, W) to outputs of shape (B, O, H', W')."""
        refuse_tracing()
        channels = images.shape[1] if images.ndim == IMAGE_AXES + 1 else -1
        self._refuse(images, (channels, self.in_channels), is_here=images.is_cpu)
        size = self._padded(*images.shape[2:])
        window = get_window(self.in_channels, size, self.kernel_size, self.stride, self.dilation)
        if min(window.height, window.across) < 1:
            raise LayerError(
                f"a kernel of {self.kernel_size} with dilation {self.dilation} does not fit into padded images of "
                f"{window.size}; the input has shape {tuple(images.shape)}."
            )
        if self.kernel_size == (1, 1):
            return self._pointwise(images)
        return self._planar(self._planes(images, window), len(images), window).to(images.dtype)

    def _pointwise(self, images: torch.Tensor) -> torch.Tensor:
        """The same for a kernel of one pixel, which sees an image as one line."""
        (down, across), batch = self.stride, len(images)
        if any(self._margins):
            images = functional.pad(images, self._margins, mode=self._mode)
        images = images[:, :, ::down, ::across]
        if images.is_contiguous(memory_format=torch.channels_last):
            return super().multiply(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        height, width = images.shape[2:]
        window = get_window(self.in_channels, (1, height * width), (1, 1), (1, 1), (1, 1))
        planes = images.float().contiguous()
        if window.across < OVERREAD_FLOATS:
            planes = torch.cat([planes.flatten(), planes.new_zeros(OVERREAD_FLOATS)])
        return self._planar(planes, batch, window).view(batch, self.out_channels, height, width).to(images.dtype)

    def _planar(self, planes: torch.Tensor, batch: int, window: ConvolutionWindow) -> torch.Tensor:
        """A product with planes, as `PackedMatrix.compile_convolution` reads them."""
        result = planes.new_empty(batch, self.out_channels, window.height, window.across)
        threads = torch.get_num_threads()
        key = batch, window, threads
        product = self._calls.get(key)
        if product is None:
            product = self._remembered(key, self.matrix.compile_convolution(batch, window, threads=threads))
        planes = planes if planes.data_ptr() else allocated(planes)
        product(self._bias.data_ptr(), planes.data_ptr(), result.data_ptr())
        return result

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of images with their padding."""
        left, right, top, bottom = self._margins
        return height + top + bottom, width + left + right

    def _planes(self, images: torch.Tensor, window: ConvolutionWindow) -> torch.Tensor:
        """Images with their padding, and their pixels parted by their place in a stride."""
        left, _, top, _ = self._margins
        if self._mode != "constant" and any(self._margins):
            images, left, top = functional.pad(images, self._margins, mode=self._mode), 0, 0
        (down, across), (height, width) = window.stride, window.part
        size = len(images) * window.image
        planes = torch.zeros(size + OVERREAD_FLOATS, dtype=torch.float32, device="cpu")
        if (down, across) == (1, 1):
            whole = planes[:size].view(len(images), self.in_channels, height, width)
            whole[:, :, top : top + images.shape[2], left : left + images.shape[3]] = images
            return planes
        whole = planes[:size].view(len(images), self.in_channels, down, across, height, width)
        for row in range(down):
            for column in range(across):
                # The first pixels of the part that are no padding, and where they come from.
                above, before = max(0, -(-(top - row) // down)), max(0, -(-(left - column) // across))
                some = images[:, :, above * down + row - top :: down, before * across + column - left :: across]
                goal = whole[:, :, row, column, above : above + some.shape[2], before : before + some.shape[3]]
                goal.copy_(some[:, :, : goal.shape[2], : goal.shape[3]])
        return planes

    def dense_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.dense_weight`."""
        dense = torch.from_numpy(self.matrix.to_dense()).to(self.dtype)
        return dense.reshape(self.out_channels, *self.kernel_size, self.in_channels).permute(0, 3, 1, 2).contiguous()
