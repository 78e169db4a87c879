"""Define the canonical view of a weight: output channels × kernel positions × input channels.

Legend: O output channels, K kernel positions (1 for a linear layer), I input channels of one group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur._array import Array, namespace
from secateur._deprecated import warn_deprecated
from secateur.errors import LayerError

__all__ = ["WeightView"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightView:
    """Assign the axes of a stored weight to output channels, kernel positions and input channels.

    Attributes:
        shape: Shape of the stored weight.
        output_axes: Axes of the output channels, slowest first.
        kernel_axes: Axes of the kernel positions; empty for linear layers.
        input_axes: Axes of the input channels of one group.
        groups: Number of groups of a grouped convolution, or of stacked matrices; each has its own input channels.

    Examples:
        >>> conv = WeightView(
        ...     shape=(8, 4, 3, 3), output_axes=(0,), kernel_axes=(2, 3), input_axes=(1,)
        ... )
        >>> conv.canonical_shape
        (8, 9, 4)
    """

    shape: tuple[int, ...]
    output_axes: tuple[int, ...]
    kernel_axes: tuple[int, ...] = ()
    input_axes: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        if math.prod(self.shape) == 0:
            raise LayerError(f"the weight is empty (shape {self.shape})")

    @classmethod
    def from_stack(cls, shape: tuple[int, ...], *, is_transposed: bool = False) -> WeightView:
        """Return the view of stacked matrices, such as the experts of a mixture, as a weight with one group per matrix.

        Matrices follow each other along the output channels, so that no unit extends over two of them.

        Args:
            shape: (matrices, outputs, inputs), or (matrices, inputs, outputs) if `is_transposed`.
            is_transposed: Whether each matrix is stored with its input channels first.

        Examples:
            >>> WeightView.from_stack((4, 8, 6)).canonical_shape
            (32, 1, 6)
        """
        output, inner = (2, 1) if is_transposed else (1, 2)
        return cls(shape=shape, output_axes=(0, output), input_axes=(inner,), groups=shape[0])

    @property
    def axes(self) -> tuple[int, ...]:
        """The stored axes in canonical order."""
        return (*self.output_axes, *self.kernel_axes, *self.input_axes)

    @property
    def outputs_last(self) -> bool:
        """Whether output channels vary fastest in memory, and input channels next."""
        return [*self.kernel_axes, *self.input_axes, *self.output_axes] == [*range(len(self.shape))]

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """The shape (O, K, I)."""
        sizes = [
            math.prod(self.shape[axis] for axis in part)
            for part in (self.output_axes, self.kernel_axes, self.input_axes)
        ]
        return sizes[0], sizes[1], sizes[2]

    def to_canonical(self, stored: Array) -> Array:
        """Return a stored array as an (O, K, I) array, without a copy where the strides allow it."""
        if tuple(stored.shape) != self.shape:
            raise LayerError(f"the array must have shape {self.shape}, found {tuple(stored.shape)}")
        xp = namespace(stored)
        if self.outputs_last:  # A compiler can then drop two transpositions that cancel.
            outputs, positions, inputs = self.canonical_shape
            return xp.permute_dims(stored.reshape((positions, inputs, outputs)), (2, 0, 1))
        return xp.permute_dims(stored, self.axes).reshape(self.canonical_shape)

    def to_stored(self, canonical: Array) -> Array:
        """Return an (O, K, I) array in the stored shape: the inverse of `to_canonical`."""
        permuted = canonical.reshape(tuple(self.shape[axis] for axis in self.axes))
        inverse = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return namespace(canonical).permute_dims(permuted, inverse)

    def canonical(self, stored: Array) -> Array:
        """Deprecated name of `to_canonical`."""
        warn_deprecated("WeightView.canonical", "WeightView.to_canonical")
        return self.to_canonical(stored)

    def stored(self, canonical: Array) -> Array:
        """Deprecated name of `to_stored`."""
        warn_deprecated("WeightView.stored", "WeightView.to_stored")
        return self.to_stored(canonical)
