"""Multiply in 8 bits while calibration data runs through a model, on processors that are faster with that.

Legend: N rows (tokens), F input features, O output channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.oneshot.pytorch.calibration.batches import get_version

__all__ = ["Int8Products", "has_fast_int8"]

LEVELS = 127
"""Largest absolute value of an 8-bit integer; -128 is not used."""

MIN_SIZE = 128
"""Input features and output channels of the smallest weight for which quantizing the inputs pays."""

MIN_ROWS = 64
"""Rows of the smallest input for which quantizing the weight pays."""

MAX_FEATURES = (2**31 - 1) // LEVELS**2
"""Sums of more products may exceed 32 bits."""

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})


class _Quantized(NamedTuple):
    """A matrix in 8 bits, and the tensor and its version that it was computed from."""

    source: torch.Tensor
    version: int
    levels: torch.Tensor
    scales: torch.Tensor

    def matches(self, tensor: torch.Tensor) -> bool:
        """Whether it was computed from this tensor, which has not changed since."""
        return self.source is tensor and self.version == get_version(tensor) != -1


class Int8Products(TorchFunctionMode):
    """Computes ``functional.linear`` with 8-bit integers within this context.

    Each row of the inputs and each row of the weight has a scale of its own, so outliers in one token do not affect
    others, and a token has the same outputs in any batch. Sums of integers are exact, so outputs do not depend on the
    number of threads. Rows with ``inf`` or ``nan`` have no finite outputs.

    Small products, and weights that are no plain parameters on the CPU, are computed as usual. Modes that observe
    products must be entered after this one.

    Source:
        Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", arXiv:2208.07339,
        section 2.1 (vector-wise quantization).

    Examples:
        >>> layer, rows = torch.nn.Linear(128, 128), torch.randn(64, 128)
        >>> with torch.no_grad():
        ...     expected = layer(rows)
        ...     with Int8Products():
        ...         outputs = layer(rows)
        >>> float((outputs - expected).abs().max()) < 0.1
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, _Quantized] = {}
        self._rows: _Quantized | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and not kwargs and _is_supported(*args[:2]):
            return self._multiply(*args)
        return func(*args, **kwargs)

    def _multiply(self, inputs: torch.Tensor, weight: nn.Parameter, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self._rows is None or not self._rows.matches(inputs):  # layers often share their inputs
            self._rows = _quantize(inputs)
        key = id(weight)
        if key not in self._weights or not self._weights[key].matches(weight):
            self._weights[key] = _quantize(weight)
        rows, columns = self._rows, self._weights[key]
        product: torch.Tensor = torch._int_mm(rows.levels, columns.levels.T)
        outputs_NO = product.float().mul_(columns.scales.T).mul_(rows.scales)
        if bias is not None:
            outputs_NO += bias
        return outputs_NO.to(inputs.dtype).reshape(*inputs.shape[:-1], len(weight))


def has_fast_int8() -> bool:
    """Whether torch multiplies 8-bit integers on this processor with instructions that add four products at once.

    Without them, float32 is as fast, and intermediate sums may overflow.
    """
    read_capabilities = getattr(torch.cpu, "get_capabilities", dict)
    capabilities: dict[str, Any] = read_capabilities()
    has_instructions = any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni"))
    return has_instructions and hasattr(torch, "_int_mm") and bool(torch.backends.mkldnn.enabled)


def _is_supported(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product can be computed in 8 bits, and is faster so."""
    return (
        type(inputs) is torch.Tensor
        and type(weight) is nn.Parameter  # not a view, of which each call makes another
        and inputs.dtype == weight.dtype
        and inputs.dtype in FLOATS
        and inputs.device.type == weight.device.type == "cpu"
        and weight.ndim == 2
        and min(weight.shape) >= MIN_SIZE
        and inputs.shape[-1] == weight.shape[1] <= MAX_FEATURES
        and inputs.numel() >= MIN_ROWS * weight.shape[1]
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _quantize(tensor: torch.Tensor) -> _Quantized:
    """Round each row to multiples of its largest absolute value / 127."""
    rows_NF = tensor.detach().reshape(-1, tensor.shape[-1]).float()
    peaks_N1 = rows_NF.abs().amax(dim=1, keepdim=True)
    scales_N1 = peaks_N1.clamp_(min=LEVELS * torch.finfo(torch.float32).tiny).div_(LEVELS)  # rows of zeros stay zero
    levels_NF = (rows_NF / scales_N1).round_().to(torch.int8)
    return _Quantized(tensor, get_version(tensor), levels_NF, scales_N1)
