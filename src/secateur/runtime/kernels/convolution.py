"""Convolutions: pixels of the output side by side, whose activations are read where they lie in the padded input.

A plane of the input, moved by where a weight stands in the kernel, is what that weight multiplies for all pixels of the
output at once; so nothing is unfolded, nothing is turned, and a pruned weight costs nothing (Park et al. 2017, "Faster
CNNs with Direct Sparse Convolutions and Guided Pruning", section 3). With a stride, the pixels of a plane are parted by
their place in it first, after which each part has stride one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["OVERREAD_FLOATS", "ConvolutionWindow", "Fit", "fitted", "get_window"]

OVERREAD_FLOATS = 128
"""Floats behind the last plane that are read and not used: they must be there, and should be zero, for numbers that are
almost zero are slow. Images of one line of as many pixels or more are not overrun, if the kernel is one pixel."""

PANEL_COST = 0.5
"""Of a panel itself, in vectors of it: its weights are read anew."""


@dataclass(frozen=True)
class ConvolutionWindow:
    """What a convolution sees of images.

    Attributes:
        channels: Of the input.
        size: (H, W) of the padded input.
        kernel: (H, W) of the kernel.
        stride: Down and across.
        dilation: Down and across.

    Example:
        >>> window = ConvolutionWindow(channels=2, size=(5, 5), kernel=(3, 3), stride=(1, 1), dilation=(1, 1))
        >>> window.height, window.across, window.offsets[:4]
        (3, 3, array([ 0, 25,  1, 26], dtype=int32))
    """

    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def height(self) -> int:
        """Lines of the output."""
        return self._steps(0)

    @property
    def across(self) -> int:
        """Pixels of a line of the output."""
        return self._steps(1)

    def _steps(self, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (self.size[axis] - reach) // self.stride[axis] + 1

    @cached_property
    def part(self) -> tuple[int, int]:
        """(H, W) of the pixels of a plane that have the same place in a stride."""
        height, width = (-(-size // step) for size, step in zip(self.size, self.stride, strict=True))
        return height, width

    @cached_property
    def image(self) -> int:
        """Floats of an input image: channels, then places in a stride, then their pixels."""
        return self.channels * self.stride[0] * self.stride[1] * self.part[0] * self.part[1]

    @property
    def offsets(self) -> npt.NDArray[np.int32]:
        """For each feature (kernel positions, then channels), floats to what it multiplies for the first pixel."""
        down, across = (np.arange(size) * spread for size, spread in zip(self.kernel, self.dilation, strict=True))
        (step, step_across), (height, width) = self.stride, self.part
        place = (down % step)[:, None] * step_across + across % step_across
        shift = (down // step)[:, None] * width + across // step_across
        planes = np.arange(self.channels) * (step * step_across)
        offsets: npt.NDArray[np.int64] = (planes + place[:, :, None]) * (height * width) + shift[:, :, None]
        return offsets.reshape(-1).astype(np.int32)


@lru_cache(maxsize=1024)
def get_window(
    channels: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> ConvolutionWindow:
    """The window of these attributes, made once with what follows from them: beside a small image, that takes time."""
    return ConvolutionWindow(channels, size, kernel, stride, dilation)


class Fit(NamedTuple):
    """How panels cover an image of the output.

    Attributes:
        vectors: Of a panel.
        lines: Lines of a panel.
        span: Pixels of a line in a panel.
        segments: Panels of a line.
        panels: Panels of an image.
    """

    vectors: int
    lines: int
    span: int
    segments: int
    panels: int


def fitted(window: ConvolutionWindow, lanes: int, most: int) -> Fit:
    """The panels that an image needs least time with.

    Args:
        window: What the convolution sees.
        lanes: Floats of a vector.
        most: Vectors of a panel at most.

    Example:
        >>> fitted(ConvolutionWindow(8, (16, 16), (3, 3), (1, 1), (1, 1)), 16, 4)
        Fit(vectors=2, lines=2, span=14, segments=1, panels=7)
    """
    height, across, pitch = window.height, window.across, window.part[1]
    fits = []
    for vectors in range(1, most + 1):
        width = vectors * lanes
        if across <= width:
            lines = min(height, 1 + (width - across) // pitch)
            fits.append(Fit(vectors, lines, across, 1, -(-height // lines)))
        else:
            segments = -(-across // width)
            fits.append(Fit(vectors, 1, width, segments, height * segments))
    return min(fits, key=lambda fit: fit.panels * (fit.vectors + PANEL_COST))
