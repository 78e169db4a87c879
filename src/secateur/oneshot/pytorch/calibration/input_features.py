"""Read the inputs of a layer as rows of input features, one row per output position.

Legend: N rows (tokens, or output positions of a convolution), G groups, F input features of one group (kernel positions
× input channels, input channels fastest, as in the canonical view of the weight).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from secateur.errors import CalibrationError

__all__ = ["explain_unsupported", "iterate_features", "refuse_unsupported"]

MAX_UNFOLDED = 1 << 24
"""Elements of a convolution's unfolded input that are in memory at once."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def explain_unsupported(module: nn.Module) -> str | None:
    """Return why the input features of a layer cannot be determined; ``None``: they can."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "Its output positions read different parts of the kernel, so its weight has no single input."
    if isinstance(module, Convolution) and not any(
        type(module).forward is kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    ):
        return "It has a custom forward method, so it is unknown how it reads its inputs."
    return None


def refuse_unsupported(name: str, module: nn.Module) -> None:
    """Raise `CalibrationError` for a layer whose input features cannot be determined."""
    if (reason := explain_unsupported(module)) is not None:
        raise CalibrationError(
            f"layer {name!r}: calibration does not support {type(module).__name__}. Exclude it, or prune without "
            f"calibration data. {reason}"
        )


def iterate_features(
    name: str,
    module: nn.Module,
    inputs: tuple[Any, ...],
    keep: torch.Tensor | None,
    *,
    max_unfolded: int = MAX_UNFOLDED,
) -> Iterator[torch.Tensor]:
    """Yield the rows that a layer multiplies by its weight, in float32, in chunks of shape (N, G, F).

    Args:
        name: Layer name.
        module: The layer.
        inputs: Its positional arguments in one forward pass.
        keep: Booleans of shape (batch, tokens), ``False`` where a token is padding; ``None``: all count.
        max_unfolded: Elements of a convolution's unfolded input that are in memory at once.

    Raises:
        CalibrationError: The layer reads several different inputs, or complex numbers.
    """
    if isinstance(inputs[0], torch.Tensor) and inputs[0].is_complex():
        raise CalibrationError(f"layer {name!r}: its inputs must be real numbers, found complex numbers. Exclude it.")
    if isinstance(module, Convolution):
        yield from _unfold(module, inputs[0], max_unfolded)
        return
    if isinstance(module, nn.MultiheadAttention):
        query, key, value = inputs[:3]
        if not (query is key and key is value):
            raise CalibrationError(
                f"layer {name!r}: its query, key and value differ, so its weight has no single input. Exclude it."
            )
        keep = keep if keep is None or module.batch_first else keep.transpose(0, 1)
    if isinstance(module, NonDynamicallyQuantizableLinear) and keep is not None:
        keep = keep.transpose(0, 1)  # the input of the output projection has tokens first
    rows = inputs[0]
    if keep is not None and keep.shape == rows.shape[:-1]:
        rows = rows[keep]
    elif keep is not None and rows.ndim == 2 and keep.numel() == len(rows):
        rows = rows[keep.reshape(-1)]
    yield rows.reshape(-1, 1, rows.shape[-1]).float()


def _unfold(module: Convolution, images: torch.Tensor, max_unfolded: int) -> Iterator[torch.Tensor]:
    spatial = len(module.kernel_size)
    images = images if images.ndim == spatial + 2 else images[None]
    padded = _pad(module, images)
    sizes = [
        (length - dilation * (kernel - 1) - 1) // stride + 1
        for length, kernel, dilation, stride in zip(
            padded.shape[2:], module.kernel_size, module.dilation, module.stride, strict=True
        )
    ]
    positions = torch.Size(module.kernel_size).numel()
    per_image = positions * images.shape[1] * torch.Size(sizes).numel()
    for part in padded.split(max(1, max_unfolded // max(1, per_image))):
        columns = [
            _slice_kernel_position(module, part, offsets, sizes) for offsets in product(*map(range, module.kernel_size))
        ]
        # (K, batch, G, I, L) → (batch · L, G, K · I)
        stacked = torch.stack(columns).reshape(positions, len(part), module.groups, -1, torch.Size(sizes).numel())
        rows = stacked.permute(1, 4, 2, 0, 3)
        yield rows.reshape(-1, module.groups, positions * stacked.shape[3]).float()


def _pad(module: Convolution, images: torch.Tensor) -> torch.Tensor:
    # The convolution stores its padding in the format of `functional.pad`.
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(images, padding, mode=mode) if any(padding) else images


def _slice_kernel_position(
    module: Convolution, images: torch.Tensor, offsets: tuple[int, ...], sizes: list[int]
) -> torch.Tensor:
    """Return the inputs at one kernel position, for every output position."""
    slices = tuple(
        slice(offset * dilation, offset * dilation + (size - 1) * stride + 1, stride)
        for offset, dilation, stride, size in zip(offsets, module.dilation, module.stride, sizes, strict=True)
    )
    return images[(slice(None), slice(None), *slices)]
