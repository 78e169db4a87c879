"""Convolutions whose weight is packed for kernels on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from secateur.errors import LayerError
from secateur.runtime.kernels import OVERREAD_FLOATS, ConvolutionWindow, PackedMatrix, get_window
from secateur.runtime.pytorch.layers.base import refuse_tracing
from secateur.runtime.pytorch.layers.packed import PackedLayer, materialize_zeros

__all__ = ["SparseConv2d"]

IMAGE_AXES = 3
"""Number of axes of one image: channels, height and width."""


class SparseConv2d(PackedLayer):
    """Replaces ``nn.Conv2d`` with one group.

    Args:
        layer: The dense layer.
        matrix: The weight as (O, K·I), with the kernel positions before the input channels.
    """

    def __init__(self, layer: nn.Conv2d, matrix: PackedMatrix) -> None:
        super().__init__(layer, matrix)
        self.out_channels, self.in_channels = layer.out_channels, layer.in_channels
        self.kernel_size, self.stride, self.dilation = (
            (height, width) for height, width in (layer.kernel_size, layer.stride, layer.dilation)
        )
        # nn.Conv2d stores its padding in the order that `functional.pad` expects.
        self._padding = tuple(layer._reversed_padding_repeated_twice)
        self._padding_mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiply`. Images have shape (B, I, H, W) or (I, H, W)."""
        return self._convolve(tensor[None])[0] if tensor.ndim == IMAGE_AXES else self._convolve(tensor)

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `SparseLayer.multiply_densely`."""
        padded = self._pad(tensor) if any(self._padding) else tensor
        weight, bias = self.unpack_weight(), self.unpack_bias()
        return functional.conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation)

    def compute_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `OperatorLayer.compute_output_shape`."""
        *batch, _, height, width = shape
        size = self._compute_padded_size(height, width)
        window = ConvolutionWindow(self.in_channels, size, self.kernel_size, self.stride, self.dilation)
        return *batch, self.out_channels, window.height, window.width

    def unpack_weight(self) -> torch.Tensor:
        """See `SparseLayer.unpack_weight`."""
        dense = torch.from_numpy(self.matrix.to_dense()).to(self.dtype)
        return dense.reshape(self.out_channels, *self.kernel_size, self.in_channels).permute(0, 3, 1, 2).contiguous()

    def _convolve(self, images: torch.Tensor) -> torch.Tensor:
        """Compute outputs of shape (B, O, H', W') from images of shape (B, I, H, W)."""
        refuse_tracing()
        channels = images.shape[1] if images.ndim == IMAGE_AXES + 1 else -1
        self._check_input(images, (channels, self.in_channels), is_on_device=images.is_cpu)
        size = self._compute_padded_size(*images.shape[2:])
        window = get_window(self.in_channels, size, self.kernel_size, self.stride, self.dilation)
        if min(window.height, window.width) < 1:
            raise LayerError(
                f"a kernel of {self.kernel_size} with dilation {self.dilation} does not fit into padded images of "
                f"{window.size}, found an input of shape {tuple(images.shape)}. Pass larger images."
            )
        if self.kernel_size == (1, 1):
            return self._convolve_pointwise(images)
        return self._convolve_planes(self._make_planes(images, window), len(images), window).to(images.dtype)

    def _convolve_pointwise(self, images: torch.Tensor) -> torch.Tensor:
        """Convolve with a kernel of one pixel, by treating each image as a single row of pixels."""
        (stride_h, stride_w), batch = self.stride, len(images)
        if any(self._padding):
            images = self._pad(images)
        images = images[:, :, ::stride_h, ::stride_w]
        if images.is_contiguous(memory_format=torch.channels_last):
            return super().multiply(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        height, width = images.shape[2:]
        window = get_window(self.in_channels, (1, height * width), (1, 1), (1, 1), (1, 1))
        planes = images.float().contiguous()
        if window.width < OVERREAD_FLOATS:
            planes = torch.cat([planes.flatten(), planes.new_zeros(OVERREAD_FLOATS)])
        outputs = self._convolve_planes(planes, batch, window)
        return outputs.view(batch, self.out_channels, height, width).to(images.dtype)

    def _convolve_planes(self, planes: torch.Tensor, batch: int, window: ConvolutionWindow) -> torch.Tensor:
        """Convolve images in the format that `PackedMatrix.compile_convolution` expects."""
        result = planes.new_empty(batch, self.out_channels, window.height, window.width)
        threads = torch.get_num_threads()
        key = batch, window, threads
        product = self._products.get(key)
        if product is None:
            product = self._cache(key, self.matrix.compile_convolution(batch, window, threads=threads))
        planes = planes if planes.data_ptr() else materialize_zeros(planes)
        product(self._bias.data_ptr(), planes.data_ptr(), result.data_ptr())
        return result

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        return functional.pad(images, self._padding, mode=self._padding_mode)

    def _compute_padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width of padded images."""
        left, right, top, bottom = self._padding
        return height + top + bottom, width + left + right

    def _make_planes(self, images: torch.Tensor, window: ConvolutionWindow) -> torch.Tensor:
        """Pad images, and split them into one plane for each position within a stride."""
        left, _, top, _ = self._padding
        if self._padding_mode != "constant" and any(self._padding):
            images, left, top = self._pad(images), 0, 0
        (stride_h, stride_w), (height, width) = window.stride, window.phase_size
        size = len(images) * window.image_floats
        planes = torch.zeros(size + OVERREAD_FLOATS, dtype=torch.float32, device="cpu")
        if (stride_h, stride_w) == (1, 1):
            padded = planes[:size].view(len(images), self.in_channels, height, width)
            padded[:, :, top : top + images.shape[2], left : left + images.shape[3]] = images
            return planes
        separated = planes[:size].view(len(images), self.in_channels, stride_h, stride_w, height, width)
        for row in range(stride_h):
            for col in range(stride_w):
                # Skip the padding at the top and on the left, and start at the first image pixel of this plane.
                y, x = max(0, -(-(top - row) // stride_h)), max(0, -(-(left - col) // stride_w))
                pixels = images[:, :, y * stride_h + row - top :: stride_h, x * stride_w + col - left :: stride_w]
                plane = separated[:, :, row, col, y : y + pixels.shape[2], x : x + pixels.shape[3]]
                plane.copy_(pixels[:, :, : plane.shape[2], : plane.shape[3]])
        return planes
