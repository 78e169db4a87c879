"""The ways in which one layer can run, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from secateur.frameworks.pytorch import get_view
from secateur.frameworks.view import WeightView
from secateur.patterns.recognition import NonzeroMask, recognize_pattern
from secateur.runtime.kernels import MAX_ROWS_WITHOUT_AMX, PackedMatrix, get_unsupported_reason, has_amx
from secateur.runtime.pytorch.channels import ChannelConv2d, ChannelLinear
from secateur.runtime.pytorch.cuda import cuda_forms, in_form
from secateur.runtime.pytorch.layers import ExchangedLayer, SparseConv2d, SparseLinear, parts

__all__ = ["Way", "Zeroed", "refusal", "ways", "zeroed"]

LEAST_SPARSITY = 0.2
"""Share of zeros below which nothing is tried."""

SINGLE = "1x1"

TRANSFORMERS = "transformers.pytorch_utils"
"""Where transformers' own linear layer is, but no class derived from it."""

STORED = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""A layer's type → what kernels store its weight as."""

INT8_TOLERANCE = 0.05
"""What rounding to eight bits may change: a weight by 1/254 of the largest of its output channel."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a layer could run.

    Attributes:
        name: What a person calls it.
        build: Makes the layer that takes the place of the dense one.
        tolerance: The greatest difference of outputs from the dense ones, over the largest of these; ``None``: that of
            rounding.
        reason: Why it is chosen where it is.
    """

    name: str
    build: Callable[[], ExchangedLayer]
    tolerance: float | None = None
    reason: str = "faster"


@dataclass(frozen=True, slots=True)
class Zeroed:
    """A layer's weight and its zeros.

    Attributes:
        view: Where the channels of the weight lie.
        weight: The weight as (O, K·I), float32.
        pattern: The strictest pattern that its zeros have; ``None``: none.
        sparsity: Share of zeros, in [0, 1].
    """

    view: WeightView
    weight: torch.Tensor
    pattern: str | None
    sparsity: float


def zeroed(layer: nn.Module) -> Zeroed:
    """What is known of a layer's weight."""
    weight, _ = parts(layer)
    view = get_view(layer)
    canonical = view.canonical(weight.float().cpu()).flatten(1).contiguous()
    nonzero = (canonical != 0).numpy()
    flat = WeightView(
        shape=view.canonical_shape, output_axes=(0,), kernel_axes=(1,), input_axes=(2,), groups=view.groups
    )
    pattern = recognize_pattern(NonzeroMask(flat, nonzero.reshape(flat.shape)))
    return Zeroed(view, canonical, pattern, 1 - float(np.count_nonzero(nonzero)) / nonzero.size)


HOOKS = tuple(name for name in nn.Module().__dict__ if name.endswith("_hooks"))
"""Attributes of a module that hold its hooks."""


def refusal(layer: nn.Module, owners: int) -> str:
    """Why a layer cannot be exchanged, whatever its zeros; empty if it can.

    Args:
        layer: The layer.
        owners: Modules that its weight belongs to.
    """
    if type(layer) not in (nn.Linear, nn.Conv2d) and type(layer).__module__ != TRANSFORMERS:
        return f"{type(layer).__name__} is not exchanged"
    if "forward" in layer.__dict__:
        return "its forward was replaced"
    if layer._parameters.keys() - {"weight", "bias"} or layer._buffers or layer._modules:
        return "it has parameters, buffers or modules besides its weight and bias"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is not a parameter, but computed from others"
    if owners > 1:
        return "its weight is shared with another layer"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "a convolution with groups is many small products"
    if any(layer.__dict__.get(name) for name in HOOKS):
        return "it has hooks, which would be lost"
    return _refusal_of_weight(weight)


def _refusal_of_weight(weight: torch.Tensor) -> str:
    if type(weight) not in (nn.Parameter, torch.Tensor):
        return f"its weight is a {type(weight).__name__}"
    if weight.layout is not torch.strided:
        return f"its weight is stored as {weight.layout}"
    if weight.is_meta:
        return "its weight is on the meta device and has no values"
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {weight.dtype}"
    return ""


def ways(layer: nn.Module, found: Zeroed, rows: int, *, int8: bool = False) -> Iterator[Way | str]:
    """Every way to run a layer, and for those that its zeros ask for and that there are none of, why.

    Args:
        layer: The layer.
        found: Its weight and its zeros.
        rows: Products with the whole weight that it is to be fast for.
        int8: Whether weights may be rounded to eight bits.
    """
    if found.sparsity < LEAST_SPARSITY or found.pattern is None:
        yield "too few of its weights are zero to gain" if found.sparsity else "none of its weights is zero"
        return
    if (smaller := _channels(layer, found)) is not None:
        yield smaller
    if parts(layer)[0].device.type == "cuda":
        for form in cuda_forms(layer, found):
            yield form if isinstance(form, str) else Way(form.name, partial(in_form, layer, found, form))
        return
    if (tiles := _tiles(layer, found, rows)) is not None:
        yield tiles
    for pattern in dict.fromkeys((_blocks(found.pattern), SINGLE)):
        yield from _kernels(layer, found, (pattern, rows))
        if int8:
            yield from _kernels(layer, found, (pattern, rows), int8=True)


def _blocks(pattern: str) -> str:
    """A pattern that kernels know: whole channels are no blocks, but their rest may be anything."""
    return SINGLE if "channel" in pattern else pattern


def _channels(layer: nn.Module, found: Zeroed) -> Way | None:
    """A smaller dense product, if whole channels are zero."""
    kept = (found.weight != 0).reshape(found.view.canonical_shape)
    outputs, inputs = kept.any(dim=(1, 2)), kept.any(dim=(0, 1))
    share = 1 - float(outputs.float().mean() * inputs.float().mean())
    if share < LEAST_SPARSITY:
        return None
    if isinstance(layer, nn.Conv2d):
        return Way("smaller dense", lambda: ChannelConv2d(layer, outputs, inputs))
    return Way("smaller dense", lambda: ChannelLinear(layer, outputs, inputs))


def _tiles(layer: nn.Module, found: Zeroed, rows: int) -> Way | None:
    """Tiles of bfloat16, if the processor has them; not for few rows of float32, which vectors would do."""
    dtype = STORED.get(parts(layer)[0].dtype)
    if (
        dtype is None
        or isinstance(layer, nn.Conv2d)
        or not has_amx()
        or (dtype == "float32" and rows <= MAX_ROWS_WITHOUT_AMX)
    ):
        return None
    weight, pattern = found.weight.numpy(), found.pattern or SINGLE
    return Way(
        f"tiles, {dtype}",
        lambda: _linear(layer, found, PackedMatrix.from_dense_for_amx(weight, pattern, dtype)),
        reason="faster, and dense uses no tiles" if dtype == "float32" else "faster",
    )


def _kernels(layer: nn.Module, found: Zeroed, product: tuple[str, int], *, int8: bool = False) -> Iterator[Way | str]:
    """The kernel for a product: its weight's pattern, and its rows."""
    pattern, rows = product
    shape = (found.weight.shape[0], found.weight.shape[1])
    dtype = STORED.get(parts(layer)[0].dtype)
    if dtype is None:
        yield f"there are no kernels for {parts(layer)[0].dtype} on the CPU"
        return
    dtype = "int8" if int8 else dtype
    if reason := get_unsupported_reason(pattern, shape, dtype):
        yield reason
        return

    def build() -> ExchangedLayer:
        matrix = PackedMatrix.from_dense(found.weight.numpy(), pattern, dtype, rows)
        if isinstance(layer, nn.Conv2d):
            return SparseConv2d(layer, matrix)
        return _linear(layer, found, matrix)

    yield Way(f"{pattern} kernel, {dtype}", build, INT8_TOLERANCE if int8 else None)


def _linear(layer: nn.Module, found: Zeroed, matrix: PackedMatrix) -> SparseLinear:
    return SparseLinear(layer, matrix, is_transposed=found.view.output_axes == (1,))
