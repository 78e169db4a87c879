"""Linear layers for GPUs, with weights in the formats of the sparse libraries that torch includes."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from secateur.errors import LayerError
from secateur.runtime.pytorch.layers.base import detach_parameters, refuse_tracing
from secateur.runtime.pytorch.layers.operator import OperatorLayer

__all__ = [
    "LIBRARIES",
    "BlockSparseFormat",
    "LibraryFormat",
    "LibraryLinear",
    "LibraryMatrix",
    "SemiStructuredFormat",
]

IGNORED_WARNINGS = (
    "Sparse BSR tensor support is in beta",
    "The PyTorch API of SparseSemiStructuredTensor is in prototype",
    "bsr_dense_addmm uses non-optimal triton kernel parameters",
)
"""Prefixes of torch's warnings about prototypes and slow kernels, which are irrelevant after a benchmark."""

LIBRARIES = {
    "cuSPARSELt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    "CUTLASS": torch.sparse.SparseSemiStructuredTensorCUTLASS,
}
"""Maps the name of a library to the tensor class that torch provides for its 2:4 products."""


class LibraryFormat(ABC):
    """A format in which a library stores a weight."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name for reports."""

    @abstractmethod
    def convert(self, dense: torch.Tensor) -> torch.Tensor:
        """Convert a weight of shape (O, I) to this format."""

    @abstractmethod
    def list_storage(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """List the dense tensors that store a converted weight."""


@dataclass(frozen=True, slots=True)
class SemiStructuredFormat(LibraryFormat):
    """The 2:4 format of a library in `LIBRARIES`."""

    library: str

    @property
    def name(self) -> str:
        """See `LibraryFormat.name`."""
        return f"2:4, {self.library}"

    def convert(self, dense: torch.Tensor) -> torch.Tensor:
        """See `LibraryFormat.convert`."""
        converted = LIBRARIES[self.library].from_dense(dense)
        converted.fuse_transpose_cusparselt = True  # row-major outputs, the default since torch 2.13
        return converted

    def list_storage(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """See `LibraryFormat.list_storage`."""
        return [tensor for name in ("packed", "meta") if (tensor := getattr(weight, name)) is not None]


@dataclass(frozen=True, slots=True)
class BlockSparseFormat(LibraryFormat):
    """Nonzero square blocks in row order (BSR), for torch's Triton kernel."""

    side: int

    @property
    def name(self) -> str:
        """See `LibraryFormat.name`."""
        return f"{self.side}x{self.side} blocks, Triton"

    def convert(self, dense: torch.Tensor) -> torch.Tensor:
        """See `LibraryFormat.convert`."""
        return dense.to_sparse_bsr((self.side, self.side))

    def list_storage(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """See `LibraryFormat.list_storage`."""
        return [weight.values(), weight.crow_indices(), weight.col_indices()]


class LibraryMatrix:
    """A weight in the format of a library. It is immutable, so copies share memory.

    Args:
        dense: The weight, of shape (O, I).
        library_format: The format.

    Attributes:
        shape: Shape (O, I) of the weight.
        library_format: The format.

    Raises:
        LayerError: The library does not support the weight.
    """

    def __init__(self, dense: torch.Tensor, library_format: LibraryFormat) -> None:
        for prefix in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=prefix)
        self.shape, self.library_format = tuple(dense.shape), library_format
        try:
            self._weight = library_format.convert(dense.contiguous())
        except Exception as error:
            raise self._convert_error(error) from error

    @property
    def nbytes(self) -> int:
        """Size of the stored weight in bytes."""
        return sum(tensor.nbytes for tensor in self.library_format.list_storage(self._weight))

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self._weight.device

    def to_dense(self) -> torch.Tensor:
        """Return the dense weight, of shape (O, I)."""
        return self._weight.to_dense()

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute outputs of shape (R, O) from rows of shape (R, I).

        Raises:
            LayerError: The library does not support the rows.
        """
        if not len(rows):
            return rows.new_empty(0, self.shape[0])
        try:
            # Sparse weights do not support views in inference mode, and autocast cannot convert them.
            with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                return functional.linear(rows, self._weight, bias).contiguous()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._convert_error(error) from error

    def __deepcopy__(self, _: Any) -> LibraryMatrix:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LibraryMatrix, (self.to_dense(), self.library_format)

    def _convert_error(self, error: Exception) -> LayerError:
        """Convert an exception of the library to a `LayerError`."""
        message = (str(error) or type(error).__name__).splitlines()[0]
        return LayerError(f"{self.library_format.name} does not support a weight of shape {self.shape}: {message}")


class LibraryLinear(OperatorLayer):
    """Replaces ``nn.Linear``, or transformers' ``Conv1D``, which stores its weight transposed.

    Args:
        layer: The dense layer.
        matrix: The weight.
        is_transposed: Whether the dense layer stores its weight as (I, O).
    """

    def __init__(self, layer: nn.Module, matrix: LibraryMatrix, *, is_transposed: bool = False) -> None:
        super().__init__(layer, device_name=str(matrix.device))
        _, bias = detach_parameters(layer)
        self.matrix, self.is_transposed = matrix, is_transposed
        self.out_features, self.in_features = matrix.shape
        # Not a buffer: like the weight, it must stay on its device.
        self._bias = None if bias is None else bias.clone()

    def unpack_bias(self) -> torch.Tensor | None:
        """See `SparseLayer.unpack_bias`."""
        return self._bias

    @property
    def nbytes(self) -> int:
        """See `SparseLayer.nbytes`."""
        return self.matrix.nbytes

    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiply`."""
        refuse_tracing()
        *leading, features = tensor.shape or (0,)
        self._check_input(tensor, (features, self.in_features), is_on_device=tensor.device == self.matrix.device)
        flat = tensor.reshape(math.prod(leading), features)
        return self.matrix.multiply(flat, self._bias).view(*leading, self.out_features)

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `SparseLayer.multiply_densely`."""
        return functional.linear(tensor, self.matrix.to_dense(), self._bias)

    def compute_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `OperatorLayer.compute_output_shape`."""
        return *shape[:-1], self.matrix.shape[0]

    def unpack_weight(self) -> torch.Tensor:
        """See `SparseLayer.unpack_weight`."""
        dense = self.matrix.to_dense()
        return dense.T.contiguous() if self.is_transposed else dense

    def extra_repr(self) -> str:
        """Show the shape, format and bytes."""
        return f"{self.in_features}, {self.out_features}, {self.matrix.library_format.name}, {self.nbytes:,} bytes"
