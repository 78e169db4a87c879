"""Geometry of sparse convolutions: the window that a convolution applies to images, and the panels that cover them.

A plane of the input, shifted by the position of a weight in the kernel, is what the weight multiplies for all output
pixels at once. So no im2col and no transposition is needed, and a pruned weight costs nothing (Park et al. 2017,
"Faster CNNs with Direct Sparse Convolutions and Guided Pruning", section 3). With a stride, the pixels of a plane are
first separated by their phase within the stride, after which each phase has stride one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["OVERREAD_FLOATS", "ConvolutionWindow", "PanelGrid", "fit_panels", "get_window"]

OVERREAD_FLOATS = 128
"""Floats after the last plane that kernels read and ignore. They must be allocated and should be zero, because
subnormal numbers are slow. Images of one line of at least as many pixels need none if the kernel is a single pixel."""

PANEL_OVERHEAD = 0.5
"""Cost of a panel, in vectors of it, because its weights are read again."""


@dataclass(frozen=True)
class ConvolutionWindow:
    """The window that a convolution slides over images.

    Attributes:
        channels: Input channels.
        size: (H, W) of the padded input.
        kernel: (H, W) of the kernel.
        stride: (H, W) of the stride.
        dilation: (H, W) of the dilation.

    Example:
        >>> window = ConvolutionWindow(channels=2, size=(5, 5), kernel=(3, 3), stride=(1, 1), dilation=(1, 1))
        >>> window.height, window.width, window.offsets[:4]
        (3, 3, array([ 0, 25,  1, 26], dtype=int32))
    """

    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def height(self) -> int:
        """Height of the output."""
        return self._get_output_size(0)

    @property
    def width(self) -> int:
        """Width of the output."""
        return self._get_output_size(1)

    def _get_output_size(self, axis: int) -> int:
        extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (self.size[axis] - extent) // self.stride[axis] + 1

    @cached_property
    def phase_size(self) -> tuple[int, int]:
        """(H, W) of the pixels of a plane that have the same phase within the stride."""
        height, width = (-(-size // step) for size, step in zip(self.size, self.stride, strict=True))
        return height, width

    @cached_property
    def image_floats(self) -> int:
        """Floats of an input image, stored as (channels, phases, pixels)."""
        return self.channels * self.stride[0] * self.stride[1] * self.phase_size[0] * self.phase_size[1]

    @property
    def offsets(self) -> npt.NDArray[np.int32]:
        """For each feature, the offset in floats of the input that it multiplies for the first output pixel.

        Features are ordered by kernel position, then by channel.
        """
        down, across = (np.arange(size) * step for size, step in zip(self.kernel, self.dilation, strict=True))
        (stride, stride_across), (height, width) = self.stride, self.phase_size
        phase = (down % stride)[:, None] * stride_across + across % stride_across
        shift = (down // stride)[:, None] * width + across // stride_across
        planes = np.arange(self.channels) * (stride * stride_across)
        offsets: npt.NDArray[np.int64] = (planes + phase[:, :, None]) * (height * width) + shift[:, :, None]
        return offsets.reshape(-1).astype(np.int32)


@lru_cache(maxsize=1024)
def get_window(
    channels: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> ConvolutionWindow:
    """Return a cached window, because computing its properties takes time next to a small image."""
    return ConvolutionWindow(channels, size, kernel, stride, dilation)


class PanelGrid(NamedTuple):
    """How panels cover an output image.

    Attributes:
        vectors: Vectors of a panel.
        lines: Image lines of a panel.
        span: Pixels of a line in a panel.
        segments: Panels side by side on a line.
        panels: Panels of an image.
    """

    vectors: int
    lines: int
    span: int
    segments: int
    panels: int


def fit_panels(window: ConvolutionWindow, lanes: int, max_vectors: int) -> PanelGrid:
    """Return the panels that cover an output image fastest.

    Args:
        window: The window of the convolution.
        lanes: Floats of a vector.
        max_vectors: Widest panel, in vectors.

    Example:
        >>> fit_panels(ConvolutionWindow(8, (16, 16), (3, 3), (1, 1), (1, 1)), 16, 4)
        PanelGrid(vectors=2, lines=2, span=14, segments=1, panels=7)
    """
    height, width, pitch = window.height, window.width, window.phase_size[1]
    grids = []
    for vectors in range(1, max_vectors + 1):
        pixels = vectors * lanes
        if width <= pixels:
            lines = min(height, 1 + (pixels - width) // pitch)
            grids.append(PanelGrid(vectors, lines, width, 1, -(-height // lines)))
        else:
            segments = -(-width // pixels)
            grids.append(PanelGrid(vectors, 1, pixels, segments, height * segments))
    return min(grids, key=lambda grid: grid.panels * (grid.vectors + PANEL_OVERHEAD))
