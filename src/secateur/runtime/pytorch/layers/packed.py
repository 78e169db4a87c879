"""Linear layers with weights packed for CPU kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from secateur.runtime.kernels import PackedMatrix
from secateur.runtime.pytorch.layers.base import detach_parameters, refuse_tracing
from secateur.runtime.pytorch.layers.operator import NoMemoryError, OperatorLayer
from secateur.runtime.pytorch.openmp import use_openmp_of_torch

__all__ = ["PackedLayer", "SparseLinear", "materialize_zeros"]

use_openmp_of_torch()

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Maps torch's types to their names for kernels."""

MAX_CACHED_PRODUCTS = 256
"""Number of input shapes for which a layer caches its compiled product, to reduce the overhead of small products."""

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def materialize_zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Allocate memory for a lazy zero tensor of torch.

    Raises:
        NoMemoryError: The tensor is not a lazy zero tensor, and has no memory either.
    """
    if tensor.numel() and not tensor._is_zerotensor():
        raise NoMemoryError(f"an input of shape {tuple(tensor.shape)} has no memory. Pass a tensor with values.")
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class PackedLayer(OperatorLayer):
    """A layer with a weight packed for CPU kernels.

    Args:
        layer: The dense layer.
        matrix: The packed weight of shape (O, F), where F is the number of inputs of one output.

    Attributes:
        matrix: The packed weight.
        max_cached_products: Number of input shapes to cache compiled products for.
    """

    max_cached_products = MAX_CACHED_PRODUCTS

    def __init__(self, layer: nn.Module, matrix: PackedMatrix) -> None:
        super().__init__(layer, device_name="the CPU")
        _, bias = detach_parameters(layer)
        self.matrix = matrix
        self.has_bias = bias is not None
        # Not a buffer: kernels use its address, and `Module.to` would move or convert a buffer.
        empty = torch.zeros(matrix.shape[0], dtype=torch.float32, device="cpu")
        self._bias = empty if bias is None else bias.float().contiguous().clone()
        self._products: dict[Hashable, Callable[..., Any]] = {}

    def unpack_bias(self) -> torch.Tensor | None:
        """See `SparseLayer.unpack_bias`."""
        return self._bias.to(self._dtype) if self.has_bias else None

    @property
    def nbytes(self) -> int:
        """See `SparseLayer.nbytes`."""
        return self.matrix.nbytes

    def multiply(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `OperatorLayer.multiply`. Inputs have shape (…, F)."""
        product = self._products.get((tensor.shape, tensor.dtype, torch.get_num_threads()))
        if product is None or not tensor.is_cpu or (tensor.requires_grad and torch.is_grad_enabled()):
            product = self._make_product(tensor)
        return product(tensor)

    def _make_product(self, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Compile the product for rows of this shape and type with the current number of threads."""
        *leading, features = rows.shape or (0,)
        outputs, inputs = self.matrix.shape
        refuse_tracing()
        self._check_input(rows, (features, inputs), is_on_device=rows.is_cpu)
        shape, dtype, threads = (*leading, outputs), self._dtype, torch.get_num_threads()
        multiply = self.matrix.compile_product(math.prod(leading), activations=DTYPE_NAMES[dtype], threads=threads)
        bias = self._bias.data_ptr()

        def product(rows: torch.Tensor) -> torch.Tensor:
            flat, result = rows.contiguous(), rows.new_empty(shape)  # faster than torch.empty
            if not (address := flat.data_ptr()):
                flat = materialize_zeros(flat)
                address = flat.data_ptr()
            multiply(bias, address, result.data_ptr())
            return result

        return self._cache((rows.shape, dtype, threads), product)

    def _cache(self, key: Hashable, product: CallableT) -> CallableT:
        if len(self._products) >= self.max_cached_products:
            self._products.clear()
        self._products[key] = product
        return product

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_products": {}}

    def extra_repr(self) -> str:
        """Show the shape, the pattern and the size in bytes."""
        return f"{self.matrix.shape[1]}, {self.matrix.shape[0]}, {self.matrix.pattern}, {self.matrix.nbytes:,} bytes"


class SparseLinear(PackedLayer):
    """Replaces ``nn.Linear``, or transformers' ``Conv1D``, which stores its weight transposed.

    Args:
        layer: The dense layer.
        matrix: The packed weight.
        is_transposed: Whether the dense layer stores its weight as (I, O).
    """

    def __init__(self, layer: nn.Module, matrix: PackedMatrix, *, is_transposed: bool = False) -> None:
        super().__init__(layer, matrix)
        self.is_transposed = is_transposed
        self.out_features, self.in_features = matrix.shape

    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `SparseLayer.multiply_densely`."""
        weight = self.unpack_weight()
        return functional.linear(tensor, weight.T if self.is_transposed else weight, self.unpack_bias())

    def compute_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See `OperatorLayer.compute_output_shape`."""
        return *shape[:-1], self.matrix.shape[0]

    def unpack_weight(self) -> torch.Tensor:
        """See `SparseLayer.unpack_weight`."""
        dense = torch.from_numpy(self.matrix.to_dense()).to(self.dtype)
        return dense.T.contiguous() if self.is_transposed else dense
