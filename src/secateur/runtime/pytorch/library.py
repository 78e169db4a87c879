"""Weights as the libraries that torch brings for a GPU multiply with them."""

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
from secateur.runtime.pytorch.layers import OperatorLayer, parts
from secateur.runtime.pytorch.operator import refuse_tracing

__all__ = ["Form", "LibraryLinear", "LibraryMatrix", "SemiStructured", "SquareBlocks"]

UNFINISHED = (
    "Sparse BSR tensor support is in beta",
    "The PyTorch API of SparseSemiStructuredTensor is in prototype",
    "bsr_dense_addmm uses non-optimal triton kernel parameters",
)
"""How warnings of torch begin that tell whoever asked for the fastest way nothing: it was measured."""

LIBRARIES = {
    "cuSPARSELt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    "CUTLASS": torch.sparse.SparseSemiStructuredTensorCUTLASS,
}
"""What multiplies with 2:4, by its name."""


class Form(ABC):
    """How a weight is stored."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a person calls it."""

    @abstractmethod
    def stored(self, dense: torch.Tensor) -> torch.Tensor:
        """A weight of shape (O, I) in this form."""

    @abstractmethod
    def parts(self, stored: torch.Tensor) -> list[torch.Tensor]:
        """What is in memory of it."""


@dataclass(frozen=True, slots=True)
class SemiStructured(Form):
    """Two of four, in a library of `LIBRARIES`."""

    library: str

    @property
    def name(self) -> str:
        """See `Form.name`."""
        return f"2:4, {self.library}"

    def stored(self, dense: torch.Tensor) -> torch.Tensor:
        """See `Form.stored`."""
        made = LIBRARIES[self.library].from_dense(dense)
        made.fuse_transpose_cusparselt = True  # outputs come as they are to lie, which torch 2.13 asks for by itself
        return made

    def parts(self, stored: torch.Tensor) -> list[torch.Tensor]:
        """See `Form.parts`."""
        return [held for name in ("packed", "meta") if (held := getattr(stored, name)) is not None]


@dataclass(frozen=True, slots=True)
class SquareBlocks(Form):
    """Blocks that are not zero, row after row (BSR), for a kernel of torch's in Triton."""

    side: int

    @property
    def name(self) -> str:
        """See `Form.name`."""
        return f"{self.side}x{self.side} blocks, Triton"

    def stored(self, dense: torch.Tensor) -> torch.Tensor:
        """See `Form.stored`."""
        return dense.to_sparse_bsr((self.side, self.side))

    def parts(self, stored: torch.Tensor) -> list[torch.Tensor]:
        """See `Form.parts`."""
        return [stored.values(), stored.crow_indices(), stored.col_indices()]


class LibraryMatrix:
    """A weight in the form that a library takes. It never changes, and copies share it.

    Args:
        dense: The weight, of shape (O, I).
        form: How to store it.

    Attributes:
        shape: (O, I).
        form: How it is stored.

    Raises:
        LayerError: The library refuses it.
    """

    def __init__(self, dense: torch.Tensor, form: Form) -> None:
        for beginning in UNFINISHED:
            warnings.filterwarnings("ignore", message=beginning)
        self.shape, self.form = tuple(dense.shape), form
        try:
            self._stored = form.stored(dense.contiguous())
        except Exception as error:
            raise self._refused(error) from error

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(one.nbytes for one in self.form.parts(self._stored))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._stored.device

    def dense(self) -> torch.Tensor:
        """The weight with its zeros, of shape (O, I)."""
        return self._stored.to_dense()

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Rows of shape (R, I) to rows of shape (R, O).

        Raises:
            LayerError: The library refuses them.
        """
        if not len(rows):
            return rows.new_empty(0, self.shape[0])
        try:
            # Sparse weights have no views in inference mode, and autocast has no copies of them.
            with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                return functional.linear(rows, self._stored, bias).contiguous()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._refused(error) from error

    def __deepcopy__(self, _: Any) -> LibraryMatrix:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LibraryMatrix, (self.dense(), self.form)

    def _refused(self, error: Exception) -> LayerError:
        """What a library said, with what it was asked."""
        said = (str(error) or type(error).__name__).splitlines()[0]
        return LayerError(f"{self.form.name} refuses a weight of shape {self.shape}: {said}")


class LibraryLinear(OperatorLayer):
    """In the place of ``nn.Linear``, or of transformers' ``Conv1D``, which stores its weight transposed.

    Args:
        layer: The dense layer.
        matrix: Its weight.
        is_transposed: Whether the dense weight is (I, O).
    """

    def __init__(self, layer: nn.Module, matrix: LibraryMatrix, *, is_transposed: bool = False) -> None:
        super().__init__(layer, place=str(matrix.device))
        _, bias = parts(layer)
        self.matrix, self.is_transposed = matrix, is_transposed
        self.out_features, self.in_features = matrix.shape
        # No buffer, for the weight is none either: both stay where they are.
        self._bias = None if bias is None else bias.clone()

    def dense_bias(self) -> torch.Tensor | None:
        """See `ExchangedLayer.dense_bias`."""
        return self._bias

    @property
    def nbytes(self) -> int:
        """See `ExchangedLayer.nbytes`."""
        return self.matrix.nbytes

    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiply`."""
        refuse_tracing()
        *leading, features = tensor.shape or (0,)
        self._refuse(tensor, (features, self.in_features), is_here=tensor.device == self.matrix.device)
        flat = tensor.reshape(math.prod(leading), features)
        return self.matrix.multiply(flat, self._bias).view(*leading, self.out_features)

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `ExchangedLayer.multiply_densely`."""
        return functional.linear(tensor, self.matrix.dense(), self._bias)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `OperatorLayer.output_shape`."""
        return *shape[:-1], self.matrix.shape[0]

    def dense_weight(self) -> torch.Tensor:
        """See `ExchangedLayer.dense_weight`."""
        dense = self.matrix.dense()
        return dense.T.contiguous() if self.is_transposed else dense

    def extra_repr(self) -> str:
        """Shape, form and bytes."""
        return f"{self.in_features}, {self.out_features}, {self.matrix.form.name}, {self.nbytes:,} bytes"
