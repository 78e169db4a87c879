"""Layers that hold their pruned weight without its zeros."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from secateur.errors import LayerError, StateError
from secateur.runtime.kernels import OVERRUN, PackedMatrix, Window, window_of
from secateur.runtime.pytorch.borrowing import borrow_threads_of_torch
from secateur.runtime.pytorch.operator import handle_of, multiply

__all__ = ["ExchangedLayer", "OperatorLayer", "PackedLayer", "SparseConv2d", "SparseLinear", "parts"]

borrow_threads_of_torch()

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""torch's types → the kernels' names of them."""

MOST_CALLS = 256
"""Shapes of inputs for which a layer remembers how it is called: Python would else take longer than a small product."""

Made = TypeVar("Made", bound=Callable[..., Any])


def parts(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A layer's weight and bias, detached from autograd."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    return weight.detach(), None if bias is None else bias.detach()


class ExchangedLayer(nn.Module, ABC):
    """A layer for inference that stands in the place of a dense one.

    Its state is that of the dense layer: ``state_dict()`` unpacks the weight.

    Args:
        layer: The dense layer.

    Attributes:
        dtype: Type of the weight before, and of what it is multiplied with.
        dense_shape: Shape of the weight before.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, _ = parts(layer)
        self.dtype, self.dense_shape = weight.dtype, tuple(weight.shape)
        self.train(layer.training)

    @property
    def weight(self) -> torch.Tensor:
        """A stand-in on the meta device, with the dense weight's shape and type, for code that asks for these."""
        return torch.empty(self.dense_shape, dtype=self.dtype, device="meta")

    @property
    @abstractmethod
    def bias(self) -> torch.Tensor | None:
        """The bias; ``None``: there is none."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of what is left of the weight."""

    @abstractmethod
    def dense_weight(self) -> torch.Tensor:
        """The weight with its zeros, as the dense layer had it."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002 - torch's
        destination[f"{prefix}weight"] = self.dense_weight()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias

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
        self.place = place
        self.handle = handle_of(self)

    @abstractmethod
    def multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of inputs times the weight, plus the bias.

        Args:
            rows: Inputs of shape (…, F).

        Raises:
            StateError: They ask for gradients.
            LayerError: They are elsewhere, or of another type or shape.
        """

    def _refuse(self, rows: torch.Tensor, features: tuple[int, int], *, is_here: bool) -> None:
        """Refuse inputs that it cannot take; `features`: how many they have, and how many it needs."""
        if rows.requires_grad and torch.is_grad_enabled():
            raise StateError(
                f"{type(self).__name__} is for inference and has no gradients. Call the model under torch.no_grad() "
                f"or torch.inference_mode()."
            )
        if not is_here or rows.dtype is not self.dtype:
            raise LayerError(
                f"{type(self).__name__} needs inputs of {self.dtype} on {self.place}, found {rows.dtype} on "
                f"{rows.device}. Convert and move the model before it is compiled."
            )
        if features[0] != features[1]:
            raise LayerError(
                f"{type(self).__name__} needs {features[1]} input features, found an input of shape "
                f"{tuple(rows.shape)}."
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
        self._bias = torch.zeros(matrix.shape[0]) if bias is None else bias.float().contiguous().clone()
        self._calls: dict[Hashable, Callable[..., Any]] = {}

    @property
    def bias(self) -> torch.Tensor | None:
        """See `ExchangedLayer.bias`."""
        return self._bias.to(self.dtype) if self.has_bias else None

    @property
    def nbytes(self) -> int:
        """See `ExchangedLayer.nbytes`."""
        return self.matrix.nbytes

    def multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiplied`."""
        call = self._calls.get((rows.shape, rows.dtype, torch.get_num_threads()))
        if call is None or not rows.is_cpu or (rows.requires_grad and torch.is_grad_enabled()):
            call = self._call_for(rows)
        return call(rows)

    def _call_for(self, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What multiplies rows of this shape and type on as many threads as there are."""
        *leading, features = rows.shape or (0,)
        outputs, inputs = self.matrix.shape
        self._refuse(rows, (features, inputs), is_here=rows.is_cpu)
        shape, dtype, threads = (*leading, outputs), self.dtype, torch.get_num_threads()
        product = self.matrix.product(math.prod(leading), activations=NAMES[dtype], threads=threads)
        bias = self._bias.data_ptr()

        def call(rows: torch.Tensor) -> torch.Tensor:
            flat, result = rows.contiguous(), torch.empty(shape, dtype=dtype)
            product(bias, flat.data_ptr(), result.data_ptr())
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

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of shape (…, I) to outputs of shape (…, O)."""
        return multiply(self, inputs)

    def dense_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.dense_weight`."""
        dense = torch.from_numpy(self.matrix.dense()).to(self.dtype)
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
        self.padding = tuple(layer._reversed_padding_repeated_twice)
        self.padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images of shape (B, I, H, W) or (I, H, W) to outputs of shape (B, O, H', W') or (O, H', W')."""
        batch = images if images.ndim == 4 else images[None]
        if torch.compiler.is_compiling():
            window = Window(self.in_channels, self._padded(batch), self.kernel_size, self.stride, self.dilation)
            sizes = [self.out_channels, window.height, window.across]
            found: torch.Tensor = torch.ops.secateur.convolve(batch, self.handle, sizes)
        else:
            found = self.convolved(batch)
        return found if images.ndim == 4 else found[0]

    def convolved(self, images: torch.Tensor) -> torch.Tensor:
        """Images of shape (B, I, H, W) to outputs of shape (B, O, H', W').

        Raises:
            StateError: They ask for gradients.
            LayerError: They are not on the CPU, or of another type or shape.
        """
        channels = images.shape[1] if images.ndim == 4 else -1
        self._refuse(images, (channels, self.in_channels), is_here=images.is_cpu)
        window = window_of(self.in_channels, self._padded(images), self.kernel_size, self.stride, self.dilation)
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
        if any(self.padding):
            images = functional.pad(images, self.padding, mode=self.padding_mode)
        images = images[:, :, ::down, ::across]
        if images.is_contiguous(memory_format=torch.channels_last):
            return self.multiplied(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        height, width = images.shape[2:]
        window = window_of(self.in_channels, (1, height * width), (1, 1), (1, 1), (1, 1))
        planes = images.float().contiguous()
        if window.across < OVERRUN:
            planes = torch.cat([planes.flatten(), torch.zeros(OVERRUN)])
        return self._planar(planes, batch, window).view(batch, self.out_channels, height, width).to(images.dtype)

    def _planar(self, planes: torch.Tensor, batch: int, window: Window) -> torch.Tensor:
        """A product with planes, as `PackedMatrix.convolution` reads them."""
        result, threads = torch.empty(batch, self.out_channels, window.height, window.across), torch.get_num_threads()
        key = batch, window, threads
        product = self._calls.get(key)
        if product is None:
            product = self._remembered(key, self.matrix.convolution(batch, window, threads=threads))
        product(self._bias.data_ptr(), planes.data_ptr(), result.data_ptr())
        return result

    def _padded(self, images: torch.Tensor) -> tuple[int, int]:
        """(H, W) of images with their padding."""
        left, right, top, bottom = self.padding
        return images.shape[2] + top + bottom, images.shape[3] + left + right

    def _planes(self, images: torch.Tensor, window: Window) -> torch.Tensor:
        """Images with their padding, and their pixels parted by their place in a stride."""
        left, _, top, _ = self.padding
        if self.padding_mode != "constant" and any(self.padding):
            images, left, top = functional.pad(images, self.padding, mode=self.padding_mode), 0, 0
        (down, across), (height, width) = window.stride, window.part
        size = len(images) * window.image
        planes = torch.zeros(size + OVERRUN)
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
        dense = torch.from_numpy(self.matrix.dense()).to(self.dtype)
        return dense.reshape(self.out_channels, *self.kernel_size, self.in_channels).permute(0, 3, 1, 2).contiguous()
