"""Compute the geometry of sparse convolutions: the sliding window, and the panels that cover output images.

For all output pixels at once, a weight multiplies a plane of the input, shifted by the position of the weight in the
kernel. This needs no im2col and no transposition, and pruned weights cost nothing (Park et al. 2017, "Faster CNNs with
Direct Sparse Convolutions and Guided Pruning", section 3). With a stride, the pixels of a plane are first separated by
their phase within the stride. Each phase then has a stride of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["OVERREAD_FLOATS", "ConvolutionWindow", "PanelGrid", "fit_panels", "get_window"]

OVERREAD_FLOATS = 128
"""Floats after the last plane that kernels read and ignore. They must be allocated, and should be zero, because
subnormal numbers are slow. They are not needed for a kernel of one pixel and images of one line with at least as many
pixels."""

PANEL_OVERHEAD = 0.5
"""Overhead of each panel in vectors, because each panel reads the weights again."""


@dataclass(frozen=True)
class ConvolutionWindow:
    """The window that a convolution slides over images.

    Attributes:
        channels: Input channels.
        size: (H, W) of the padded input.
        kernel: (H, W) of the kernel.
        stride: (H, W) of the stride.
        dilation: (H, W) of the dilation.
        phase_size: (H, W) of the pixels of a plane that have the same phase within the stride.
        image_floats: Floats of an input image, stored as (channels, phases, pixels).

    Examples:
        >>> window = ConvolutionWindow(
        ...     channels=2, size=(5, 5), kernel=(3, 3), stride=(1, 1), dilation=(1, 1)
        ... )
        >>> window.height, window.width, window.offsets[:4]
        (3, 3, array([ 0, 25,  1, 26], dtype=int32))
    """

    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    phase_size: tuple[int, int] = field(init=False, repr=False, compare=False)
    image_floats: int = field(init=False, repr=False, compare=False)

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

    def __post_init__(self) -> None:
        # Not `cached_property`: until Python 3.12 it has a lock, which a thread may hold while the process forks.
        height, width = (-(-size // step) for size, step in zip(self.size, self.stride, strict=True))
        object.__setattr__(self, "phase_size", (height, width))
        object.__setattr__(self, "image_floats", self.channels * self.stride[0] * self.stride[1] * height * width)

    @property
    def offsets(self) -> npt.NDArray[np.int32]:
        """The offset in floats of the input that each feature multiplies for the first output pixel.

        Features are ordered by kernel position, then by channel.
        """
        y, x = (np.arange(size) * step for size, step in zip(self.kernel, self.dilation, strict=True))
        (stride_h, stride_w), (height, width) = self.stride, self.phase_size
        phase = (y % stride_h)[:, None] * stride_w + x % stride_w
        shift = (y // stride_h)[:, None] * width + x // stride_w
        planes = np.arange(self.channels) * (stride_h * stride_w)
        offsets: npt.NDArray[np.int64] = (planes + phase[:, :, None]) * (height * width) + shift[:, :, None]
        return offsets.reshape(-1).astype(np.int32)


@lru_cache(maxsize=1024)
def get_window(
    channels: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> ConvolutionWindow:
    """Return a cached window, because computing its properties takes long compared with a small convolution."""
    return ConvolutionWindow(channels, size, kernel, stride, dilation)


class PanelGrid(NamedTuple):
    """A grid of panels that covers an output image.

    Attributes:
        vectors: Number of vectors in a panel.
        lines: Number of image lines in a panel.
        span: Number of pixels of each line in a panel.
        segments: Number of panels next to each other on a line.
        panels: Number of panels in an image.
    """

    vectors: int
    lines: int
    span: int
    segments: int
    panels: int


def fit_panels(window: ConvolutionWindow, lanes: int, max_vectors: int) -> PanelGrid:
    """Return the grid of panels that computes an output image fastest.

    Args:
        window: The window of the convolution.
        lanes: Floats of a vector.
        max_vectors: Maximum width of a panel in vectors.

    Examples:
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
